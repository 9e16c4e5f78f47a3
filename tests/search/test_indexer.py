"""The rounds of the task that fills the full-text index."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest

from server.search import indexer as indexer_module
from server.search.indexer import Indexer


async def test_log_that_has_not_grown_is_not_queried(monkeypatch: pytest.MonkeyPatch) -> None:
    growth: Any = mock.AsyncMock()
    growth.log_heads.return_value = growth.session_ids.return_value = {}
    growth.session_numbers.return_value = []
    growth.last_log_row.return_value = 0
    growth.newest.return_value = (0, 0)
    growth.log_growth.return_value = (5, set())
    index: Any = mock.AsyncMock()
    index.progress.return_value = {}
    commits = 0
    queries: list[int] = []  # until the end of each round

    async def sleep(_: float) -> None:
        nonlocal commits
        queries.append(growth.newest.await_count)
        commits += len(queries) in (3, 5)
        if len(queries) == 5:
            growth.newest.return_value = (7, 0)  # more rows than one round reads
        if len(queries) == 8:
            raise asyncio.CancelledError

    loops = mock.Mock(sleep=sleep)
    monkeypatch.setattr(indexer_module, "asyncio", loops)
    indexer = Indexer(index, mock.Mock(), growth, lambda session_id: False, lambda: commits)
    with pytest.raises(asyncio.CancelledError):
        await indexer.run()
    assert queries == [1, 1, 1, 2, 2, 3, 4, 5]
