"""``backup`` and ``restore``: all that is kept, in one archive."""

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
from ..storage.database import check_file, copy_database
from ..storage.schema import SchemaError
from . import admin

BESIDE = (*CONVERSATION_FOLDERS, *FILE_FOLDERS)
"""Folders of the data folder that a backup has."""
MAX_DEPTH = 200
"""Folders in each other; an agent could make more of them than can be walked."""
NO_BACKUP = "no backup of clawdforge"


def add_to(commands: Any) -> None:
    """Add this module's commands to a parser's."""
    text = "write all that is kept into an archive, also while the server runs"
    one = commands.add_parser("backup", help=text, description=admin.sentence(text))
    one.add_argument("archive", type=Path, help="the file to make, clawdforge.tar.gz say")
    one.add_argument(
        "--without-files",
        action="store_true",
        help="leave out the sessions' folders and the uploads, which may be large",
    )
    one.set_defaults(run=backup)

    text = "put an archive's content into the data folder of a stopped server"
    one = commands.add_parser("restore", help=text, description=admin.sentence(text))
    one.add_argument("archive", type=Path, help="what backup made")
    one.add_argument(
        "--replace",
        action="store_true",
        help="where the data folder has content: move that aside, into a folder in it",
    )
    one.set_defaults(run=restore)


