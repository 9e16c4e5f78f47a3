"""The commands ``backup`` and ``restore``: the data folder in one archive."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .. import safe_files
from ..config import Settings
from ..data_dir import (
    CONVERSATION_FOLDERS,
    DATABASE,
    FILE_FOLDERS,
    DataDir,
    DataDirInUseError,
)
from ..errors import DatabaseError
from ..storage.drivers.sqlite_files import check_file, copy_database
from ..storage.schema import MIGRATIONS, SchemaError
from . import admin

FOLDERS = (*CONVERSATION_FOLDERS, *FILE_FOLDERS)
"""Folders of the data folder that a backup contains."""
MAX_FOLDER_DEPTH = 200
"""Deeper folders are left out. An agent could nest more than can be walked."""
NOT_A_BACKUP = "not a backup of clawdforge"
MAX_HOLES = 1 << 30
"""Files with more bytes in holes are left out."""

Links = dict[tuple[int, int], str]
"""The name in the archive of each file with several names, by device and number."""


def add_backup_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    text = "write the database and files into an archive, also while the server runs"
    parser = commands.add_parser("backup", help=text, description=admin.sentence(text))
    parser.add_argument(
        "archive", type=Path, help="the file to create, for example clawdforge.tar.gz"
    )
    parser.add_argument(
        "--without-files",
        action="store_true",
        help="omit the sessions' folders and uploads, which may be large",
    )
    parser.set_defaults(execute=create_backup)

    text = "restore an archive into the data folder of a stopped server"
    parser = commands.add_parser("restore", help=text, description=admin.sentence(text))
    parser.add_argument("archive", type=Path, help="an archive of the command backup")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="if the data folder has content, move it into a subfolder first",
    )
    parser.set_defaults(execute=restore_backup)


def create_backup(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    """Create an archive. The database is a snapshot; each file is copied as it is when read."""
    if settings.cluster_url is not None:
        raise admin.CommandError(
            "the database is in PostgreSQL: use pg_dump, and archive CLAWDFORGE_SHARED_DIR"
        )
    data_dir = DataDir.of(settings)
    source, archive = data_dir.database, arguments.archive
    folders = CONVERSATION_FOLDERS if arguments.without_files else FOLDERS
    try:
        source.stat()
        data_dir.check()
    except OSError as error:
        raise admin.CommandError(f"there is no database: {source}: {error.strerror}") from None
    try:
        with tempfile.TemporaryDirectory(dir=archive.absolute().parent, prefix=".backup-") as made:
            part = Path(made) / "part"  # a name of its own until the archive is complete
            # Only its owner may read the archive: it contains conversations.
            with (
                os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out,
                tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as tar,
            ):
                copy_database(source, Path(made) / DATABASE)
                tar.add(Path(made) / DATABASE, DATABASE)
                with safe_files.folder(settings.data_dir) as data:
                    links: Links = {}
                    for name in folders:
                        _add_path(tar, data, settings.data_dir / name, name, links)
            part.replace(archive)
    except (OSError, DatabaseError) as error:
        raise admin.CommandError(f"{archive}: {_reason(error)}") from None
    admin.print_escaped(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    return 0


def _reason(error: Exception) -> str:
    """The message of *error*, without the names of temporary folders."""
    return getattr(error, "strerror", None) or str(error)


def _add_path(tar: tarfile.TarFile, parent: int, path: Path, name: str, links: Links) -> None:
    """Add a file, or a folder with its content.

    An agent may change its files meanwhile. A deleted file is skipped, an unreadable one is
    reported. A file that was replaced by a link or a pipe is never followed or opened.

    Args:
        parent: the descriptor of the folder that contains *path*.
        name: the name in the archive.
        links: the files with several names that the archive has.
    """
    children: list[str] = []
    folder = -1
    with contextlib.ExitStack() as stack:
        try:
            status = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
            info = _tar_info(name, status)
            if stat.S_ISDIR(status.st_mode):
                if name.count("/") > MAX_FOLDER_DEPTH:
                    raise OSError(errno.ELOOP, f"nested in more than {MAX_FOLDER_DEPTH} folders")
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                folder = os.open(path.name, flags, dir_fd=parent)
                stack.callback(os.close, folder)
                children = sorted(os.listdir(folder))  # noqa: PTH208
                tar.addfile(info)
            elif stat.S_ISREG(status.st_mode):
                file = stack.enter_context(safe_files.open_file(path.name, parent))
                _add_file(tar, info, file, links)
            elif stat.S_ISLNK(status.st_mode):
                info.linkname = os.readlink(path.name, dir_fd=parent)
                tar.addfile(info)
        except FileNotFoundError:
            return
        except OSError as error:
            admin.print_escaped(f"clawdforge: omitted: {path}: {error.strerror}", file=sys.stderr)
            return
        for child in children:
            _add_path(tar, folder, path / child, f"{name}/{child}", links)


def _add_file(tar: tarfile.TarFile, info: tarfile.TarInfo, file: BinaryIO, links: Links) -> None:
    """Add the content of a file, or a link to another name of it that was added.

    Raises:
        OSError: the file has too large holes, of which an agent could make more than a backup can
            read and store.
    """
    status = os.fstat(file.fileno())
    identity = status.st_dev, status.st_ino
    if (first := links.get(identity)) is not None:
        info.type, info.linkname = tarfile.LNKTYPE, first
        tar.addfile(info)
        return
    if _has_large_holes(file.fileno(), status):
        raise OSError(errno.EFBIG, f"has holes of over {MAX_HOLES >> 30} GiB")
    info.size = status.st_size
    tar.addfile(info, _PaddedFile(file))
    if status.st_nlink > 1:
        links[identity] = info.name


def _has_large_holes(file: int, status: os.stat_result) -> bool:
    if status.st_size - status.st_blocks * 512 <= MAX_HOLES:
        return False  # others may be compressed
    holes = position = end = 0
    try:
        while holes <= MAX_HOLES:
            end = os.lseek(file, position, os.SEEK_HOLE)
            position = os.lseek(file, end, os.SEEK_DATA)
            holes += position - end
    except OSError:  # after the last data
        holes += status.st_size - end
    finally:
        os.lseek(file, 0, os.SEEK_SET)
    return holes > MAX_HOLES


def _tar_info(name: str, status: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime
    info.uid, info.gid = status.st_uid, status.st_gid
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type = tarfile.SYMTYPE
    return info


class _PaddedFile:
    """A file of a fixed size. Zeros replace the part that an agent truncates meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size).ljust(size, b"\0")


def restore_backup(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    """Restore an archive. It is unpacked and checked before any file is moved."""
    folder, archive = settings.data_dir.resolve(), arguments.archive
    aside: Path | None = None
    try:
        with DataDir(folder).locked():
            old = [name for name in (DATABASE, *FOLDERS) if (folder / name).exists()]
            if old and not arguments.replace:
                raise admin.CommandError(
                    f"{folder} has content; --replace moves it into a subfolder"
                )
            with tempfile.TemporaryDirectory(dir=folder, prefix=".restore-") as made:
                _unpack(archive, Path(made))
                mounts = mount_points()
                if old:
                    now = time.strftime("%Y%m%d-%H%M%S")
                    aside = Path(tempfile.mkdtemp(dir=folder, prefix=f"before-restore-{now}-"))
                    for name in (*old, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                        _move_path(folder / name, aside / name, mounts)
                for child in Path(made).iterdir():
                    _move_path(child, folder / child.name, mounts)
    except DataDirInUseError as error:
        raise admin.CommandError(f"{error}: stop it first") from None
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        moved = f"; files that were moved are in {aside}" if aside else ""
        raise admin.CommandError(f"{archive}: {_reason(error)}{moved}") from None
    admin.print_escaped(
        f"{folder} was restored."
        + (f" The previous contents were moved to {aside}." if aside else "")
    )
    return 0


def mount_points() -> list[Path]:
    """All mount points. Only the kernel knows whether a folder is a volume of the same disk."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    names = (line.split()[4] for line in lines)  # special characters are octal
    return [Path(os.fsdecode(re.sub(rb"\\(\d{3})", _decode_octal, name))) for name in names]


def _decode_octal(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def _move_path(source: Path, target: Path, mounts: Sequence[Path]) -> None:
    """Move a file or folder, if it exists.

    The content of a volume is moved, and not the volume itself: that would be mounted at its old
    place again at the next start, with its old content.
    """
    has_volume = any(mount.is_relative_to(source) for mount in mounts)
    if source.is_dir() and not source.is_symlink() and (has_volume or target.is_dir()):
        target.mkdir(mode=0o700, exist_ok=True)
        for child in source.iterdir():
            _move_path(child, target / child.name, mounts)
    elif source.is_symlink() or source.exists():
        shutil.move(source, target)


def _unpack_link(folder: Path, member: tarfile.TarInfo, root: Path) -> None:
    """Give a file that was unpacked another name."""
    first = folder / member.linkname
    if first.is_symlink() or not first.resolve().is_relative_to(root) or not first.is_file():
        raise tarfile.ReadError(f"{member.name} is a link to a file that the archive does not have")
    (folder / member.name).hardlink_to(first)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack and check an archive. Nothing is written outside *folder*."""
    root = folder.resolve()
    try:
        opened = tarfile.open(archive)  # noqa: SIM115  # closed below
    except tarfile.ReadError:
        raise tarfile.ReadError(NOT_A_BACKUP) from None  # its own message lists every compression
    with opened as tar:
        for member in tar:
            top, *below = member.name.split("/")
            if top not in (DATABASE, *FOLDERS):
                raise tarfile.ReadError(NOT_A_BACKUP)
            is_expected = member.isreg() if top == DATABASE else member.isdir()
            if ".." in below or not (below or is_expected):
                # The server uses these names for one file and for folders only.
                raise tarfile.ReadError(f"{member.name} has the wrong type")
            target = folder / member.name
            # An earlier link in the archive may lead anywhere, so it is never followed.
            if not target.parent.resolve().is_relative_to(root):
                raise tarfile.ReadError(f"{member.name} is outside the data folder")
            if member.isdir():
                target.mkdir(mode=0o700)
            elif member.issym():
                target.symlink_to(member.linkname)
            elif member.islnk():
                _unpack_link(folder, member, root)
            elif (content := tar.extractfile(member)) is not None:
                with content, target.open("xb") as out:
                    shutil.copyfileobj(content, out)
                target.chmod(member.mode & 0o777)
            # Sockets and pipes of agents are skipped.
        while tar.fileobj.read(1 << 20):
            pass  # read to the end, where the checksum is compared
    try:
        check_file(folder / DATABASE, len(MIGRATIONS))
    except (DatabaseError, SchemaError) as error:
        raise tarfile.ReadError(f"its database cannot be used: {error}") from None
