"""Counts and rates: exact, and gone when nobody uses them."""

from __future__ import annotations

from collections import Counter

import pytest

from server.limits import TokenBucket, give_back


def test_what_is_given_back_leaves_nothing() -> None:
    taken = Counter({"one": 3, "other": 1})
    give_back(taken, "one", 2)
    give_back(taken, "other")
    assert dict(taken) == {"one": 1}


def test_an_allowance_is_spent_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rate = TokenBucket(per_second=2, burst=4)
    assert rate.is_unspent()
    assert [rate.allows() for _ in range(5)] == [True] * 4 + [False]
    now = 1.5
    assert not rate.is_unspent()
    assert [rate.allows() for _ in range(4)] == [True] * 3 + [False]
    now = 10
    assert rate.is_unspent()