def backup(arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> int:
    """The database as it is at one moment; the files as they are when they are read."""
    data_dir = DataDir(settings.data_dir)
    source, archive = data_dir.database, arguments.archive
    folders = CONVERSATION_FOLDERS if arguments.without_files else BESIDE
    try:
        source.stat()
        data_dir.check()
    except OSError as error:
        raise admin.CommandError(f"there is no database: {source}: {error.strerror}") from None
    try:
        with tempfile.TemporaryDirectory(dir=archive.absolute().parent, prefix=".backup-") as made:
            part = Path(made) / "part"  # of this backup alone, until it is whole
            # It holds prompts and answers: for its owner alone, from the first byte on.
            with (
                os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out,
                tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as tar,
            ):
                copy_database(source, Path(made) / DATABASE)
                tar.add(Path(made) / DATABASE, DATABASE)
                with safe_files.folder(settings.data_dir) as data:
                    for name in folders:
                        _add(tar, data, settings.data_dir / name, name)
            part.replace(archive)
    except (OSError, DatabaseError) as error:
        raise admin.CommandError(f"{archive}: {_why(error)}") from None
    admin.say(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    return 0


def _why(error: Exception) -> str:
    """In words, without the names of folders that are made on the way."""
    return getattr(error, "strerror", None) or str(error)


def _add(tar: tarfile.TarFile, parent: int, path: Path, name: str) -> None:
    """Add what is there and can be read; *parent* is the descriptor of the folder with *path*.

    What a running agent deletes meanwhile is not there; what it keeps from us is named. Should it
    exchange something, no link is followed, and no pipe waited for.
    """
    children: list[str] = []
    folder = -1
    with contextlib.ExitStack() as stack:
        try:
            found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
            info = _described(name, found)
            if stat.S_ISDIR(found.st_mode):
                if name.count("/") > MAX_DEPTH:
                    raise OSError(errno.ELOOP, f"it lies deeper than {MAX_DEPTH} folders")
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                folder = os.open(path.name, flags, dir_fd=parent)
                stack.callback(os.close, folder)
                children = sorted(os.listdir(folder))  # noqa: PTH208
                tar.addfile(info)
            elif stat.S_ISREG(found.st_mode):
                file = stack.enter_context(safe_files.open_file(path.name, parent))
                info.size = os.fstat(file.fileno()).st_size
                tar.addfile(info, _Padded(file))
            elif stat.S_ISLNK(found.st_mode):
                info.linkname = os.readlink(path.name, dir_fd=parent)
                tar.addfile(info)
        except FileNotFoundError:
            return
        except OSError as error:
            admin.say(f"clawdforge: left out: {path}: {error.strerror}", file=sys.stderr)
            return
        for child in children:
            _add(tar, folder, path / child, f"{name}/{child}")


def _described(name: str, found: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), found.st_mtime
    info.uid, info.gid = found.st_uid, found.st_gid
    if stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        info.type = tarfile.SYMTYPE
    return info


class _Padded:
    """A file that keeps its size: zeros stand for what an agent cuts off meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size).ljust(size, b"\0")


def restore(arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> int:
    folder, archive = settings.data_dir.resolve(), arguments.archive
    aside: Path | None = None
    try:
        with DataDir(folder).locked():
            old = [name for name in (DATABASE, *BESIDE) if (folder / name).exists()]
            if old and not arguments.replace:
                raise admin.CommandError(
                    f"{folder} has content: with --replace it is moved into a folder in it"
                )
            with tempfile.TemporaryDirectory(dir=folder, prefix=".restore-") as made:
                _unpack(archive, Path(made))
                mounts = mount_points()
                if old:
                    now = time.strftime("%Y%m%d-%H%M%S")
                    aside = Path(tempfile.mkdtemp(dir=folder, prefix=f"before-restore-{now}-"))
                    for name in (*old, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                        _move(folder / name, aside / name, mounts)
                for child in Path(made).iterdir():
                    _move(child, folder / child.name, mounts)
    except DataDirInUseError as error:
        raise admin.CommandError(f"{error}: stop it first") from None
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        moved = f"; what was moved already is in {aside}" if aside else ""
        raise admin.CommandError(f"{archive}: {_why(error)}{moved}") from None
    admin.say(f"{folder} is restored." + (f" What it had is in {aside}." if aside else ""))
    return 0


def mount_points() -> list[Path]:
    """Where something is mounted: only the kernel tells a volume on the same disk from a folder."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    names = (line.split()[4] for line in lines)  # blanks and the like are octal in it
    return [Path(os.fsdecode(re.sub(rb"\\(\d{3})", _octal, name))) for name in names]


def _octal(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def _move(source: Path, target: Path, mounts: Sequence[Path]) -> None:
    """Move what is there.

    A volume stays where it is, and what is in it moves: with a folder that has one below it the
    volume would move, too, and be back at its place at the next start, with what it had.
    """
    has_volume = any(mount.is_relative_to(source) for mount in mounts)
    if source.is_dir() and not source.is_symlink() and (has_volume or target.is_dir()):
        target.mkdir(mode=0o700, exist_ok=True)
        for child in source.iterdir():
            _move(child, target / child.name, mounts)
    elif source.is_symlink() or source.exists():
        shutil.move(source, target)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack and check an archive of our own; nothing of it leaves *folder*."""
    root = folder.resolve()
    try:
        opened = tarfile.open(archive)  # noqa: SIM115  # closed below
    except tarfile.ReadError:
        raise tarfile.ReadError(NO_BACKUP) from None  # it would tell why of each compression
    with opened as tar:
        for member in tar:
            top, *below = member.name.split("/")
            if top not in (DATABASE, *BESIDE):
                raise tarfile.ReadError(NO_BACKUP)
            is_expected = member.isreg() if top == DATABASE else member.isdir()
            if ".." in below or not (below or is_expected):
                # Of these names the server makes files and folders; backup has found no other.
                raise tarfile.ReadError(f"{member.name} is not what a backup has there")
            target = folder / member.name
            # A link that came first is never gone through: it may lead anywhere.
            if not target.parent.resolve().is_relative_to(root):
                raise tarfile.ReadError(f"{member.name} lies outside")
            if member.isdir():
                target.mkdir(mode=0o700)
            elif member.issym():
                target.symlink_to(member.linkname)
            elif (content := tar.extractfile(member)) is not None:
                with content, target.open("xb") as out:
                    shutil.copyfileobj(content, out)
                target.chmod(member.mode & 0o777)
            # Else an agent's socket or pipe, which is worth nothing without it.
        while tar.fileobj.read(1 << 20):
            pass  # behind all that tar reads is the checksum, which this compares
    try:
        check_file(folder / DATABASE)
    except (DatabaseError, SchemaError) as error:
        raise tarfile.ReadError(f"its database cannot be used: {error}") from None
