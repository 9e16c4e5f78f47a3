"""The data folder: the paths of everything in it, its owner and its lock.

Agents run as the server's user and can write in the data folder, so its content is reached
through :mod:`safe_files`, which follows no links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import safe_files
from .config import Settings
from .errors import StartError

DATABASE = "clawdforge.db"
CONVERSATION_FOLDERS = ("acpx", "acpx-cli", "homes")
"""Agents' conversations, as acpx keeps them for each backend, and as agents do in their homes."""
FILE_FOLDERS = ("workspaces", "uploads", "files", "snapshots")
"""Folders that a backup may leave out, because they may be large."""
TEMPORARY_FOLDERS = ("runs", "stderr", "tmp")
"""Folders that a backup does not contain."""
ABANDONED_SECS = 86_400
"""After this time without a change, no node of a cluster is writing a file any more."""


def node_name(settings: Settings) -> str:
    """The name of this node: the machine's, unless the settings name another."""
    return settings.node_name or socket.gethostname()


class DataDirInUseError(StartError):
    """Another process has locked the data folder."""


@dataclasses.dataclass(frozen=True, slots=True)
class DataDir:
    """The data folder.

    In a cluster the nodes share a folder with what belongs to sessions, and each node has one of
    its own.

    Attributes:
        path: of the folder. The operator chose it, so it may lead through links.
        local: the folder of this node; None if it has everything in *path*.
        node: the name of this node, which its part of the shared folder has.
    """

    path: Path
    local: Path | None = None
    node: str = ""

    @classmethod
    def of(cls, settings: Settings) -> DataDir:
        """The data folder that the settings name."""
        if settings.cluster_url is None or settings.shared_dir is None:
            return cls(settings.data_dir)
        return cls(settings.shared_dir, settings.data_dir, node_name(settings))

    def own_folder(self) -> Path:
        """The folder that belongs to this server alone."""
        return self.path if self.local is None else self.local

    @property
    def is_shared(self) -> bool:
        """Whether other nodes use it as well."""
        return self.local is not None

    def is_abandoned(self, path: Path) -> bool:
        """Whether no server is writing a temporary file or folder any more. Blocking.

        Only an old one is abandoned in a cluster, because another node may have just made it.
        """
        if not self.is_shared:
            return True
        try:
            inside = tuple(path.iterdir()) if path.is_dir() and not path.is_symlink() else ()
            newest = max(part.lstat().st_mtime for part in (path, *inside))
            return newest < _time_in(path.parent) - ABANDONED_SECS
        except OSError:
            return False  # its node removes it at this moment

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.own_folder() / DATABASE

    @property
    def search_index(self) -> Path:
        """The database of the full-text index, which can be made again."""
        return self.own_folder() / "search.db"

    @property
    def control_socket(self) -> Path:
        """The Unix socket at which a running server serves the operator's commands."""
        return self.own_folder() / "control.sock"

    @property
    def acpx(self) -> Path:
        """acpx's state folder with the ``host`` backend."""
        return self.path / "acpx"

    @property
    def acpx_cli(self) -> Path:
        """The homes of acpx's command line with the ``cli`` backend."""
        return self.path / "acpx-cli"

    @property
    def runs(self) -> Path:
        """A folder for each ``/run`` that is running here."""
        return self.path / "runs" / self.node

    @property
    def stderr(self) -> Path:
        """The end of what each session's agent wrote on its stderr."""
        return self.own_folder() / "stderr"

    @property
    def uploads(self) -> Path:
        """Uploaded files, a folder for each."""
        return self.path / "uploads"

    @property
    def snapshots(self) -> Path:
        """The snapshots of sessions' folders, a bare git repository for each session."""
        return self.path / "snapshots"

    @property
    def homes(self) -> Path:
        """The homes of sandboxed agents, one for each session."""
        return self.path / "homes"

    @property
    def tmp(self) -> Path:
        """The temporary files of sandboxed agents, a folder for each session."""
        return self.path / "tmp"

    @property
    def files(self) -> Path:
        """Copies of uploaded files that sandboxed agents may read, a folder for each session."""
        return self.path / "files"

    def workspace(self, session_id: str) -> Path:
        """The folder of a session whose client requested no ``cwd``."""
        return self.path / "workspaces" / session_id

    def split(self, path: Path) -> tuple[Path, *tuple[str, ...]]:
        """Split a path in the folder into the folder and names, as :mod:`safe_files` takes it.

        Raises:
            ValueError: the path is not in the folder.
        """
        top = self.own_folder() if not path.is_relative_to(self.path) else self.path
        return top, *path.relative_to(top).parts

    def check(self) -> None:
        """Check that root does not read and write for another user, through that user's links.

        Raises:
            StartError: this process is root's and the folder is another user's, or a folder in
                it is a link.
            OSError: the folder does not exist.
        """
        for folder in {self.path, self.own_folder()}:
            self._check_owner(folder)
        for name in (*CONVERSATION_FOLDERS, *FILE_FOLDERS, *TEMPORARY_FOLDERS):
            if (self.path / name).is_symlink():
                raise StartError(
                    f"CLAWDFORGE_DATA_DIR: {self.path / name} is a link, which the server"
                    " does not follow: mount the other folder at this place, or move it here"
                )

    @staticmethod
    def _check_owner(folder: Path) -> None:
        owner = folder.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            raise StartError(
                f"CLAWDFORGE_DATA_DIR: {folder} belongs to user {owner}: run this as that user,"
                f" `setpriv --reuid {owner} --clear-groups` for example, not as root"
            )

    @contextlib.contextmanager
    def locked(self, inherited: int | None = None) -> Iterator[int]:
        """Make the folder if it is missing, and lock it for this process.

        Args:
            inherited: the descriptor of the lock that an earlier version of the server holds.

        Yields:
            The descriptor of the lock.

        Raises:
            StartError: it cannot be used; :class:`DataDirInUseError` if another process has it.
        """
        try:
            for folder in {self.path, self.own_folder()}:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check()
            for folder in {self.path, self.own_folder()}:
                folder.chmod(0o700)
            if inherited is None:
                with safe_files.folder(self.own_folder()) as parent:
                    lock = safe_files.open_file("lock", parent, os.O_RDWR | os.O_CREAT)
            else:
                lock = os.fdopen(inherited, "rb+")
        except OSError as error:
            raise StartError(
                f"CLAWDFORGE_DATA_DIR: {error.filename or self.own_folder()}: {error.strerror}"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirInUseError(
                    f"another clawdforge runs on the data folder {self.own_folder()}"
                ) from None
            yield lock.fileno()


def _time_in(folder: Path) -> float:
    """Unix seconds by the clock that gives files their times in a folder. Blocking.

    Files of a network have the times of its server.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime
