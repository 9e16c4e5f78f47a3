"""The files of a session's folder, what the agent has changed there, and undo."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from .rest import Rest, without_none
from .shapes import Json


def _content(content: bytes | str | Path) -> bytes | Path:
    return content.encode() if isinstance(content, str) else content


class Files:
    """The folder of one session. Paths are relative to it."""

    def __init__(self, rest: Rest, session_path: str) -> None:
        self._rest = rest
        self._path = session_path

    def _file(self, path: str) -> str:
        return f"{self._path}/files/{quote(path.encode('utf-8', 'surrogateescape'))}"

    async def list(self, path: str | None = None, *, depth: int = 1) -> Sequence[Json]:
        """``[{path, type, size, modified_at}]``; *type* is ``file``, ``directory`` or ``link``."""
        reply = await self._rest.call(
            "GET", f"{self._path}/files", params={"path": path, "depth": depth}
        )
        return [*reply["entries"]]

    async def read(self, path: str) -> bytes:
        _, data, _ = await self._rest.raw("GET", self._file(path))
        return data

    async def read_text(self, path: str) -> str:
        return (await self.read(path)).decode()

    async def write(self, path: str, content: bytes | str | Path) -> Json:
        """Write a file, and the folders above it. A *Path* names a local file."""
        return await self._rest.call("PUT", self._file(path), _content(content))

    async def download(self, path: str, to: Path | str) -> None:
        """Save a file as the local file *to*."""
        await self._save(self._file(path), Path(to), {})

    async def archive(self, to: Path | str, *, path: str | None = None) -> None:
        """Save the folder, or one below it, as the local zip file *to*."""
        await self._save(f"{self._path}/archive", Path(to), without_none({"path": path}))

    async def _save(self, path: str, to: Path, params: Json) -> None:
        part = to.with_name(f"{to.name}.part")
        try:
            with await asyncio.to_thread(part.open, "wb") as file:
                async for piece in self._rest.download(path, params=params):
                    await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(part.replace, to)
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)

    async def changes(self, since_turn: int | None = None) -> Sequence[Json]:
        """The changes by the agent: ``[{path, status, additions, deletions}]``."""
        reply = await self._rest.call(
            "GET", f"{self._path}/changes", params={"since_turn": since_turn}
        )
        return [*reply["files"]]

    async def diff(self, path: str = "", *, since_turn: int | None = None) -> str:
        """The changes of a file or a folder as a unified diff; of everything by default."""
        _, data, _ = await self._rest.raw(
            "GET", f"{self._path}/changes", params={"path": path, "since_turn": since_turn}
        )
        return data.decode("utf-8", "replace")

    async def undo(self, *, turn_index: int | None = None, snapshot_id: str | None = None) -> Json:
        """Restore the folder to its state before a turn, or to a snapshot.

        Returns:
            ``snapshot_id`` of the state that was replaced, with which the undo can be undone.
        """
        body = without_none({"turn_index": turn_index, "snapshot_id": snapshot_id})
        return await self._rest.call("POST", f"{self._path}/undo", body)

    async def snapshots(self) -> Sequence[Json]:
        """The states that can be restored, the oldest first."""
        return [*(await self._rest.call("GET", f"{self._path}/snapshots"))["snapshots"]]
