"""The entries about undos, also about those that a killed server left unfinished."""

from __future__ import annotations

from typing import Any

from . import entries
from .core import SessionCore


def log_undo(
    core: SessionCore,
    entry_index: int,
    replaced: str,
    *,
    turn_index: int | None,
    snapshot_id: str | None,
    is_complete: bool = True,
) -> None:
    """Log that the folder was restored, for the clients that show it.

    Args:
        entry_index: the turn index of the entry.
        replaced: the snapshot of the state that was replaced.
        turn_index, snapshot_id: the state that was restored: before a turn, or a snapshot.
        is_complete: false if the undo failed, so that a part of the folder may be restored.
    """
    if core.is_log_complete:
        return  # it was closed meanwhile
    if turn_index is not None:
        state: dict[str, Any] = {"restored_turn": turn_index}
    else:
        state = {"restored_snapshot": snapshot_id}
    if not is_complete:
        state["incomplete"] = True
    fields = entries.encode_fields(notice="undone", snapshot_id=replaced, **state)
    core.log.append("notice", entry_index, fields)


async def log_finished_undo(core: SessionCore) -> None:
    """Log the undo that an earlier server began and that is finished now, if there is one."""
    row = core.row
    undo = await core.context.snapshots.finish_undo(row.id, row.cwd)
    if undo is None:
        return
    replaced = undo.snapshot_id
    if replaced is not None and not await _is_logged(core, replaced, undo.position):
        target: dict[str, Any] = {"turn_index": undo.turn_index, "snapshot_id": undo.restored_id}
        log_undo(core, undo.entry_index, replaced, **target)
    core.context.tasks.spawn(_forget_undo(core, core.log.last, replaced), f"settle-undo-{core.id}")


async def _is_logged(core: SessionCore, replaced: str, position: int) -> bool:
    """Whether the log has the entry about an undo after a position."""
    name = b'"snapshot_id":"%b"' % replaced.encode()
    while position < core.log.head:
        for batch in await core.log.read(position):
            if any(line.startswith(b'{"type":"notice"') and name in line for line in batch.lines()):
                return True
            position = batch.last
    return False


async def _forget_undo(core: SessionCore, position: int, replaced: str | None) -> None:
    """Forget the undo when the log has it. On a full disk, that takes until there is space."""
    await core.log.reach(position)
    async with core.snapshots.lock:
        await core.snapshots.settle_undo(replaced)
