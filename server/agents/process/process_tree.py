"""Finding and ending what agents leave behind, however it hides.

The processes of all agents live below a supervisor (``supervise.py``), which inherits their
orphans. An orphan lives on as long as the agent that it came from: it carries that agent's tag.
Every other one is ended, so a process gains nothing by changing what it carries.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import supervise

logger = logging.getLogger(__name__)

MARK = "AGENT_SESSION"
"""Environment variable that an agent and all that it starts inherit: the session's id."""
HOST_MARK = "ACPX_HOST"
"""The same for a host: everything below it has this server's mark."""

UNLIMITED = 1 << 40
MAX_NUMBER = 500_000
"""More than agents can be alive."""
MIN_LIMIT = 1 << 16
RLIMIT_LOCKS = 10
"""Without effect since Linux 2.4, but inherited like all limits."""
LIMITS = {
    resource.RLIMIT_MSGQUEUE: "Max msgqueue size",
    RLIMIT_LOCKS: "Max file locks",
    resource.RLIMIT_RSS: "Max resident set",
}
"""And their names in /proc/PID/limits."""
DEATH_SECS = 5.0
"""A process that has not died of SIGKILL by then hangs in the kernel."""
DEATH_PAUSE_SECS = 0.002

Tag = tuple[int, int]
"""The hard limits of POSIX message queues and of file locks, which nobody uses.

An agent's number lowers the first and raises the second, below what both were. A process may lower
them and cannot raise them without root, so it cannot come to have another agent's.
"""


class Process(NamedTuple):
    """A process; ``start`` (in clock ticks since the boot) tells it from a later one of its pid."""

    pid: int
    start: int
    parent: int


def tag(pid: int, number: int) -> Tag | None:
    """Give an agent a tag, which all that it starts inherits.

    Args:
        number: from 1 to :data:`MAX_NUMBER`, another for each agent that is alive.

    Returns:
        None if it has ended, or if the limits are too low on this machine.
    """
    try:
        queues, locks = (_base(pid, kind) for kind in (resource.RLIMIT_MSGQUEUE, RLIMIT_LOCKS))
        mine = queues - number, locks - MAX_NUMBER + number
        if min(mine) < MIN_LIMIT:
            return None
        resource.prlimit(pid, resource.RLIMIT_MSGQUEUE, (mine[0], mine[0]))
        resource.prlimit(pid, RLIMIT_LOCKS, (mine[1], mine[1]))
    except OSError:
        return None
    return mine


def _base(pid: int, kind: int) -> int:
    _, hard = resource.prlimit(pid, kind)
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


class LivingAgents:
    """The tags of the agents that are alive."""

    def __init__(self) -> None:
        self._tags: set[Tag] = set()
        self._marks: set[bytes] = set()

    def add(self, tag: Tag | None, mark: bytes) -> None:
        """Add an agent; one that could not be tagged is known by its mark, which can be forged."""
        if tag is None:
            self._marks.add(mark)
        else:
            self._tags.add(tag)

    def remove(self, tag: Tag | None, mark: bytes) -> None:
        self._tags.discard(tag or (0, 0))
        self._marks.discard(mark)

    def own(self, pid: int) -> bool:
        """Whether that process came from one of them.

        Raises:
            OSError: it has ended.
        """
        if _limits_of(pid)[:2] in self._tags:
            return True
        return bool(self._marks) and not self._marks.isdisjoint(_environ_of(pid))


def end_strays(supervisor: int, host: int, living: LivingAgents) -> int:
    """End every process below *supervisor* that no living agent owns. Blocking: it reads /proc.

    The host and all below it are left alone: its agents, and those that are starting.

    Returns:
        How many were ended. Those of another user, and those that hang in the kernel, stay, and
        are logged.
    """
    return _end(lambda: _below(supervisor, lambda pid, top: top != host and not living.own(pid)))


def end_all_below(supervisor: int) -> int:
    """End every process below a *supervisor* that does not do so itself: it was stopped, say."""
    return _end(lambda: _below(supervisor, lambda _, top: True))


def end_orphans() -> int:
    """End what was below a supervisor that was killed, and became this process's children.

    That takes a subreaper: see :func:`shut_in`.
    """
    me = os.getpid()

    def find() -> Iterator[Process]:
        _reap_orphans()  # each time: they may be ending faster than they are ended
        return _below(me, lambda _, top: is_supervised(top))

    ended = _end(find)
    _reap_orphans()
    return ended


def _reap_orphans() -> None:
    """Collect the orphans of a supervisor that have ended. This process's own children are left."""
    for pid in supervise.children_of(os.getpid()):
        with contextlib.suppress(OSError):
            if is_supervised(pid):
                os.waitpid(pid, os.WNOHANG)


def kill_marked(mark: bytes) -> int:
    """End every process that has *mark*, ``NAME=value``, in its environment."""
    me = os.getpid()

    def find() -> Iterator[Process]:
        for process in _processes():
            with contextlib.suppress(OSError):
                if process.pid != me and mark in _environ_of(process.pid):
                    yield process

    return _end(find)


