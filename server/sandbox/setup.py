"""Makes the sandbox of a server from its settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self, cast

import msgspec

from .. import installation
from ..config import SettingError, Settings
from ..data_dir import DataDir
from .levels import Mechanism, find_mechanism
from .policy import NetworkPolicy, SandboxLimits, SandboxPolicy
from .sandbox import Sandbox

OTHER_THREADS = 1024
"""The processes and threads that the server and its user may start later."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a machine that a sandbox depends on.

    Attributes:
        setting: the name of a level, or ``auto``.
        threads: the processes and threads of the server's user.
    """

    setting: str
    mechanism: Mechanism
    threads: int

    @classmethod
    def examine(cls, setting: str, environ: Mapping[str, str]) -> Self:
        """Try which levels work. Blocking. Raises as :func:`find_mechanism` does."""
        mechanism = find_mechanism(setting, environ)
        return cls(setting=setting, mechanism=mechanism, threads=_threads_of_user())


def make_sandbox(
    settings: Settings,
    environ: Mapping[str, str],
    agent_environ: Mapping[str, str],
    known: Machine | None = None,
    withheld: frozenset[str] = frozenset(),
) -> Sandbox:
    """Make the sandbox that the settings name. Blocking: it tries which levels work.

    Args:
        environ: the environment of the server.
        agent_environ: the part of it that agents get.
        known: what was found just now; by default the machine is examined.
        withheld: the names of variables that no sandboxed program gets.

    Raises:
        SettingError: the level that the settings name does not work on this machine.
    """
    if known is None or known.setting != settings.sandbox:
        known = Machine.examine(settings.sandbox, environ)
    mechanism = known.mechanism
    check_network(settings, mechanism)
    sandbox = Sandbox(
        mechanism,
        DataDir.of(settings),
        SandboxPolicy(
            read=tuple(path.resolve() for path in settings.sandbox_read),
            write=tuple(path.resolve() for path in settings.sandbox_write),
            programs=tuple(
                (preset.command, *(preset.args or ()))
                for preset in settings.mcp_servers.values()
                if preset.command is not None
            ),
            roots=settings.workspace_roots,
            network=cast("NetworkPolicy", settings.sandbox_network),
            limits=SandboxLimits(
                processes=settings.sandbox_processes,
                all_processes=_all_processes(settings, known.threads),
                memory_bytes=settings.sandbox_memory_mb << 20,
                file_bytes=settings.sandbox_file_mb << 20,
                disk_bytes=settings.sandbox_disk_mb << 20,
            ),
        ),
        agent_environ,
        secret_files=(Path(".env"), installation.PACKAGE_FOLDER.parent / ".env"),
        withheld=withheld,
    )
    sandbox.prepare()
    return sandbox


def check_network(settings: Settings, mechanism: Mechanism) -> None:
    """Check that the network policy can be enforced.

    Raises:
        SettingError: it cannot, or domains are listed for another policy.
    """
    policy, name = settings.sandbox_network, "CLAWDFORGE_SANDBOX_NETWORK"
    if bool(settings.sandbox_domains) != (policy == "proxy"):
        raise SettingError(f"CLAWDFORGE_SANDBOX_DOMAINS: needed with {name}=proxy, and only then")
    if policy == "all":
        return
    if mechanism.level == "off":
        raise SettingError(f"{name}: {policy} needs a sandbox, and none is active")
    needs_landlock = mechanism.level == "landlock" or policy == "web"
    if needs_landlock and not mechanism.limits_tcp:
        raise SettingError(f"{name}: {policy} needs Landlock of Linux 6.7 at this level")


def _all_processes(settings: Settings, threads: int) -> int:
    """The number of processes and threads of this user at which agents cannot start more.

    It suffices for every agent and run that may be alive, and for what runs already.
    """
    agents = settings.max_live_agents + settings.reserved_agents + settings.prewarmed_agents
    programs = agents + settings.max_runs + settings.reserved_runs
    return settings.sandbox_processes and (
        settings.sandbox_processes * programs + threads + OTHER_THREADS
    )


def _threads_of_user() -> int:
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.getuid():
                count += len(os.listdir(folder / "task"))  # noqa: PTH208
        except OSError:
            continue  # the process has ended
    return count
