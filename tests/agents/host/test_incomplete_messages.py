"""The limit on incomplete messages."""

from __future__ import annotations

import pytest

from server.agents.host.incomplete_messages import IncompleteMessages


def test_incomplete_messages_of_an_app_are_limited_in_bytes() -> None:
    incomplete = IncompleteMessages(2 << 20)
    first, second, others = object(), object(), object()
    incomplete.update(first, "app", 1 << 20)
    incomplete.update(others, "other", 2 << 20)
    with pytest.raises(OverflowError):
        incomplete.update(second, "app", (1 << 20) + 1)
    incomplete.update(first, "app", 0)
    incomplete.update(second, "app", 2 << 20)
    incomplete.update(second, "the agent's new owner", 2 << 20)
    incomplete.update(first, "app", 2 << 20)
