"""The sandbox of a server: makes the plan by which a launcher restricts each agent."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import COMMAND
from ..data_dir import DataDir
from . import paths
from .control_groups import ControlGroups
from .demands import StricterSandboxes
from .environment import ProgramEnvironment
from .folder_locator import FolderError, FolderLocator
from .homes import SandboxFolders
from .levels import BWRAP_OPTIONS, Level, Mechanism
from .network_access import GatewayAddresses, NetworkAccess
from .path_access import PathAccess
from .policy import SandboxPolicy, SandboxSpec

TAG_VARIABLES = ("AGENT_SESSION", "ACPX_HOST")
TMPFS_BYTES = 1 << 30
"""The size of `/dev/shm`, and of a `/tmp` in memory."""


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
        path_access: what programs see of the file system outside of their sessions' folders.
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
        self.path_access = PathAccess(
            self.level, data_dir, self.policy, environ, self.program_environ, secret_files
        )
        self.use_mechanism(mechanism)
        self.stricter = StricterSandboxes(self, environ)
        self.groups: ControlGroups | None = None
        self.failure: str | None = None

    def use_mechanism(self, mechanism: Mechanism) -> None:
        """Restrict programs by another mechanism from now on."""
        self.mechanism = mechanism
        self.path_access = self.path_access.for_level(mechanism.level)
        self._locator = FolderLocator(
            mechanism.level, self._data_dir, self.policy, self.path_access
        )
        self.__dict__.pop("_seccomp", None)

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
        gaps = self.mechanism.open
        if self.groups is not None and "cpu" in gaps:
            gaps.remove("cpu")
        if self.network.is_closed:
            gaps.remove("loopback")
            if self.level == "landlock" and self.network.gateway_ports:
                gaps.append("ports of the gateways")
        if self.level == "landlock" and any(map(self.path_access.contains_data, self.policy.write)):
            gaps = ["data folder", *gaps]
        return gaps

    @property
    def enforced(self) -> list[str]:
        """The targets that agents cannot reach; see :attr:`Mechanism.enforced`."""
        restrictions = self.mechanism.enforced
        if self.is_on and self.groups is not None:
            restrictions.append("cpu")
        return [*restrictions, "network"] if self.network.is_closed else restrictions

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
            access = self.path_access
            _ = access.readable, access.listed, access.masked, self._seccomp

    # The working directory.

    def locate(self, spec: SandboxSpec) -> tuple[str, str]:
        """Check the working directory of a program, and return it as launchers open it. Blocking.

        Returns:
            The top folder, whose path may contain links, and the path below it.

        Raises:
            FolderError: the folder is missing, was replaced by a link, or is not in one of the
                workspace roots.
        """
        return self._locator.locate(spec.key, spec.cwd)

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
        directories = [self._locator.locate(spec.key, folder) for folder in spec.directories]
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
            *self._locator.repository_of(spec),
            *([top, self._below(path), False] for path in (folders.files(spec.key), *parents)),
        ]
        readable = self.path_access.readable
        return {
            "level": self.level,
            "cwd": cwd,
            "own": own,
            "tmp": None
            if self.path_access.needs_tmpfs(spec.cwd)
            else self._below(folders.tmp(spec.key)),
            "read": readable if group is None else without_groups(readable),
            "listed": self.path_access.listed,
            "private": [str(path) for path in self.path_access.private],
            "hidden": self.path_access.masked if self.level == "bwrap" else [],
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

    def _below(self, path: Path) -> str:
        return str(path.relative_to(self._data_dir.path))

    @functools.cached_property
    def _seccomp(self) -> str:
        return self.mechanism.seccomp(**self.network.filter_options).hex()

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
        if self.path_access.needs_tmpfs(spec.cwd):
            options += ["--size", str(TMPFS_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
        return options


def without_groups(reads: Sequence[str]) -> list[str]:
    """Leave out the control groups: their names are those of apps."""
    return [path for path in reads if path != paths.CONTROL_GROUPS]


def _own_variables(sandbox: Sandbox, spec: SandboxSpec) -> dict[str, str]:
    folders = sandbox.folders
    tmp = "/tmp" if sandbox.level == "bwrap" else str(folders.tmp(spec.key))  # noqa: S108
    return sandbox.program_environ.own_variables(str(folders.home(spec.key)), tmp)