def shut_in() -> None:
    """Close this process to others of its user, and keep what its children leave below it."""
    libc = ctypes.CDLL(None, use_errno=True)
    supervise.shut_memory(libc)
    supervise.adopt_orphans(libc)


def is_supervised(pid: int) -> bool:
    """Whether a supervisor has started that process, or one that it comes from.

    Raises:
        OSError: it has ended.
    """
    theirs, ours = _limits_of(pid)[2], _limits_of(os.getpid())[2]
    return theirs != -1 and (ours == -1 or theirs < ours)


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether *ancestor* has started that process, or one that it comes from.

    Raises:
        OSError: it has ended.
    """
    while pid not in (0, ancestor):
        pid = _stat(pid).parent
    return pid == ancestor


# How it is done.


def _end(find: Callable[[], Iterator[Process]]) -> int:
    """End what *find* yields, until it yields nothing.

    All are stopped before the first is killed: none can start another when it sees that happen.
    """
    stopped: set[Process] = set()
    refused: set[Process] = set()
    ended: set[Process] = set()
    deadline = time.monotonic() + DEATH_SECS
    while True:
        found: set[Process] = set()
        fresh = False
        for process in find():
            if process in refused:
                continue
            found.add(process)
            if process not in stopped:
                stopped.add(process)
                fresh = True
                _signal(process, signal.SIGSTOP, refused)
        found -= refused
        is_late = time.monotonic() > deadline
        if fresh and not is_late:
            continue  # until a look round finds no new one
        for process in found:
            _signal(process, signal.SIGKILL, refused)
        ended |= found
        if not found or is_late:
            break
        time.sleep(DEATH_PAUSE_SECS)
    if refused or found:
        pids = sorted(process.pid for process in refused | found)
        logger.warning("processes that cannot be ended: %s", pids)
    return len(ended - refused - found)


def _signal(process: Process, number: int, refused: set[Process]) -> None:
    """Signal that process and no later one of its pid; note if that is not allowed."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return  # it has ended; or, until the next look round, no descriptor is left
    try:
        if _stat(process.pid).start == process.start:
            signal.pidfd_send_signal(descriptor, number)
    except PermissionError:
        refused.add(process)
    except OSError:
        return  # it has ended
    finally:
        os.close(descriptor)


def _below(ancestor: int, is_wanted: Callable[[int, int], bool]) -> Iterator[Process]:
    """The wanted processes below *ancestor*.

    Args:
        is_wanted: told a pid, and that of the child of *ancestor* that it is or lies below.
    """
    for pid in supervise.children_of(ancestor):
        # At once: it may be gone in a moment, after it has started another.
        with contextlib.suppress(OSError):
            stat = _stat(pid)
            if stat.is_alive and is_wanted(pid, pid):
                yield Process(pid, stat.start, stat.parent)
    parents: dict[int, int] = {}
    deeper: list[Process] = []
    for process in _processes():
        parents[process.pid] = process.parent
        if process.parent != ancestor:
            deeper.append(process)
        elif _is_wanted(is_wanted, process.pid, process.pid):
            yield process
    for process in deeper:
        top = process.pid
        for _ in range(len(parents)):  # a pid that was used again meanwhile may make a circle
            parent = parents.get(top)
            if parent == ancestor or parent is None:
                break
            top = parent
        if parents.get(top) == ancestor and _is_wanted(is_wanted, process.pid, top):
            yield process


def _is_wanted(is_wanted: Callable[[int, int], bool], pid: int, top: int) -> bool:
    try:
        return is_wanted(pid, top)
    except OSError:
        return False  # it has ended


def _processes() -> Iterator[Process]:
    """All processes; those that have ended are left out."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = _stat(int(name))
            if stat.is_alive:
                yield Process(int(name), stat.start, stat.parent)


class _Stat(NamedTuple):
    is_alive: bool
    parent: int
    start: int


def _stat(pid: int) -> _Stat:
    """What /proc/PID/stat says.

    Raises:
        OSError: it has ended.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    # A process whose first thread has ended looks like a zombie, and its other threads go on.
    is_alive = fields[0] not in b"ZX" or int(fields[17]) > 1
    return _Stat(is_alive, int(fields[1]), int(fields[19]))


def _limits_of(pid: int) -> tuple[int, int, int]:
    """The hard limits of message queues, file locks and resident memory; -1: there is none.

    Raises:
        OSError: it has ended.
    """
    try:
        queues, locks, memory = (resource.prlimit(pid, kind)[1] for kind in LIMITS)
    except PermissionError:  # another user's, of a setuid program say; but all may read this
        lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
        told = {line[:26].strip(): line[26:].split()[1] for line in lines[1:]}
        queues, locks, memory = (
            -1 if told[name] == "unlimited" else int(told[name]) for name in LIMITS.values()
        )
    return queues, locks, memory


def _environ_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError:
        return []
