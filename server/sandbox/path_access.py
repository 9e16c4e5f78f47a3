"""The part of the file system outside of its session's folders that a program sees."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data_dir import DataDir
from . import paths, program_files
from .environment import ProgramEnvironment
from .levels import Level
from .policy import SandboxPolicy


class PathAccess:
    """The paths that a sandbox opens to programs, and those that it hides.

    Args:
        environ: the environment of the agents, by whose ``PATH`` programs are found.
        secret_files: files of the operator that no program may read, such as ``.env``.

    Attributes:
        private: the data folder and the secret files.
    """

    def __init__(
        self,
        level: Level,
        data_dir: DataDir,
        policy: SandboxPolicy,
        environ: Mapping[str, str],
        program_environ: ProgramEnvironment,
        secret_files: Sequence[Path],
    ) -> None:
        self._level = level
        self._data_dir = data_dir
        self._policy = policy
        self._environ = environ
        self._program_environ = program_environ
        data = [data_dir.path, data_dir.own_folder()]
        data = list(dict.fromkeys([*data, *(Path(os.path.realpath(path)) for path in data)]))
        self._data = data
        self.private = [*data, *(Path(os.path.abspath(file)) for file in secret_files)]  # noqa: PTH100

    def for_level(self, level: Level) -> PathAccess:
        """The same paths as another level of sandbox opens and hides them."""
        other = copy.copy(self)
        other._level = level
        for name in ("readable", "listed", "masked"):
            other.__dict__.pop(name, None)  # they depend on the level
        return other

    def contains_data(self, folder: Path) -> bool:
        """Whether *folder* is the data folder or contains it."""
        return paths.contains_any(folder, self._data)

    def is_in_data(self, folder: Path) -> bool:
        return any(folder.is_relative_to(hidden) for hidden in self._data)

    def needs_tmpfs(self, cwd: str) -> bool:
        """Whether `/tmp` must be in memory, because granted folders are mounted below it.

        bubblewrap creates the mount points, which must not happen in a folder of the agent.
        """
        granted = (*self._policy.read, *self._policy.write, *self._policy.roots)
        mounted = (*granted, self._data_dir.path, self._data_dir.own_folder(), Path(cwd))
        return any(path.is_relative_to("/tmp") for path in mounted)  # noqa: S108

    @functools.cached_property
    def _protected(self) -> list[Path]:
        user_home = self._program_environ.user_home
        home = [user_home] if user_home is not None else []
        return [*self.private, *home, *paths.secret_paths()]

    @functools.cached_property
    def readable(self) -> list[str]:
        """The readable paths. The first use takes a moment: it looks for installed programs."""
        split: list[str] = []
        if self._level == "bwrap":
            system = paths.system_paths(())
            cover = paths.system_paths(self._protected)
        else:
            system = cover = [paths.PROCESSES, *paths.system_paths(self._protected)]
            around = [path for path in self._policy.read if paths.contains_any(path, self.private)]
            split = [
                part for path in around for part in paths.parts_without(str(path), self.private)
            ]
        environ = self._program_environ
        programs = paths.installed_programs(environ.passed_on, self.private, environ.user_home)
        for argv in self._policy.programs:
            own = program_files.program_paths(argv, self._environ.get("PATH"))
            programs += program_files.without_private(own, [*map(str, self.private)])
        more = set(paths.outermost([*cover, *programs, *paths.SYSTEM_INFO])) - set(cover)
        return [*system, *(path for path in more if os.path.exists(path)), *split]  # noqa: PTH110

    @functools.cached_property
    def listed(self) -> list[tuple[str, bool]]:
        """The operator's folders, each with whether programs may write it.

        Without those of which programs may read only some parts.
        """
        parts_only = self._level == "landlock"
        read = [
            path
            for path in self._policy.read
            if path not in self._policy.write
            and not (parts_only and paths.contains_any(path, self.private))
        ]
        writable = self._policy.write
        return [*((str(path), False) for path in read), *((str(path), True) for path in writable)]

    @functools.cached_property
    def masked(self) -> list[str]:
        """The paths that are hidden although they lie in a readable or writable folder."""
        granted = {*self._policy.read, *self._policy.write}
        tops = [*map(Path, self.readable), *granted, *self._policy.roots]
        # Always: their other entries must not even be listed.
        masked = [self._data_dir.path, self._data_dir.own_folder()]
        masked += [
            path
            for path in self._protected
            if path not in granted and any(path.is_relative_to(top) for top in tops)
        ]
        return list(dict.fromkeys(map(str, masked)))
