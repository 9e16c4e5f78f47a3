"""Logs of other nodes' sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from unittest import mock

import pytest

from server.cluster.notices import row_of
from server.sessions import followed_log
from server.sessions.event_log import EventLogs, LogReader
from server.sessions.followed_log import FollowedLog, LogFollower
from server.sessions.head_reporter import HeadReporter
from server.storage.schema import LogRow

from ..support.waiting import eventually


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


@pytest.fixture
def losses() -> Any:
    return mock.Mock(failovers=mock.Mock(return_value=0))


@pytest.fixture
def log(losses: Any) -> FollowedLog:
    """A followed log with two entries, whose database has four."""
    rows = [LogRow(7, 3, 4, b"{3}\n{4}")]
    queries: Any = mock.Mock(read_log=mock.AsyncMock(return_value=rows))
    shared = EventLogs(mock.Mock(is_over=False), queries)
    found = FollowedLog(shared, 7, 2, is_complete=False, queries=queries, losses=losses)
    found.subscribe(lambda: None)
    return found


def reads(log: FollowedLog) -> int:
    return log._queries.read_log.await_count  # type: ignore[attr-defined, no-any-return]


async def test_entries_in_a_notification_are_not_read(log: FollowedLog) -> None:
    log.note_entries(LogRow(7, 3, 3, b"{3}"))
    assert log.head == 3
    batches = log.recent(2)
    assert batches is not None
    assert [batch.body for batch in batches] == [b"{3}"]
    log.note_entries(LogRow(7, 3, 3, b"{3}"))  # again
    assert log.head == 3
    assert log._reading is None


async def test_entries_after_a_gap_are_read(log: FollowedLog) -> None:
    log.note_entries(LogRow(7, 4, 4, b"{4}"))
    assert log.head == 2
    await log.reach(4)
    batches = log.recent(2)
    assert batches is not None
    assert [batch.body for batch in batches] == [b"{3}\n{4}"]
    assert reads(log) == 1


async def test_entries_after_a_failover_are_read_and_the_log_is_checked(
    log: FollowedLog, losses: Any
) -> None:
    losses.failovers.return_value = 1
    log.note_entries(LogRow(7, 3, 4, b"{3}\n{4}"))
    assert log.head == 2
    await eventually("the log to be checked", lambda: log.has_gone_back)
    losses.on_loss.assert_called_once()


class Reports:
    """A reporter of one session's log to node 2, and what it has reported."""

    def __init__(self) -> None:
        self.log = LogReader(EventLogs(mock.Mock(), mock.Mock()), 7, 2)
        self.found: list[tuple[list[tuple[int, int]], list[str]]] = []
        self.session: Any = mock.Mock(log=self.log)
        self.session.row.n = 7
        node: Any = mock.Mock(report=self._report)
        node.channels.servers = {}
        self.reporter = HeadReporter(node, lambda _: self.session)

    async def _report(self, node: int, heads: Any, entries: Any) -> None:
        assert node == 2
        self.found.append((list(heads), list(entries)))

    async def after(self, *rows: LogRow) -> tuple[list[tuple[int, int]], list[str]]:
        """The report that follows these rows."""
        if rows:
            self.log.publish(rows)
        await self.reporter._tasks.wait_empty()
        return self.found.pop()


async def test_few_entries_are_reported_themselves_and_many_by_their_head() -> None:
    reports = Reports()
    reports.reporter._attach(2, {}, {"session"})
    assert await reports.after() == ([(7, 2)], [])
    three = LogRow(7, 3, 3, b'{"text":"\xc3\xbc"}')
    heads, [text] = await reports.after(three)
    assert not heads
    assert row_of(text) == three
    assert await reports.after(LogRow(7, 4, 4, b"x" * 8000)) == ([(7, 4)], [])
    heads, [text] = await reports.after(LogRow(7, 5, 6, b"{5}\n{6}"), LogRow(7, 7, 7, b"{7}"))
    assert row_of(text) == LogRow(7, 5, 7, b"{5}\n{6}\n{7}")
    assert await reports.after(LogRow(7, 8, 8, b"\xff")) == ([(7, 8)], [])
    assert await reports.after(LogRow(7, 9, 9, b"\0")) == ([(7, 9)], [])


async def test_entries_are_reported_with_those_that_are_being_committed() -> None:
    reports = Reports()
    reports.reporter._attach(2, {}, {"session"})
    await reports.after()
    with mock.patch.object(LogReader, "last", 9):  # more is being committed all the time
        reports.log.publish([LogRow(7, 3, 3, b"{3}")])
        assert reports.reporter._tasks.is_empty
        _, [text] = await reports.after(LogRow(7, 4, 4, b"{4}"))
        assert row_of(text) == LogRow(7, 3, 4, b"{3}\n{4}")
        reports.log.publish([LogRow(7, 5, 5, b"{5}")])
        assert reports.reporter._tasks.is_empty
    _, [text] = await reports.after(LogRow(7, 6, 6, b"{6}"))
    assert row_of(text) == LogRow(7, 5, 6, b"{5}\n{6}")
    _, [text] = await reports.after(LogRow(7, 7, 7, b"{7}"))
    assert row_of(text) == LogRow(7, 7, 7, b"{7}")
