"""The types of what a sandbox is made from: the program, the operator's policy, the keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

NetworkPolicy = Literal["all", "web", "proxy", "none"]
"""The addresses that sandboxed programs may connect to."""


class SandboxSpec(Protocol):
    """The session, run or probe that a program works for: an ``AgentSpec``, for example.

    Attributes:
        key: names its folders.
        agent: the agent's name.
        cwd: its working directory.
        owner: its app; empty if there is none yet.
        directories: further folders in the workspace roots that it may change.
        repository: the git repository that *cwd* is a worktree of.
        client_environ: the variables that a client chose.
    """

    @property
    def key(self) -> str: ...
    @property
    def agent(self) -> str: ...
    @property
    def cwd(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def directories(self) -> tuple[str, ...]: ...
    @property
    def repository(self) -> str | None: ...
    @property
    def client_environ(self) -> Mapping[str, str]: ...


class Replaced(Protocol):
    """The environment and the files that a program gets instead of keys.

    Attributes:
        environ: variables to set.
        unset: variables to remove.
        files: content by path below the program's home.
    """

    @property
    def environ(self) -> Mapping[str, str]: ...
    @property
    def unset(self) -> Sequence[str]: ...
    @property
    def files(self) -> Mapping[str, bytes]: ...


ReplaceKeys = Callable[[SandboxSpec, Mapping[str, str], Mapping[str, str]], Replaced]
"""Replaces the keys in the environment of a program: those of the operator and of the client."""


class SandboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of sandboxed programs; 0 for none.

    Attributes:
        processes: processes and threads of a session.
        all_processes: those of the server's user, for a level that cannot count them by session.
        memory_bytes: of one process.
        file_bytes: of one file.
        disk_bytes: of a session's folders.
    """

    processes: int = 0
    all_processes: int = 0
    memory_bytes: int = 0
    file_bytes: int = 0
    disk_bytes: int = 0

    def plan(self, level: str) -> dict[str, int]:
        """The limits of a launcher's plan, which hold for its program."""
        return {
            "processes": self.processes,
            "all_processes": self.all_processes * (level != "bwrap"),
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
        }


class Tunnel(msgspec.Struct, frozen=True):
    """The way to the gateways for a program that has a network of its own.

    Attributes:
        socket: the name of the abstract socket at which the server takes listening sockets.
        secret: of the program's session.
    """

    socket: str
    secret: str


class SandboxPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's permissions for sandboxed programs, in addition to what they need.

    Attributes:
        read, write: more files and folders.
        programs: commands that programs may start, each with its arguments.
        roots: the folders in which clients may choose a working directory.
        network: what programs may connect to.
        limits: what one program, and all programs of a session, may use.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    programs: tuple[tuple[str, ...], ...] = ()
    roots: tuple[Path, ...] = ()
    network: NetworkPolicy = "all"
    limits: SandboxLimits = SandboxLimits()


OpenTunnel = Callable[[SandboxSpec], Tunnel]
"""Returns the way to the gateways for a program with a network of its own."""
