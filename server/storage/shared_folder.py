"""The check that all nodes of a cluster have the same shared folder.

A network folder that is not mounted looks like an empty folder: without this check, agents would
find neither their files nor their conversations. The folder contains an id, which the database has
as well, and a file of each node that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import NamedTuple

from .. import safe_files
from ..errors import StartError
from .database import Database
from .queries import Queries
from .statements import add_server_value, set_server_value

logger = logging.getLogger(__name__)

FOLDER_ID = "shared-folder-id"
"""The name of the file with the folder's id, and of the value in the database."""
NODE_FILES = "nodes"
"""The folder with a file for each node that runs."""
ID_BYTES = 100
"""An id is shorter."""


def read_id(folder: Path) -> str | None:
    """The id in the folder; None if it has none. Blocking.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with safe_files.folder(folder) as parent, safe_files.open_file(FOLDER_ID, parent) as file:
            return file.read(ID_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None


def make_id(folder: Path) -> str:
    """The id in the folder, which gets one if it has none. Nodes may do so at once. Blocking."""
    if (known := read_id(folder)) is None:
        made, temporary = secrets.token_hex(16), f"{FOLDER_ID}-{secrets.token_hex(8)}"
        with safe_files.new_file(folder, temporary) as file:
            file.write(f"{made}\n".encode())
        try:
            with safe_files.folder(folder) as parent, contextlib.suppress(FileExistsError):
                os.link(temporary, FOLDER_ID, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            safe_files.remove(folder, temporary)
        known = read_id(folder)
    return known or ""


async def check_shared_folder(
    database: Database, folder: Path, node: str, lease_secs: float
) -> None:
    """Check at the start of a node that it has the folder of the other nodes.

    If none of them runs, the cluster gets this folder.

    Args:
        node: the name of this node.

    Raises:
        StartError: it has another folder, or cannot write it.
        DatabaseError: the database is out of reach.
    """
    try:
        folder_id = (await asyncio.to_thread(make_id, folder)).encode()
    except OSError as error:
        raise _not_usable(folder, error) from None
    await database.write([add_server_value(FOLDER_ID, folder_id)])
    stored = await Queries(database).server_value(FOLDER_ID)
    if stored == folder_id:
        return
    others = await database.fetch(
        "SELECT name FROM nodes WHERE state <> 'gone' AND name <> ?"
        " AND beat_at > clock_timestamp() - make_interval(secs => ?) ORDER BY name",
        node,
        lease_secs,
    )
    if others:
        names = ", ".join(row[0] for row in others)
        raise StartError(
            f"CLAWDFORGE_SHARED_DIR: {folder} is not the shared folder of {names}; is it mounted?"
        )
    logger.warning("%s is not the shared folder that the cluster had before", folder)
    await database.write([set_server_value(FOLDER_ID, folder_id)])


@contextlib.asynccontextmanager
async def node_file(folder: Path, number: int, name: str) -> AsyncIterator[None]:
    """A block in which the folder has a file of a node, by which others see that they share it.

    Raises:
        StartError: it cannot be written.
    """
    try:
        await asyncio.to_thread(_write_node_file, folder, number, name)
    except OSError as error:
        raise _not_usable(folder, error) from None
    try:
        yield
    finally:
        await asyncio.to_thread(remove_node_files, folder, [number])


def _write_node_file(folder: Path, number: int, name: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with (
        safe_files.folder(folder, NODE_FILES, make=True) as parent,
        safe_files.open_file(str(number), parent, flags) as file,
    ):
        file.write(f"{name}\n".encode())


def node_numbers(folder: Path) -> set[int]:
    """The numbers of the nodes that have a file. Blocking."""
    with contextlib.suppress(OSError), safe_files.folder(folder, NODE_FILES) as parent:
        return {int(name) for name in _names_in(parent) if name.isdigit()}
    return set()


def _names_in(descriptor: int) -> list[str]:
    with os.scandir(descriptor) as entries:
        return [entry.name for entry in entries]


def remove_node_files(folder: Path, numbers: Iterable[int]) -> None:
    """Remove the files of nodes that have ended. Blocking."""
    with contextlib.suppress(OSError):
        for number in numbers:
            safe_files.remove(folder, NODE_FILES, str(number))


def _not_usable(folder: Path, error: OSError) -> StartError:
    return StartError(f"CLAWDFORGE_SHARED_DIR: {folder}: {error.strerror or error}")


class FolderReport(NamedTuple):
    """The state of the shared folder, for the command ``doctor``.

    Attributes:
        state: of the folder, in words.
        is_bad: nodes cannot work with it.
        advice: what to do about it.
    """

    state: str
    is_bad: bool = False
    advice: str | None = None


async def describe_shared_folder(database: Database, folder: Path) -> FolderReport:
    """Write a file to the shared folder, and look for the files of the nodes that run.

    Raises:
        DatabaseError: the database is out of reach.
    """
    stored = await Queries(database).server_value(FOLDER_ID)
    rows = await database.fetch("SELECT n, name FROM nodes WHERE state <> 'gone' ORDER BY name")
    return await asyncio.to_thread(_examine, folder, stored, [(int(n), name) for n, name in rows])


def _examine(folder: Path, stored: bytes | None, nodes: list[tuple[int, str]]) -> FolderReport:
    kind, options = _file_system_of(folder)
    about = f"{folder} ({kind})"
    if not folder.is_dir():
        if stored is None:
            return FolderReport(f"{folder} does not exist; the first start creates it")
        return FolderReport(f"{folder} does not exist", True, "mount it at this path on each node")
    try:
        probe = f"{FOLDER_ID}-doctor-{secrets.token_hex(8)}"
        safe_files.new_file(folder, probe).close()
        safe_files.remove(folder, probe)
        folder_id = read_id(folder)
        missing, strangers = _compare_nodes(folder, nodes)
    except OSError as error:
        advice = "all nodes must run as the same user, and the folder must be mounted for writing"
        return FolderReport(f"{about}: {error.strerror or error}", True, advice)
    if stored is not None and folder_id != stored.decode("ascii", "replace"):
        return FolderReport(
            f"{about} is not the folder of the cluster", True, "mount it at this path on each node"
        )
    if strangers:
        names = ", ".join(strangers)
        advice = "run all nodes as the same user: agents of one must read the files of another"
        return FolderReport(f"{about}; {names}: another user", True, advice)
    if missing:
        advice = "it has another folder, or an older version of clawdforge: see doctor there"
        return FolderReport(f"{about}; no file of {', '.join(missing)}", False, advice)
    if "noexec" in options:
        advice = "agents cannot run programs that they write: mount it without noexec"
        return FolderReport(f"{about}: noexec", False, advice)
    shared = f"; {len(nodes)} {'node uses' if len(nodes) == 1 else 'nodes use'} it" if nodes else ""
    return FolderReport(f"{about}{shared}")


def _compare_nodes(folder: Path, nodes: list[tuple[int, str]]) -> tuple[list[str], list[str]]:
    """The names of the nodes whose file is missing, and of those that run as another user."""
    owners: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError), safe_files.folder(folder, NODE_FILES) as parent:
        owners = {
            name: os.stat(name, dir_fd=parent, follow_symlinks=False).st_uid
            for name in _names_in(parent)
        }
    own = folder.stat().st_uid
    missing = [name for number, name in nodes if str(number) not in owners]
    strangers = [name for number, name in nodes if owners.get(str(number), own) != own]
    return missing, strangers


def _file_system_of(folder: Path) -> tuple[str, str]:
    """The kind of the file system that has a folder, and its mount options."""
    path, kind_and_options = os.path.realpath(folder), ("unknown", "")
    length = -1
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
            fields, _, rest = line.partition(" - ")
            point, options = fields.split(" ")[4:6]
            point = point.encode().decode("unicode_escape")
            is_above = path == point or path.startswith(point.rstrip("/") + "/")
            if is_above and len(point) >= length:
                length = len(point)
                kind_and_options = rest.split(" ")[0], options
    return kind_and_options
