"""The limits of a sandboxed program. Needs only the standard library."""

from __future__ import annotations

import os
import resource

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

PRLIMIT = "/usr/bin/prlimit"


def apply(limits: Mapping[str, int]) -> None:
    """Apply the limits that hold for each process, to this one and all that it starts."""
    _limit(resource.RLIMIT_FSIZE, limits.get("file_bytes", 0))
    _limit(resource.RLIMIT_DATA, limits.get("memory_bytes", 0))
    _limit(resource.RLIMIT_NPROC, limits.get("all_processes", 0))


def _limit(kind: int, value: int) -> None:
    """Lower a limit of this process, and of all that it starts."""
    _, hard = resource.getrlimit(kind)
    if value and (hard == resource.RLIM_INFINITY or value < hard):
        resource.setrlimit(kind, (value, value))


def before_program(plan: Mapping[str, Any], argv: Sequence[str]) -> tuple[Sequence[str], list[int]]:
    """Put a step before the program that needs the namespaces.

    The number of processes can be limited only in the namespace: outside it would count those of
    all sessions.

    Returns:
        The arguments, and the descriptors that the step inherits.
    """
    processes = plan.get("limits", {}).get("processes", 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY:
        processes = min(processes, hard)
    if (tunnel := plan.get("tunnel")) is not None:
        import socket  # takes time, and only this case needs it

        server = socket.socket(socket.AF_UNIX)
        server.connect("\0" + tunnel["socket"])
        server.sendall(tunnel["secret"].encode() + b"\n")
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "network.py")
        descriptor = server.detach()
        step = [plan["python"], "-I", "-S", script, str(descriptor), str(processes)]
        return [*step, tunnel["ports"], *argv], [descriptor]
    if not processes:
        return argv, []
    if os.access(PRLIMIT, os.X_OK):
        return [PRLIMIT, f"--nproc={processes}:{processes}", "--", *argv], []
    shell = f'ulimit -p {processes} 2>/dev/null || ulimit -u {processes}; exec "$@"'
    return ["/bin/sh", "-c", shell, "sh", *argv], []
