"""The data folder: the paths of everything in it, its owner and its lock.

Agents run as the server's user and can write in the data folder, so its content is reached
through :mod:`safe_files`, which follows no links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from . import safe_files
from .errors import StartError

DATABASE = "clawdforge.db"
CONVERSATION_FOLDERS = ("acpx", "acpx-cli", "homes")
"""Agents' conversations, as acpx keeps them for each backend, and as agents do in their homes."""
FILE_FOLDERS = ("workspaces", "uploads", "files", "snapshots")
"""Folders that a backup may leave out, because they may be large."""
TEMPORARY_FOLDERS = ("runs", "stderr", "tmp")
"""Folders that a backup does not contain."""


class DataDirInUseError(StartError):
    """Another process has locked the data folder."""


@dataclasses.dataclass(frozen=True, slots=True)
class DataDir:
    """The data folder.

    Attributes:
        path: of the folder. The operator chose it, so it may lead through links.
    """

    path: Path

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.path / DATABASE

    @property
    def search_index(self) -> Path:
        """The database of the full-text index, which can be made again."""
        return self.path / "search.db"

    @property
    def control_socket(self) -> Path:
        """The Unix socket at which a running server serves the operator's commands."""
        return self.path / "control.sock"

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
        """A folder for each ``/run`` that is running."""
        return self.path / "runs"

    @property
    def stderr(self) -> Path:
        """The end of what each session's agent wrote on its stderr."""
        return self.path / "stderr"

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
        return self.path, *path.relative_to(self.path).parts

    def check(self) -> None:
        """Check that root does not read and write for another user, through that user's links.

        Raises:
            StartError: this process is root's and the folder is another user's, or a folder in
                it is a link.
            OSError: the folder does not exist.
        """
        owner = self.path.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            raise StartError(
                f"CLAWDFORGE_DATA_DIR: {self.path} belongs to user {owner}: run this as that user,"
                f" `setpriv --reuid {owner} --clear-groups` for example, not as root"
            )
        for name in (*CONVERSATION_FOLDERS, *FILE_FOLDERS, *TEMPORARY_FOLDERS):
            if (self.path / name).is_symlink():
                raise StartError(
                    f"CLAWDFORGE_DATA_DIR: {self.path / name} is a link, which the server"
                    " does not follow: mount the other folder at this place, or move it here"
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if it is missing, and lock it for this process.

        Raises:
            StartError: it cannot be used; :class:`DataDirInUseError` if another process has it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check()
            self.path.chmod(0o700)
            with safe_files.folder(self.path) as parent:
                lock = safe_files.open_file("lock", parent, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StartError(f"CLAWDFORGE_DATA_DIR: {self.path}: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirInUseError(
                    f"another clawdforge runs on the data folder {self.path}"
                ) from None
            yield
