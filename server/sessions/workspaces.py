"""The folders in which agents work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from .. import safe_files
from ..agents.base import Backend
from ..data_dir import DataDir
from ..errors import bad_request
from .options import SessionOptions

logger = logging.getLogger(__name__)


class Workspaces:
    """Creates, checks and deletes the folders of sessions.

    Args:
        roots: folders in which clients may choose a session's folder.
    """

    def __init__(self, data_dir: DataDir, roots: Sequence[Path], backend: Backend) -> None:
        self._data_dir = data_dir
        self._roots = roots
        self._backend = backend

    def path(self, session_id: str) -> Path:
        """The folder of a session whose client chose none."""
        return self._data_dir.workspace(session_id)

    def is_own(self, session_id: str, cwd: str) -> bool:
        """Whether a session's folder is one that the server made for it."""
        return Path(cwd) == self.path(session_id)

    async def create(self, session_id: str) -> Path:
        """Make a session's own folder.

        Raises:
            OSError: the folder cannot be made.
        """
        path = self.path(session_id)
        await asyncio.to_thread(safe_files.make_folder, *self._data_dir.split(path))
        return path

    async def delete(self, session_id: str) -> None:
        """Delete a session's own folder.

        Raises:
            OSError: part of the folder cannot be deleted.
        """
        await asyncio.to_thread(safe_files.remove, *self._data_dir.split(self.path(session_id)))

    async def delete_snapshots(self, session_id: str) -> None:
        """Delete the snapshots of what did not become a session."""
        path = self._data_dir.snapshots / session_id
        with contextlib.suppress(OSError):
            await asyncio.to_thread(safe_files.remove, *self._data_dir.split(path))

    def folder_names(self) -> list[str]:
        """The names of the folders of sessions. Blocking."""
        folder = self.path("")
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def remove_empty(self, names: Iterable[str], before: float) -> None:
        """Remove the folders that are empty and were made before a time. Blocking."""
        for name in names:
            path = self.path(name)
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < before:
                    path.rmdir()

    async def check(self, path: str, field: str = "cwd") -> Path:
        """Resolve a folder that a client chose for a session.

        Args:
            field: the field of the request, for errors.

        Raises:
            Error: ``bad_request``; the server has no workspace roots, or the path is not an
                existing folder in one of them.
        """
        return await asyncio.to_thread(self._check, path, field)

    async def check_directories(self, options: SessionOptions) -> SessionOptions:
        """Return *options* with their additional directories resolved.

        Raises:
            Error: ``bad_request``, as for :meth:`check`.
        """
        field, chosen = "additional_directories", options.additional_directories
        if not chosen:
            return options
        resolved = [str(await self.check(path, field)) for path in chosen]
        return msgspec.structs.replace(options, additional_directories=resolved)

    def _check(self, path: str, field: str) -> Path:
        if not self._roots:
            raise bad_request(f"{field}: this server gives each session a folder of its own")
        if not path.startswith("/") or "\0" in path:
            raise bad_request(f"{field}: must be an absolute path")
        try:
            folder = Path(path).resolve()
            if any(folder.is_relative_to(root) for root in self._roots) and folder.is_dir():
                self._check_sandbox(folder)
                return folder
        except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
            logger.debug("%s %r: %s", field, path, error)
        raise bad_request(f"{field}: must be an existing folder in one of the workspace roots")

    def _check_sandbox(self, folder: Path) -> None:
        """Check that the agent of a session in *folder* would not reach the data of others."""
        sandbox = self._backend.sandbox
        if not sandbox.is_on:
            return
        hides_data = sandbox.level == "bwrap"
        access = sandbox.path_access
        if access.is_in_data(folder) or (access.contains_data(folder) and not hides_data):
            raise bad_request("cwd: must not be, contain or be in the server's data folder")

    async def delete_agent_data(self, session_id: str, cwd: Path | None = None) -> None:
        """Delete acpx's record of a session, and the session's folder unless the client chose it.

        If the folder cannot be deleted, the operator must do it: a retry would fail as well.

        Args:
            cwd: the session's folder; None for its own.
        """
        await self._backend.forget(session_id)
        failure: OSError | None = None
        try:
            await asyncio.to_thread(self._backend.sandbox.folders.remove, session_id)
        except OSError as error:
            failure = error
        if cwd in (None, self.path(session_id)):
            try:
                await self.delete(session_id)
            except OSError as error:
                failure = error
        if failure is not None:
            logger.error(
                "a session's folder cannot be removed: %s", failure, extra={"session": session_id}
            )
