"""The search for prompts by the ids that clients gave them."""

from __future__ import annotations

from typing import Any
from unittest import mock

from server.sessions.client_ids import ClientIds


async def test_only_the_first_search_for_a_new_id_asks_nobody() -> None:
    core: Any = mock.Mock()
    search = core.context.queries.turn_by_client_id = mock.AsyncMock(return_value=(None, False))
    ids = ClientIds(core)
    ids.note_new("new")
    assert await ids.find("new") is None
    assert search.await_count == 0
    await ids.find("new")
    assert search.await_count == 1
    ids.note_new("new")
    await ids.find("other")
    await ids.find("new")  # only the next search knows
    assert search.await_count == 3
