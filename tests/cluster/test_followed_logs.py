"""Logs of other nodes' sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from unittest import mock

import pytest

from server.sessions import followed_log
from server.sessions.followed_log import LogFollower


def idle() -> dict[str, Any]:
    return {"remember": mock.AsyncMock(), "check": mock.AsyncMock()}


async def test_log_followed_during_the_query_of_the_heads_is_not_taken_for_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(followed_log, "HEADS_POLL_SECS", 0)
    later: Any = mock.Mock(number=2, _known_head=0, has_gone_back=False, **idle())
    deleted: Any = mock.Mock(number=1, _known_head=0, has_gone_back=False, **idle())
    node: Any = mock.Mock(on_event={})
    follower = LogFollower(node, mock.Mock(), mock.Mock(), mock.Mock())
    asked: list[set[int]] = []
    done = asyncio.Event()

    async def heads_of(numbers: Iterable[int]) -> dict[int, tuple[int | None, int]]:
        asked.append(set(numbers))
        if len(asked) == 1:
            follower.follow("later", later, None)
        else:
            done.set()
        return {2: (None, 0)} if len(asked) > 1 else {}

    node.heads_of = heads_of
    follower.follow("deleted", deleted, None)
    watching = asyncio.create_task(follower.watch())
    await asyncio.wait_for(done.wait(), 60)
    watching.cancel()
    assert asked[0] == {1}
    deleted.mark_deleted.assert_called()
    later.mark_deleted.assert_not_called()
