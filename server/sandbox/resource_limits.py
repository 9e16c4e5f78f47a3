"""The limits of a sandboxed program. Needs only the standard library."""

from __future__ import annotations

import errno
import os
import resource

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

PRLIMIT, ENV = "/usr/bin/prlimit", "/usr/bin/env"
LINKER_VARIABLES = ("GCONV_PATH", "GLIBC_TUNABLES", "LOCPATH", "NLSPATH")


def apply(limits: Mapping[str, int]) -> None:
    """Apply the limits that hold for each process, to this one and all that it starts."""
    _limit(resource.RLIMIT_FSIZE, limits.get("file_bytes", 0))
    _limit(resource.RLIMIT_DATA, limits.get("memory_bytes", 0))
    _limit(resource.RLIMIT_NPROC, limits.get("all_processes", 0))


def join_group(group: Mapping[str, Any], pid: int = 0) -> None:
    """Put a process into the control group of its session, which is made if it is missing.

    Args:
        group: ``folder``, ``controllers`` and ``processes``, of the plan.
        pid: 0 for this process.

    Raises:
        OSError: the group cannot be made or joined.
    """
    folder = group["folder"]
    for _ in range(3):
        try:
            if not os.path.isdir(folder):
                app = os.path.dirname(folder)
                os.makedirs(app, exist_ok=True)
                # Also if it exists: another launcher may have made it just now.
                _write_group(
                    app, "cgroup.subtree_control", " ".join("+" + x for x in group["controllers"])
                )
                os.makedirs(folder, exist_ok=True)
            if group["processes"]:
                _write_group(folder, "pids.max", str(group["processes"]))
            _write_group(folder, "cgroup.procs", str(pid))
            return
        except OSError as error:
            # The server removes empty groups, so this one may be gone again.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    raise OSError(errno.ENODEV, "the control group was removed three times", folder)


def _write_group(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="ascii") as file:
        file.write(text)


def _limit(kind: int, value: int) -> None:
    """Lower a limit of this process, and of all that it starts."""
    _, hard = resource.getrlimit(kind)
    if value and (hard == resource.RLIM_INFINITY or value < hard):
        resource.setrlimit(kind, (value, value))


def without_linker(
    argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[Sequence[str], Mapping[str, str]]:
    """Leave out the variables by which a library would get into the steps before a program.

    Returns:
        The arguments, by which the program gets those variables nevertheless, and the others.
    """
    names = [name for name in environ if name.startswith("LD_") or name in LINKER_VARIABLES]
    if not names:
        return argv, environ
    values = [f"{name}={environ[name]}" for name in names]
    return [ENV, *values, *argv], {k: v for k, v in environ.items() if k not in names}


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
