"""Finding and ending what an agent has started, as far as it may have hidden."""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from pathlib import Path

logger = logging.getLogger(__name__)

MARK = "AGENT_SESSION"
"""Environment variable that an agent and all that it starts inherit: the session's id."""


UNLIMITED = 1 << 40
MIN_SIGN = 1 << 16
DEATH_SECS = 5.0
"""A process that has not died of SIGKILL by then hangs in the kernel."""
DEATH_PAUSE_SECS = 0.002


HOST_MARK = "ACPX_HOST"
"""The same for a host: everything below it has this server's mark."""


def brand(pid: int, number: int) -> int | None:
    """Give a process of ours a sign that all it starts inherits, and that nobody sheds.

    A mark goes with the environment, and a daemon may clear that. The sign is a limit that
    nobody uses, of POSIX message queues, lowered by *number*: it takes root to raise it.

    Args:
        number: from 1, another for each process that is alive.

    Returns:
        The sign; None where there can be none.
    """
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_MSGQUEUE)
        sign = (UNLIMITED if hard == resource.RLIM_INFINITY else hard) - number
        if sign < MIN_SIGN:
            return None
        resource.prlimit(pid, resource.RLIMIT_MSGQUEUE, (sign, sign))
    except OSError:  # it has ended, or this system does not know how
        return None
    return sign


def kill_session(leader: int | None, mark: bytes, sign: int | None = None) -> int:
    """Kill an agent and everything that it left.

    That is: the processes below *leader*, those of its process group and its
    session, and those that inherited the session's mark or the agent's sign, however
    they detached themselves. Blocking: it reads /proc, a millisecond or so; call it in a thread.

    Args:
        leader: the agent's pid, which must still be its own (held by a pidfd and
            not yet reaped, or just ended).
        mark: the session's, as ``NAME=value``.
        sign: what :func:`brand` gave the agent.

    Returns:
        How many were killed. What is another user's, or does not die of it, stays, and
        is logged.
    """
    killed: set[int] = set()
    foreign: set[int] = set()
    deadline = time.monotonic() + DEATH_SECS
    # Until none is found: what one starts while we look comes up in the next round.
    while found := _belonging(leader, mark, sign) - foreign:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:
                foreign.add(pid)
        killed |= found - foreign
        if time.monotonic() > deadline:
            killed -= found
            foreign |= found
        elif found - foreign:
            time.sleep(DEATH_PAUSE_SECS)
    if foreign:
        logger.warning("processes that cannot be ended: %s", sorted(foreign))
    return len(killed)


def kill_marked(mark: bytes) -> int:
    """Kill every process that has *mark*, ``NAME=value``, in its environment."""
    return kill_session(None, mark)


def _belonging(leader: int | None, mark: bytes, sign: int | None) -> set[int]:
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            state, parent, group, session = _stat(entry)
            if state in b"ZX":
                continue
            parents[pid] = parent
            if leader in (pid, group, session) or mark in _environ(entry):
                found.add(pid)
        except OSError:
            continue  # it has ended meanwhile, or is another user's
    if leader is not None:
        found.update(pid for pid in parents if _descends(pid, leader, parents))
    if sign is not None:  # another server's agents may have the same: only what is below us
        ours = [pid for pid in parents if _descends(pid, os.getpid(), parents)]
        found.update(pid for pid in ours if _sign_of(pid) == sign)
    found.discard(os.getpid())
    return found


def _sign_of(pid: int) -> int | None:
    try:
        return resource.prlimit(pid, resource.RLIMIT_MSGQUEUE)[1]
    except OSError:
        return None


def _stat(entry: Path) -> tuple[bytes, int, int, int]:
    """State, parent, process group and session, of /proc/PID/stat."""
    fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
    return fields[0], int(fields[1]), int(fields[2]), int(fields[3])


def _environ(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except PermissionError:
        return []


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False
