"""The commands ``cluster``: move a server's data into the database that nodes share."""

from __future__ import annotations

import argparse
import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Settings
from ..data_dir import CONVERSATION_FOLDERS, FILE_FOLDERS, DataDir, node_name
from ..storage.database import Database
from ..storage.statements import relocate_workspaces
from . import admin


def add_cluster_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    text = "work with the database that several servers share"
    parser = commands.add_parser("cluster", help=text, description=admin.sentence(text))
    actions = parser.add_subparsers(dest="action", required=True)
    text = "copy the data folder of a stopped server into an empty cluster"
    importer = actions.add_parser("import", help=text, description=admin.sentence(text))
    importer.set_defaults(execute=import_data)


def import_data(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    """Copy the database and the folders. The data folder stays as it is."""

    async def copy() -> None:
        if settings.cluster_url is None or settings.shared_dir is None:
            raise admin.CommandError("set CLAWDFORGE_CLUSTER_URL and CLAWDFORGE_SHARED_DIR first")
        from ..storage.import_sqlite import copy_into  # asyncpg is needed for a cluster only

        source = DataDir(settings.data_dir)
        if not await asyncio.to_thread(source.database.is_file):
            raise admin.CommandError(f"there is no database: {source.database}")
        with source.locked():
            database = await Database.connect(settings.cluster_url, name=node_name(settings))
            try:
                await asyncio.to_thread(_copy_folders, settings.data_dir, settings.shared_dir)
                count = await copy_into(source.database, database)
                folder = DataDir.of(settings).workspace("x").parent
                await database.write([relocate_workspaces(str(folder))])
            finally:
                await database.close()
        print(f"copied {count} rows of {source.database}")

    return admin.execute_command(lambda *_: copy(), arguments, settings, environ)


def _copy_folders(source: Path, target: Path) -> None:
    """Copy the folders of sessions, except those that exist, as after an interrupted import."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (*CONVERSATION_FOLDERS, *FILE_FOLDERS):
        if (source / name).is_dir() and not (target / name).exists():
            part = target / f".{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source / name, part, symlinks=True)
            part.rename(target / name)
