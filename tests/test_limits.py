"""Rates and counts."""

from __future__ import annotations

from collections import Counter

import pytest

from server.limits import RefusalPace, TokenBucket, decrement


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
    assert [rate.try_acquire() for _ in range(5)] == [True] * 4 + [False]
    now = 1.5
    assert not rate.is_full()
    assert [rate.try_acquire() for _ in range(4)] == [True] * 3 + [False]
    now = 10
    assert rate.is_full()


def test_refusals_of_one_address_are_delayed_for_a_bounded_time() -> None:
    pace = RefusalPace(per_second=2)
    assert [pace.delay("one"), pace.delay("one")] == [0, 0]
    assert all(0 < pace.delay("one") <= pace.MAX_DELAY_SECS for _ in range(10))
    assert pace.delay("another") == 0


def test_refusals_of_many_addresses_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RefusalPace, "MAX_ADDRESSES", 2)
    pace = RefusalPace(per_second=0.001)
    assert pace.delay("one") > 0
    for address in ("two", "three", "four"):
        pace.delay(address)
    assert len(pace) == 2
