"""The changes of the agent in a session's folder, and undo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Literal

import msgspec
from aiohttp import hdrs, web

from ...codec import dumps
from ...errors import bad_request, not_found, session_closed
from ...sessions.session import Session
from ..context import context_of, stream_json, waiting
from ..downloads import raw_query_value, send_pieces
from ..endpoint import Endpoint, Tag
from ..field_types import Count, TurnIndex, UnixMillis, doc

DIFF = "text/x-diff"
DIFF_EXAMPLE = """\
diff --git a/a.txt b/a.txt
--- a/a.txt
+++ b/a.txt
@@ -1 +1 @@
-old
+new
"""
DIFF_PIECE_BYTES = 256 << 10
FILES_AT_ONCE = 500
"""Changed files that are encoded before other requests proceed."""
SNAPSHOT_ID_EXAMPLE = "8dd3a5b1bd98a956"


class ChangesQuery(msgspec.Struct, frozen=True):
    """The changes to return."""

    since_turn: Annotated[
        TurnIndex | msgspec.UnsetType,
        doc("Changes since before this turn; by default since the session's first turn."),
    ] = msgspec.UNSET
    path: Annotated[
        str | None,
        doc("A file or folder: its unified diff is returned instead of a list."),
    ] = None


class ChangedFile(msgspec.Struct, kw_only=True):
    """A file that the agent has changed."""

    path: str
    status: Literal["added", "modified", "deleted"]
    additions: Annotated[Count | None, doc("Lines; null if the file is not text or not saved.")]
    deletions: Annotated[Count | None, doc("Lines; null if the file is not text or not saved.")]


class ChangeList(msgspec.Struct, kw_only=True):
    """The files that the agent has changed."""

    files: list[ChangedFile]


class Undo(msgspec.Struct, frozen=True):
    """The state to restore: that before a turn, or a snapshot."""

    turn_index: TurnIndex | None = None
    snapshot_id: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class UndoResult(msgspec.Struct, kw_only=True):
    """The folder is restored."""

    snapshot_id: Annotated[str, doc("The state that was replaced; undo it with this id.")]
    restored: Annotated[Count, doc("The number of files that were written or removed.")]
    not_restored: Annotated[
        list[str],
        doc("Files that stay as they are: not saved (too large), or changed meanwhile."),
    ]
    skipped: Annotated[
        dict[str, Count],
        doc("The numbers of files that no snapshot has: `ignored`, `large`, and so on."),
    ]


class SnapshotInfo(msgspec.Struct, kw_only=True):
    """A state of the folder that can be restored."""

    snapshot_id: str
    kind: Annotated[
        Literal["start", "end", "undo", "restored"],
        doc("Before or after a turn; before or after an undo."),
    ]
    turn_index: Annotated[Count, doc("The turn, or the last one before an undo.")]
    created_at: UnixMillis


class SnapshotList(msgspec.Struct, kw_only=True):
    """Snapshots, the oldest first. A state that equals the one before it has none."""

    snapshots: list[SnapshotInfo]


@Endpoint(
    "GET",
    "/sessions/{session_id}/changes",
    tag=Tag.FILES,
    scope="read",
    summary="See what the agent has changed",
    description="From snapshots before and after each turn; during a turn, so far. With `path`,"
    " the unified diff of a file or folder.",
    waits=("work", "response"),
    example={
        "ok": True,
        "files": [{"path": "a.txt", "status": "modified", "additions": 1, "deletions": 1}],
    },
    media={DIFF: DIFF_EXAMPLE},
    failures=("not_supported", "payload_too_large", "pool_full"),
)
async def get_changes(
    request: web.Request, session: Session, query: ChangesQuery
) -> Annotated[web.StreamResponse, ChangeList]:
    path = raw_query_value(request, "path")
    since = None if query.since_turn is msgspec.UNSET else query.since_turn
    if since is not None and since > session.turns.last_index:
        raise not_found("turn")

    def is_live() -> bool:
        return session.state_name == "running"

    if path is None:
        return await stream_json(request, _encoded_changes(session, since, is_live))
    return await send_pieces(
        request,
        web.StreamResponse(headers={hdrs.CONTENT_TYPE: f"{DIFF}; charset=utf-8"}),
        _diff_pieces(session, path, since, is_live),
        context_of(request).settings.stall_timeout_secs,
        waiting(request),
    )


@Endpoint(
    "POST",
    "/sessions/{session_id}/undo",
    tag=Tag.FILES,
    scope="manage",
    summary="Undo what the agent has changed",
    description="Restores the session's folder to its state before a turn, or to a snapshot. The"
    " state that is replaced is kept as a snapshot. The log gets a notice; the agent gets none.",
    waits=("body", "work"),
    request_example={"turn_index": 1},
    example={
        "ok": True,
        "snapshot_id": SNAPSHOT_ID_EXAMPLE,
        "restored": 1,
        "not_restored": [],
        "skipped": {},
    },
    failures=("not_supported", "conflict", "session_closed", "pool_full"),
)
async def undo_changes(request: web.Request, session: Session, body: Undo) -> UndoResult:
    if (body.turn_index is None) == (body.snapshot_id is None):
        raise bad_request("turn_index, snapshot_id: exactly one of them is needed")
    if session.is_closed:
        raise session_closed()
    sessions = context_of(request).sessions

    def is_busy() -> bool:
        """Whether a turn runs or waits in the folder, of this session or another."""
        others = (other for other in sessions.cached.values() if other.row.cwd == session.row.cwd)
        return session.is_busy or any(other.is_busy for other in others)

    index = session.turns.current.entry_turn_index()

    def restored(replaced: str, is_complete: bool) -> Awaitable[None]:
        target = {"turn_index": body.turn_index, "snapshot_id": body.snapshot_id}
        session.details.log_undo(index, replaced, **target, is_complete=is_complete)
        return session.log.reach(session.log.last)

    async with waiting(request):
        done = await session.snapshots.undo(
            turn_index=body.turn_index,
            snapshot_id=body.snapshot_id,
            last_turn=session.turns.last_index,
            entry_index=index,
            position=session.log.last,
            is_busy=is_busy,
            restored=restored,
        )
    return UndoResult(
        snapshot_id=done["snapshot_id"],
        restored=done["restored"],
        not_restored=done["not_restored"],
        skipped=done["skipped"],
    )


@Endpoint(
    "GET",
    "/sessions/{session_id}/snapshots",
    tag=Tag.FILES,
    scope="read",
    summary="List the snapshots of a session's folder",
    waits=("work",),
    example={
        "ok": True,
        "snapshots": [
            {
                "snapshot_id": SNAPSHOT_ID_EXAMPLE,
                "kind": "end",
                "turn_index": 1,
                "created_at": 1795479875223,
            }
        ],
    },
    failures=("not_supported", "pool_full"),
)
async def list_snapshots(request: web.Request, session: Session) -> SnapshotList:
    async with waiting(request):
        records = await session.snapshots.records()
    return SnapshotList(
        snapshots=[
            SnapshotInfo(
                snapshot_id=record["id"],
                kind=record["kind"],
                turn_index=record["turn_index"],
                created_at=record["at"],
            )
            for record in records
        ]
    )


async def _encoded_changes(
    session: Session, since: int | None, is_live: Callable[[], bool]
) -> AsyncIterator[bytes]:
    files = await session.snapshots.changes(since, is_live=is_live)
    yield b'{"ok":true,"files":['
    for start in range(0, len(files), FILES_AT_ONCE):
        part = dumps(files[start : start + FILES_AT_ONCE])[1:-1]
        yield b"," + part if start else part
        await asyncio.sleep(0)
    yield b"]}"


async def _diff_pieces(
    session: Session, path: str, since: int | None, is_live: Callable[[], bool]
) -> AsyncIterator[bytes]:
    diff = memoryview(await session.snapshots.diff(path, since, is_live=is_live))
    for start in range(0, len(diff), DIFF_PIECE_BYTES):
        yield bytes(diff[start : start + DIFF_PIECE_BYTES])
