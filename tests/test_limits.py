"""Rates and counts."""

from __future__ import annotations

from collections import Counter

import pytest

from server.limits import TokenBucket, decrement


def test_key_with_a_count_of_zero_is_deleted() -> None:
    taken = Counter({"one": 3, "other": 1})
    decrement(taken, "one", 2)
    decrement(taken, "other")
    assert dict(taken) == {"one": 1}


def test_spent_tokens_return_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rate = TokenBucket(per_second=2, burst=4)
    assert rate.is_full()
    assert [rate.allows() for _ in range(5)] == [True] * 4 + [False]
    now = 1.5
    assert not rate.is_full()
    assert [rate.allows() for _ in range(4)] == [True] * 3 + [False]
    now = 10
    assert rate.is_full()
