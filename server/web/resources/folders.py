"""The folders in which sessions can work: the workspace roots, and what is in them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import web

from ...errors import not_found
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import doc

MAX_FOLDERS = 1000


class FoldersQuery(msgspec.Struct, frozen=True):
    """The folder to look into."""

    path: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=4096)] | None,
        doc("A folder in one of the workspace roots; without it, the roots are listed."),
    ] = None


class ProjectFolder(msgspec.Struct, kw_only=True):
    """A folder that can be a session's `cwd`."""

    path: str
    repository: Annotated[bool, doc("Whether it is a git repository.")]


class FolderList(msgspec.Struct, kw_only=True):
    """The folders, by name."""

    roots: Annotated[list[str], doc("The workspace roots; empty if `cwd` cannot be chosen.")]
    folders: list[ProjectFolder]
    truncated: Annotated[bool, doc("Whether there are more folders than are listed.")]


@Endpoint(
    "GET",
    "/folders",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="List folders for new sessions",
    description="The workspace roots, or the folders in one of their folders. Links and hidden"
    " folders are left out.",
    example={
        "ok": True,
        "roots": ["/srv/code"],
        "folders": [{"path": "/srv/code/app", "repository": True}],
        "truncated": False,
    },
    failures=("not_found",),
)
async def list_folders(request: web.Request, query: FoldersQuery) -> FolderList:
    context = context_of(request)
    roots = [str(root) for root in context.settings.workspace_roots]
    if query.path is None:
        folders = await asyncio.to_thread(_entries, roots)
    else:
        folder = await context.sessions.workspaces.check(query.path, "path")
        folders = await asyncio.to_thread(_folders_in, folder)
    return FolderList(
        roots=roots, folders=folders[:MAX_FOLDERS], truncated=len(folders) > MAX_FOLDERS
    )


def _folders_in(folder: Path) -> list[ProjectFolder]:
    """List at most one folder more than a response may have.

    Raises:
        Error: ``not_found``; the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            paths = [
                entry.path
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        raise not_found("folder") from None
    paths.sort(key=lambda path: path.casefold())
    return _entries([path for path in paths if _is_readable_name(path)][: MAX_FOLDERS + 1])


def _entries(paths: list[str]) -> list[ProjectFolder]:
    return [
        ProjectFolder(path=path, repository=os.path.lexists(os.path.join(path, ".git")))  # noqa: PTH118
        for path in paths
    ]


def _is_readable_name(path: str) -> bool:
    """Return whether JSON can carry the path: a name may be any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
