"""The sandbox of a server: makes the plan by which a launcher restricts each agent."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import COMMAND
from ..data_dir import DataDir
from . import paths, program_files, restrict
from .control_groups import ControlGroups
from .demands import StricterSandboxes
from .environment import ProgramEnvironment
from .homes import SandboxFolders
from .levels import BWRAP_OPTIONS, Level, Mechanism
from .network_access import GatewayAddresses, NetworkAccess
from .policy import SandboxPolicy, SandboxSpec

TAG_VARIABLES = ("AGENT_SESSION", "ACPX_HOST")
TMPFS_BYTES = 1 << 30
"""The size of `/dev/shm`, and of a `/tmp` in memory."""


class FolderError(Exception):
    """A program's working directory cannot be used; the message says why."""


OFF = Mechanism("off", is_chosen=True, abi=0)


class Sandbox:
    """The sandbox of a server.

    Args:
        secret_files: files of the operator that no program may read, such as ``.env``.
        withheld: the names of variables that no sandboxed program gets.

    Attributes:
        environ: the environment of the agents, with the keys of the operator.
        program_environ: the part of it that programs get.
        network: what programs may connect to.
        folders: the homes, temporary folders and files of the sessions.
        policy: what the operator permits.
        stricter: the sandboxes of apps that have one of their own.
        groups: the control groups of the apps; None if none are delegated to the server.
        failure: why no program can be started; None if programs can.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        data_dir: DataDir,
        policy: SandboxPolicy | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
        secret_files: Sequence[Path] = (),
        withheld: frozenset[str] = frozenset(),
    ) -> None:
        self.mechanism = mechanism
        self.folders = SandboxFolders(data_dir)
        self._data_dir = data_dir
        self.policy = policy or SandboxPolicy()
        self.environ = environ
        self.network = NetworkAccess(self.policy.network, mechanism.level, GatewayAddresses())
        self.program_environ = ProgramEnvironment(environ, withheld)
        self.user_home = self.program_environ.user_home
        data = [data_dir.path, data_dir.own_folder()]
        data = list(dict.fromkeys([*data, *(Path(os.path.realpath(path)) for path in data)]))
        self._data = data
        self._hidden = [*data, *(Path(os.path.abspath(file)) for file in secret_files)]  # noqa: PTH100
        self.stricter = StricterSandboxes(self, environ)
        self.groups: ControlGroups | None = None
        self.failure: str | None = None

    @property
    def level(self) -> Level:
        return self.mechanism.level

    def of(self, app_name: str) -> Sandbox:
        """The sandbox of an app's programs."""
        return self.stricter.of(app_name)

    @property
    def is_on(self) -> bool:
        return self.level != "off"

    @property
    def open(self) -> list[str]:
        """The targets that agents can reach nevertheless; see :attr:`Mechanism.open`."""
        found = self.mechanism.open
        if self.groups is not None and "cpu" in found:
            found.remove("cpu")
        if self.network.is_closed:
            found.remove("loopback")
            if self.level == "landlock" and self.network.gateway_ports:
                found.append("ports of the gateways")
        if self.level == "landlock" and any(map(self.contains_data, self.policy.write)):
            found = ["data folder", *found]
        return found

    @property
    def enforced(self) -> list[str]:
        """The targets that agents cannot reach; see :attr:`Mechanism.enforced`."""
        found = self.mechanism.enforced
        if self.is_on and self.groups is not None:
            found.append("cpu")
        return [*found, "network"] if self.network.is_closed else found

    @property
    def refusal(self) -> str | None:
        """Why the server must not have a second app; None if it may have one."""
        if self.is_on or self.mechanism.is_chosen:
            return None
        return (
            "no sandbox works on this machine, so the apps' agents could reach each other:"
            f" see `{COMMAND} doctor`, or accept that with CLAWDFORGE_SANDBOX=off"
        )

    def describe(self) -> str:
        """One line for the operator."""
        reasons = "; ".join(self.mechanism.reasons.values())
        if not self.is_on:
            why = "CLAWDFORGE_SANDBOX=off" if self.mechanism.is_chosen else reasons
            return f"sandbox: off ({why}); agents can do what the server's user can do"
        closed, opened = ", ".join(self.enforced), ", ".join(self.open)
        text = f"sandbox: {self.level}; closed: {closed}; open: {opened}"
        return f"{text} ({reasons})" if reasons else text

    def prepare(self) -> None:
        """Find the readable paths now, so that the first program starts without delay. Blocking."""
        if self.is_on:
            _ = self._reads, self._masks, self._seccomp

    def contains_data(self, folder: Path) -> bool:
        """Whether *folder* is the data folder or contains it."""
        return paths.contains_any(folder, self._data)

    def is_in_data(self, folder: Path) -> bool:
        return any(folder.is_relative_to(hidden) for hidden in self._data)

    # The working directory.

    def locate(self, spec: SandboxSpec) -> tuple[str, str]:
        """Check the working directory of a program, and return it as launchers open it. Blocking.

        Returns:
            The top folder, whose path may contain links, and the path below it.

        Raises:
            FolderError: the folder is missing, was replaced by a link, or is not in one of the
                workspace roots.
        """
        return self._locate(spec, spec.cwd)

    def _locate(self, spec: SandboxSpec, folder: str) -> tuple[str, str]:
        top, below = self._split(Path(folder))
        if self.is_on:
            self._check_data(spec.key, Path(folder))
        try:
            os.close(restrict.open_beneath(top, below))
        except OSError:
            raise FolderError(
                "the session's folder was deleted or replaced by a link; the agent is not started"
            ) from None
        return top, below

    def _split(self, cwd: Path) -> tuple[str, str]:
        # The outermost root: agents may have replaced one that lies in another one by a link.
        for top in (
            self._data_dir.path,
            *sorted(self.policy.roots, key=lambda root: len(root.parts)),
        ):
            if cwd.is_relative_to(top) and ".." not in cwd.parts:
                below = str(cwd.relative_to(top))
                return str(top), "" if below == "." else below
        raise FolderError("the session's folder is not in one of the workspace roots any more")

    def _check_data(self, key: str, folder: Path) -> None:
        if self.is_in_data(folder) and key not in folder.parts:
            raise FolderError("the session's folder is in the server's data folder")
        if self.level == "landlock" and self.contains_data(folder):
            raise FolderError("the session's folder contains the server's data folder")

    # Plans.

    def plan(
        self, spec: SandboxSpec, environ: Mapping[str, str], parents: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """Make the plan for a launcher, and create the session's folders. Blocking.

        Args:
            environ: variables that take precedence over those of the sandbox.
            parents: folders in the data folder that the program may read.

        Raises:
            FolderError: the working directory cannot be used.
            OSError: the session's folders cannot be created.
        """
        if self.failure is not None:
            raise FolderError(self.failure)
        cwd = self.locate(spec)
        group = self.groups.plan(spec.owner, spec.key) if self.groups is not None else None
        directories = [self._locate(spec, folder) for folder in spec.directories]
        program_environ = self.program_environ
        replaced = program_environ.replace(spec, environ)
        if not self.is_on:
            variables = program_environ.without_keys(environ, replaced, has_home=False)
            return {"level": "off", "cwd": cwd, "group": group, **variables}
        folders = self.folders
        folders.create(spec.key)
        home = self._data_dir.split(folders.home(spec.key))
        program_environ.fill_home(spec, home, environ, replaced)
        writable = (folders.home(spec.key), folders.tmp(spec.key))
        top = str(self._data_dir.path)
        own = [
            *([top, self._below(path), True] for path in writable),
            *([*folder, True] for folder in directories),
            *self._repository_of(spec),
            *([top, self._below(path), False] for path in (folders.files(spec.key), *parents)),
        ]
        return {
            "level": self.level,
            "cwd": cwd,
            "own": own,
            "tmp": None if self._needs_tmpfs(spec) else self._below(folders.tmp(spec.key)),
            "read": self._reads if group is None else without_groups(self._reads),
            "listed": self._listed,
            "private": [str(path) for path in self._hidden],
            "hidden": self._masks if self.level == "bwrap" else [],
            "devices": paths.DEVICES,
            **program_environ.without_keys(
                {**_own_variables(self, spec), **environ}, replaced, has_home=True
            ),
            "seccomp": self._seccomp,
            "bwrap": self._bwrap_options(spec),
            "tags": TAG_VARIABLES,
            "tcp_ports": self.network.tcp_ports,
            "tunnel": self.network.tunnel(spec),
            "python": sys.executable,
            "group": group,
            "limits": self.policy.limits.plan(self.level),
        }

    def _repository_of(self, spec: SandboxSpec) -> Iterator[list[Any]]:
        """The parts of the repository of a worktree that git needs, in the form of ``own``.

        Neither its hooks nor its configuration are writable: they would be carried out by others.
        """
        if spec.repository is None:
            return
        folder = Path(spec.repository, ".git")
        folder = folder if folder.is_dir() else folder.parent
        yield [*self._locate(spec, str(folder)), False]
        for name in ("objects", "refs", "logs", f"worktrees/{spec.key}"):
            if (folder / name).is_dir():
                yield [*self._locate(spec, str(folder / name)), True]

    def _below(self, path: Path) -> str:
        return str(path.relative_to(self._data_dir.path))

    @functools.cached_property
    def _seccomp(self) -> str:
        return self.mechanism.seccomp(**self.network.filter_options).hex()

    @functools.cached_property
    def _protected(self) -> list[Path]:
        home = [self.user_home] if self.user_home is not None else []
        return [*self._hidden, *home, *paths.secret_paths()]

    @functools.cached_property
    def _reads(self) -> list[str]:
        """The readable paths outside of the session's folders."""
        split: list[str] = []
        if self.level == "bwrap":
            system = paths.system_paths(())
            cover = paths.system_paths(self._protected)
        else:
            system = cover = [paths.PROCESSES, *paths.system_paths(self._protected)]
            around = [path for path in self.policy.read if paths.contains_any(path, self._hidden)]
            split = [
                part for path in around for part in paths.parts_without(str(path), self._hidden)
            ]
        environ = self.program_environ.passed_on
        programs = paths.installed_programs(environ, self._hidden, self.user_home)
        for argv in self.policy.programs:
            own = program_files.program_paths(argv, self.environ.get("PATH"))
            programs += program_files.without_private(own, [*map(str, self._hidden)])
        more = set(paths.outermost([*cover, *programs, *paths.SYSTEM_INFO])) - set(cover)
        return [*system, *(path for path in more if os.path.exists(path)), *split]  # noqa: PTH110

    @functools.cached_property
    def _listed(self) -> list[tuple[str, bool]]:
        """The operator's folders; not those of which programs may read only some parts."""
        parts_only = self.level == "landlock"
        read = [
            path
            for path in self.policy.read
            if path not in self.policy.write
            and not (parts_only and paths.contains_any(path, self._hidden))
        ]
        return [(str(p), False) for p in read] + [(str(p), True) for p in self.policy.write]

    @functools.cached_property
    def _masks(self) -> list[str]:
        """The paths that are hidden although they lie in a readable or writable folder."""
        granted = {*self.policy.read, *self.policy.write}
        tops = [*map(Path, self._reads), *granted, *self.policy.roots]
        # Always: their other entries must not even be listed.
        found = [self._data_dir.path, self._data_dir.own_folder()]
        found += [
            path
            for path in self._protected
            if path not in granted and any(path.is_relative_to(top) for top in tops)
        ]
        return list(dict.fromkeys(map(str, found)))

    def _needs_tmpfs(self, spec: SandboxSpec) -> bool:
        """Whether `/tmp` must be in memory, because granted folders are mounted below it.

        bubblewrap creates the mount points, which must not happen in a folder of the agent.
        """
        granted = (*self.policy.read, *self.policy.write, *self.policy.roots)
        paths = (*granted, self._data_dir.path, self._data_dir.own_folder(), Path(spec.cwd))
        return any(path.is_relative_to("/tmp") for path in paths)  # noqa: S108

    def _bwrap_options(self, spec: SandboxSpec) -> list[str]:
        if self.mechanism.program is None:
            return []
        options = [self.mechanism.program, *BWRAP_OPTIONS]
        if self.network.is_own:
            options.append("--unshare-net")
        options += ["--proc", "/proc", "--dev", "/dev"]
        options += ["--size", str(TMPFS_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
        if os.geteuid() == 0:  # root may write there even without a capability
            for path in paths.KERNEL_SETTINGS:
                options += ["--ro-bind-try", path, path]
        if self._needs_tmpfs(spec):
            options += ["--size", str(TMPFS_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
        return options


def without_groups(reads: Sequence[str]) -> list[str]:
    """Leave out the control groups: their names are those of apps."""
    return [path for path in reads if path != paths.CONTROL_GROUPS]


def _own_variables(sandbox: Sandbox, spec: SandboxSpec) -> dict[str, str]:
    folders = sandbox.folders
    tmp = "/tmp" if sandbox.level == "bwrap" else str(folders.tmp(spec.key))  # noqa: S108
    return sandbox.program_environ.own_variables(str(folders.home(spec.key)), tmp)
