"""Sessions in a worktree of their own, of a repository in the workspace roots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import Error, ErrorCode
from ..sandbox import paths, restrict
from ..sandbox.seccomp import build_filter
from .folders import WorkFolder
from .snapshots import Snapshots
from .snapshotter.git import Confinement
from .workers import LONG_SECS, SnapshotError

logger = logging.getLogger(__name__)


class Worktrees:
    """Adds and removes worktrees, without running any code of the repository.

    Args:
        roots: the workspace roots.
    """

    def __init__(self, snapshots: Snapshots, roots: Sequence[Path]) -> None:
        self._snapshots = snapshots
        self._roots = roots

    def check(self) -> None:
        """Check that git is installed.

        Raises:
            Error: ``not_supported``.
        """
        if not self._snapshots.has_git:
            message = "workspace.git: git is not installed on the server"
            raise Error(ErrorCode.NOT_SUPPORTED, message)

    async def add(
        self, app_name: str, session_id: str, folder: Path, repository: str, branch: str | None
    ) -> None:
        """Make the session's empty folder a worktree.

        Raises:
            Error: ``bad_request``, or ``conflict`` if another worktree has the branch.
        """
        try:
            await self._call(
                "add_worktree", app_name, session_id, folder, repository, branch=branch
            )
        except SnapshotError as error:
            logger.error("a worktree cannot be added: %s", error, extra={"session": session_id})
            message = "workspace.git.repository: it takes too long to check it out"
            raise Error(ErrorCode.POOL_FULL, message, retry_after=5) from None

    async def remove(self, app_name: str, session_id: str, folder: Path, repository: str) -> None:
        """Remove what the repository keeps of a deleted worktree; log a failure.

        The session's own branch is deleted if it is merged.
        """
        try:
            await self._call("remove_worktree", app_name, session_id, folder, repository)
        except (Error, SnapshotError) as error:
            about = {"session": session_id}
            logger.warning(
                "a worktree cannot be removed from %s: %s", repository, error, extra=about
            )

    async def _call(
        self,
        operation: str,
        app_name: str,
        session_id: str,
        folder: Path,
        repository: str,
        **fields: Any,
    ) -> None:
        work = WorkFolder.of(str(folder), self._snapshots.data_dir)
        roots = [str(root) for root in self._roots]
        confined = confinement_to(roots, str(folder))
        request = {
            "op": operation,
            "session_id": session_id,
            "folder": [str(work.top), *work.names],
            "path": str(folder),
            "repository": repository,
            "roots": roots,
            "confinement": confined._asdict() if confined is not None else None,
            **fields,
        }
        await self._snapshots.call(app_name, request, LONG_SECS)


def confinement_to(roots: Sequence[str], folder: str) -> Confinement | None:
    """The restriction of git to the workspace roots and one folder; None without Landlock.

    An agent may replace parts of the repository by links while git works on it, and may name
    programs in its configuration.
    """
    filter_ = build_filter(
        has_namespaces=False, unix_sockets=False, tcp_only=True, datagrams=False, servers=False
    )
    if filter_ is None or restrict.landlock_version() == 0:
        return None
    plan = {
        "read": [*paths.SYSTEM, paths.PROCESSES],
        # Only the outermost roots: an agent may have replaced one in another root by a link.
        "write": [*paths.outermost(roots), folder],
        "devices": paths.DEVICES,
        "tcp_ports": [],
        "seccomp": filter_.hex(),
    }
    return Confinement(restrict.__file__, plan)
