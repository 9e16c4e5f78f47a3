"""Checks the folders of a program, and splits their paths as launchers open them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data_dir import DataDir
from . import restrict
from .levels import Level
from .path_access import PathAccess
from .policy import SandboxPolicy, SandboxSpec


class FolderError(Exception):
    """A program's working directory cannot be used; the message says why."""


class FolderLocator:
    """Finds a folder in the data folder or in one of the workspace roots. Blocking."""

    def __init__(
        self, level: Level, data_dir: DataDir, policy: SandboxPolicy, path_access: PathAccess
    ) -> None:
        self._level = level
        self._data_dir = data_dir
        self._policy = policy
        self._path_access = path_access

    def locate(self, key: str, folder: str) -> tuple[str, str]:
        """Check a folder of the session with that *key*.

        Returns:
            The top folder, whose path may contain links, and the path below it.

        Raises:
            FolderError: the folder is missing, was replaced by a link, or is not in one of the
                workspace roots.
        """
        top, below = self._split(Path(folder))
        if self._level != "off":
            self._check_data(key, Path(folder))
        try:
            os.close(restrict.open_beneath(top, below))
        except OSError:
            raise FolderError(
                "the session's folder was deleted or replaced by a link; the agent is not started"
            ) from None
        return top, below

    def _split(self, folder: Path) -> tuple[str, str]:
        # The outermost root: agents may have replaced one that lies in another one by a link.
        roots = sorted(self._policy.roots, key=lambda root: len(root.parts))
        for top in (self._data_dir.path, *roots):
            if folder.is_relative_to(top) and ".." not in folder.parts:
                below = str(folder.relative_to(top))
                return str(top), "" if below == "." else below
        raise FolderError("the session's folder is not in one of the workspace roots any more")

    def _check_data(self, key: str, folder: Path) -> None:
        if self._path_access.is_in_data(folder) and key not in folder.parts:
            raise FolderError("the session's folder is in the server's data folder")
        if self._level == "landlock" and self._path_access.contains_data(folder):
            raise FolderError("the session's folder contains the server's data folder")

    def repository_of(self, spec: SandboxSpec) -> Iterator[list[Any]]:
        """The parts of the repository of a worktree that git needs, in the form of ``own``.

        Neither its hooks nor its configuration are writable: they would be carried out by others.
        """
        if spec.repository is None:
            return
        folder = Path(spec.repository, ".git")
        folder = folder if folder.is_dir() else folder.parent
        yield [*self.locate(spec.key, str(folder)), False]
        for name in ("objects", "refs", "logs", f"worktrees/{spec.key}"):
            if (folder / name).is_dir():
                yield [*self.locate(spec.key, str(folder / name)), True]
