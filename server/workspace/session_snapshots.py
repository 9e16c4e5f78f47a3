"""The snapshots of one session's folder: taken around each turn, compared, and restored."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import Error, ErrorCode, not_found
from .fingerprint import LastSeen, take_fingerprint
from .folders import WorkFolder, split_folder_path
from .workers import LONG_SECS, SnapshotError

if TYPE_CHECKING:
    from .snapshots import Snapshots

logger = logging.getLogger(__name__)


class FinishedUndo(msgspec.Struct, kw_only=True):
    """An undo of an earlier server, whose entry the log may lack.

    Attributes:
        snapshot_id: the state that was replaced; None if the undo was begun by an older version.
        turn_index, restored_id: what was restored: the state before a turn, or a snapshot.
        entry_index: the turn index of the entry.
        position: of the log, after which the entry is.
    """

    snapshot_id: str | None = None
    turn_index: int | None = None
    restored_id: str | None = None
    entry_index: int = 0
    position: int = 0


class SessionSnapshots:
    """The snapshots of one session.

    Attributes:
        is_deleted: the session is being deleted; every operation fails.
        lock: held while a snapshot is taken or restored, and while a client's file is put in place.
    """

    def __init__(
        self, service: Snapshots, session_id: str, app_name: str, cwd: str, *, is_new: bool
    ) -> None:
        self.session_id = session_id
        self.lock = asyncio.Lock()
        self._service = service
        self._app_name = app_name
        self._folder = WorkFolder.of(cwd, service.data_dir)
        is_local = self._folder.top == service.data_dir.path and not service.settings.cluster_url
        self._last_seen = LastSeen(self._folder, is_new=is_new, is_local=is_local)
        self._running = 0
        self._is_undoing = False
        self._missed: list[int] = []
        self.is_deleted = False

    # Turns

    def warm_up(self) -> None:
        """Store the content of a folder that a client chose, before the first prompt arrives."""
        if self._service.is_available:
            self._spawn(self._warm_up(), "warm-up")

    def before_turn(self, turn_index: int) -> asyncio.Task[None] | None:
        """Begin the snapshot before a turn. The agent must not get the prompt until it is done.

        Returns:
            The task, which never fails; None if no snapshot is needed.
        """
        if not self._needs_snapshot():
            return None
        return self._spawn(self._before_turn(turn_index), f"before-turn-{turn_index}")

    def after_turn(self, turn_index: int) -> None:
        """Begin the snapshot after a turn."""
        if self._needs_snapshot():
            self._spawn(self._after_turn(turn_index), f"after-turn-{turn_index}")

    def _needs_snapshot(self) -> bool:
        if not self._service.is_available:
            return False
        if self._running or self._missed or self.lock.locked():
            return True  # after what is going on
        return not self._last_seen.is_plainly_unchanged()

    def note_changed(self) -> None:
        """Note that the next snapshot has to look at the whole folder."""
        self._last_seen.update(None)

    async def _warm_up(self) -> None:
        try:
            async with self.lock:
                self._pack_later((await self.call("warm_up", timeout=LONG_SECS))[0])
        except (Error, SnapshotError) as error:
            self._log(error)

    async def _before_turn(self, turn_index: int) -> None:
        limit = self._service.settings.snapshot_timeout_secs
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        try:
            try:
                async with asyncio.timeout(limit):
                    await self.lock.acquire()
            except TimeoutError:
                if not self._is_undoing:
                    raise SnapshotError("the snapshot of the last turn is not finished") from None
                await self.lock.acquire()  # nothing may run during an undo
                deadline = loop.time() + limit
            try:
                await self._take("start", turn_index, deadline - loop.time())
            finally:
                self.lock.release()
        except (Error, SnapshotError) as error:
            self._missed.append(turn_index)
            self._log(error)

    async def _after_turn(self, turn_index: int) -> None:
        try:
            async with self.lock:
                await self._take("end", turn_index, LONG_SECS)
        except (Error, SnapshotError) as error:
            self._log(error)

    async def _take(self, kind: str, turn_index: int, timeout: float) -> None:
        seen = await asyncio.to_thread(take_fingerprint, self._folder)
        if not self._missed and self._last_seen.equals(seen):
            return
        self._last_seen.forget()
        missed, self._missed = self._missed, []
        fields = {"kind": kind, "turn_index": turn_index, "missed": missed}
        try:
            response, _ = await self.call("snapshot", timeout=timeout, **fields)
        except BaseException:
            self._missed[:0] = missed
            raise
        self._last_seen.update(seen)
        self._pack_later(response)

    # Requests of clients

    async def changes(
        self, since_turn: int | None, *, is_live: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        """Return what the agent has changed.

        Args:
            since_turn: since before this turn; None for the whole session.
            is_live: whether a turn runs.

        Raises:
            Error: ``not_supported``, or ``not_found`` if there is no snapshot of that turn.
        """
        files: list[dict[str, Any]]
        files = (await self._compare("changes", since_turn, is_live))[0]["files"]
        return files

    async def diff(
        self, path: str, since_turn: int | None, *, is_live: Callable[[], bool]
    ) -> bytes:
        """Return the unified diff of a file, or of all files in a folder.

        Raises:
            Error: as :meth:`changes`; ``payload_too_large``.
        """
        path = "/".join(split_folder_path(path))
        limit = self._service.settings.max_diff_bytes
        fields = {"path": path, "max_bytes": limit}
        return (await self._compare("diff", since_turn, is_live, **fields))[1]

    async def _compare(
        self, operation: str, since_turn: int | None, is_live: Callable[[], bool], **fields: Any
    ) -> tuple[dict[str, Any], bytes]:
        self._service.check()

        async def compare() -> tuple[dict[str, Any], bytes]:
            async with self.lock:
                about = {"since_turn": since_turn, "is_live": is_live()}
                return await self._request(operation, **about, **fields)

        return await self._service.finish(compare())

    async def records(self) -> list[dict[str, Any]]:
        """Return the snapshots, the oldest first.

        Raises:
            Error: ``not_supported``.
        """
        self._service.check()

        async def read() -> list[dict[str, Any]]:
            async with self.lock:
                records: list[dict[str, Any]] = (await self._request("records"))[0]["records"]
                return records

        return await self._service.finish(read())

    async def undo(
        self,
        *,
        turn_index: int | None,
        snapshot_id: str | None,
        last_turn: int,
        entry_index: int,
        position: int,
        is_busy: Callable[[], bool],
        restored: Callable[[str, bool], Awaitable[None]],
    ) -> dict[str, Any]:
        """Restore the folder to its state before a turn, or to a snapshot.

        Args:
            last_turn: the session's newest turn.
            entry_index: the turn index of a log entry about the undo.
            position: of the log, after which that entry will be.
            is_busy: whether a turn runs in the folder. A later prompt waits for the undo.
            restored: logs the undo with the ``snapshot_id`` and whether it is complete, before a
                waiting prompt proceeds. Until the awaitable is done, a restart logs it again.

        Returns:
            ``snapshot_id`` of the state that was replaced, the number of ``restored`` files, and
            the paths ``not_restored``.

        Raises:
            Error: ``conflict``, ``not_found`` or ``not_supported``.
        """
        self._service.check()
        fields = {
            "undo_id": secrets.token_hex(8),
            "turn_index": turn_index,
            "snapshot_id": snapshot_id,
            "last_turn": last_turn,
            "entry_index": entry_index,
            "position": position,
        }

        async def restore() -> dict[str, Any]:
            async with self.lock:
                if is_busy():
                    raise Error(ErrorCode.CONFLICT, "a turn is running in the session's folder")
                if turn_index is not None and turn_index > last_turn:
                    raise not_found("turn")
                self._is_undoing = True
                self.note_changed()
                try:
                    response, failure = await self._undo(fields)
                finally:
                    self._is_undoing = False
                logged = restored(response["snapshot_id"], failure is None)
                self._pack_later(response)
            await logged
            if failure is not None:
                raise failure
            async with self.lock:
                await self.settle_undo(response["snapshot_id"])
            return response

        return await self._service.finish(restore())

    async def _undo(self, fields: Mapping[str, Any]) -> tuple[dict[str, Any], Error | None]:
        """Restore the folder. If the worker fails meanwhile, another one finishes that.

        Returns:
            The response, and a failure if a part of the folder may be restored. No later server
            finishes it.

        Raises:
            Error: it failed, and the folder is as it was.
        """
        try:
            return (await self._request("undo", **fields))[0], None
        except Error as error:
            failure = error
        undo_id = fields["undo_id"]
        nothing = {"restored": 0, "not_restored": [], "skipped": {}, "pack": False}
        with contextlib.suppress(Error, SnapshotError):
            found, _ = await self.call("recover", timeout=LONG_SECS, undo_id=undo_id)
            if (journal := found["journal"]) is not None:
                return {**nothing, **found, "snapshot_id": journal["snapshot_id"]}, None
        journal = await self._forget_undo(undo_id=undo_id)
        if journal is None:
            raise failure
        replaced = journal["snapshot_id"]
        message = f"{failure.message}; the folder may be restored in part: {replaced} was its state"
        partly = Error(
            failure.code,
            message,
            retry_after=failure.retry_after,
            retryable=failure.retryable,
            fields={"snapshot_id": replaced},
        )
        return {**nothing, "snapshot_id": replaced}, partly

    async def recover_undo(self) -> FinishedUndo | None:
        """Finish the undo that a killed server left unfinished, if there is one.

        Raises:
            Error, SnapshotError: it cannot be finished.
        """
        async with self.lock:
            response, _ = await self.call("recover", timeout=LONG_SECS, undo_id=None)
        journal = response["journal"]
        return None if journal is None else msgspec.convert(journal, FinishedUndo)

    async def settle_undo(self, snapshot_id: str | None) -> None:
        """Forget an undo, which the log has, so that no later server logs it. None: any undo."""
        await self._forget_undo(snapshot_id=snapshot_id)

    async def _forget_undo(
        self, undo_id: str | None = None, snapshot_id: str | None = None
    ) -> dict[str, Any] | None:
        """Remove the journal of an undo, and return it; None if there is none."""
        names = {"undo_id": undo_id, "snapshot_id": snapshot_id}
        try:
            response, _ = await self.call("settle", timeout=LONG_SECS, **names)
        except (Error, SnapshotError) as error:
            self._log(error)
            return None
        journal: dict[str, Any] | None = response["journal"]
        return journal

    # Workers

    async def _request(self, operation: str, **fields: Any) -> tuple[dict[str, Any], bytes]:
        """Call a worker for a client.

        Raises:
            Error: the failure that the client gets.
        """
        try:
            return await self.call(operation, timeout=LONG_SECS, **fields)
        except SnapshotError as error:
            self._log(error)
            message = "the session's folder cannot be read in time; try again later"
            raise Error(ErrorCode.POOL_FULL, message, retry_after=5) from None

    async def call(
        self, operation: str, *, timeout: float, **fields: Any
    ) -> tuple[dict[str, Any], bytes]:
        """Call a worker.

        Raises:
            Error, SnapshotError: it failed.
        """
        if self.is_deleted:
            raise not_found("session")
        folder = [str(self._folder.top), *self._folder.names]
        about = {"op": operation, "session_id": self.session_id, "folder": folder}
        return await self._service.call(self._app_name, {**about, **fields}, timeout)

    def _pack_later(self, response: Mapping[str, Any]) -> None:
        if response["pack"]:
            self._spawn(self._pack(drop=response["drop"]), "pack")

    async def _pack(self, *, drop: bool) -> None:
        try:
            async with self.lock:
                await self.call("pack", timeout=LONG_SECS, drop=drop)
        except (Error, SnapshotError) as error:
            self._log(error)

    def _spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        def end(_: object) -> None:
            self._running -= 1

        self._running += 1
        task = self._service.tasks.spawn(work, f"{name}-{self.session_id}")
        task.add_done_callback(end)
        return task

    def _log(self, error: Exception) -> None:
        about = {"session": self.session_id, "app": self._app_name}
        logger.warning("no snapshot of the session's folder: %s", error, extra=about)
