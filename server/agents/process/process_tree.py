"""Finds and ends the processes that agents leave behind.

The processes of all agents are descendants of a supervisor (``supervise.py``), which inherits their
orphans. An orphan carries the tag of its agent and lives as long as that agent. Every orphan
without the tag of a living agent is ended, so a process gains nothing by changing its tag.
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

AGENT_VARIABLE = "AGENT_SESSION"
"""Environment variable of an agent and its descendants; its value is unique to the agent."""
HOST_VARIABLE = "ACPX_HOST"
"""Environment variable of an acpx host and its descendants; its value is unique to the server."""

MAX_NUMBER = 500_000
"""The largest number of an agent; more agents than this are never alive at once."""
MIN_LIMIT = 1 << 16
RLIMIT_LOCKS = 10
"""The limit of file locks. Linux has ignored it since 2.4, but processes still inherit it."""
LIMITS = {
    resource.RLIMIT_MSGQUEUE: "Max msgqueue size",
    RLIMIT_LOCKS: "Max file locks",
    resource.RLIMIT_RSS: "Max resident set",
}
"""The limits that carry tags, and their names in /proc/PID/limits."""
DEATH_SECS = 5.0
"""A process that is alive this long after its SIGKILL hangs in the kernel."""
DEATH_PAUSE_SECS = 0.002

RlimitTag = tuple[int, int]
"""The hard limits of POSIX message queues and of file locks, which agents do not use.

The number of an agent lowers the first limit and raises the second, and both stay below their
former values. Without root, a process can lower its limits but not raise them, so it cannot take on
the tag of another agent.
"""


class Process(NamedTuple):
    """A process; ``start`` (clock ticks since boot) tells it from a later one with its pid."""

    pid: int
    start: int
    parent: int


def tag_process(
    pid: int, number: int, about_to_tag: Callable[[RlimitTag], None] = lambda _: None
) -> RlimitTag | None:
    """Tag an agent. All processes that it starts inherit the tag.

    Args:
        pid: the agent, which has not started any process yet.
        number: 1 to :data:`MAX_NUMBER`; unique among the living agents.
        about_to_tag: is called before the process has the tag.

    Returns:
        The tag; None if the process has ended or the limits of this machine are too low.
    """
    try:
        queues, locks = (_limit_of(pid, kind) for kind in (resource.RLIMIT_MSGQUEUE, RLIMIT_LOCKS))
        tag = queues - number, locks - MAX_NUMBER + number
        if min(tag) < MIN_LIMIT:
            return None
        about_to_tag(tag)
        resource.prlimit(pid, resource.RLIMIT_MSGQUEUE, (tag[0], tag[0]))
        resource.prlimit(pid, RLIMIT_LOCKS, (tag[1], tag[1]))
    except OSError:
        return None
    return tag


def env_tag(variable: str, value: str) -> bytes:
    """Return the entry ``variable=value`` as ``/proc/PID/environ`` has it."""
    return f"{variable}={value}".encode()


def _limit_of(pid: int, kind: int) -> int:
    _, hard = resource.prlimit(pid, kind)
    return supervise.UNLIMITED if hard == resource.RLIM_INFINITY else hard


class LivingAgents:
    """The tags of the agents that are alive."""

    def __init__(self) -> None:
        self._rlimit_tags: set[RlimitTag] = set()
        self._env_tags: set[bytes] = set()

    def add(self, rlimit_tag: RlimitTag | None, env_tag: bytes) -> None:
        """Add an agent. Its *env_tag*, which can be forged, counts only if it has no rlimit tag."""
        if rlimit_tag is None:
            self._env_tags.add(env_tag)
        else:
            self._rlimit_tags.add(rlimit_tag)

    def remove(self, rlimit_tag: RlimitTag | None, env_tag: bytes) -> None:
        self._rlimit_tags.discard(rlimit_tag or (0, 0))
        self._env_tags.discard(env_tag)

    def owns(self, pid: int) -> bool:
        """Whether a living agent started that process or an ancestor of it.

        Raises:
            OSError: the process has ended.
        """
        if _limits_of(pid)[:2] in self._rlimit_tags:
            return True
        return bool(self._env_tags) and not self._env_tags.isdisjoint(_environ_of(pid))


def end_strays(supervisor: int, host: int, living: LivingAgents) -> int:
    """End every descendant of *supervisor* that no living agent owns. Blocking: it reads /proc.

    The host and its descendants are left alone: agents that run or are starting. If one of them has
    the tag of an agent that has ended, that agent has made it a child of the host (CLONE_PARENT).

    Returns:
        The number of processes that were ended. Processes of another user and processes that hang
        in the kernel are logged and not counted.
    """
    try:
        untagged = _limits_of(host)[:2]
    except OSError:  # the host has ended, and its supervisor ends all its descendants
        return 0

    def is_stray(pid: int, top: int) -> bool:
        return (top != host or _limits_of(pid)[:2] != untagged) and not living.owns(pid)

    return _end(lambda: _below(supervisor, is_stray))


def end_all_below(supervisor: int) -> int:
    """End every descendant of a *supervisor* that cannot do so itself, because it was stopped."""
    return _end(lambda: _below(supervisor, lambda _, top: True))


def end_orphans() -> int:
    """End the descendants of a killed supervisor, which this process has inherited.

    Requires :func:`isolate`, which makes this process a subreaper.
    """
    me = os.getpid()

    def find() -> Iterator[Process]:
        _reap_orphans()  # on every search: processes may end and start others meanwhile
        return _below(me, lambda _, top: is_supervised(top))

    ended = _end(find)
    _reap_orphans()
    return ended


def _reap_orphans() -> None:
    """Reap the ended orphans of supervisors, but no child that this process started itself."""
    for pid in supervise.children_of(os.getpid()):
        with contextlib.suppress(OSError):
            if is_supervised(pid):
                os.waitpid(pid, os.WNOHANG)


def end_tagged(tag: bytes, timeout: float = DEATH_SECS) -> int:
    """End every process that has *tag*, made by :func:`env_tag`, in its environment.

    Args:
        timeout: seconds until a process that does not die counts as hanging in the kernel.

    Returns:
        The number of processes that were ended.
    """
    me = os.getpid()

    def find() -> Iterator[Process]:
        for process in _processes():
            with contextlib.suppress(OSError):
                if process.pid != me and tag in _environ_of(process.pid):
                    yield process

    return _end(find, timeout)


def isolate() -> None:
    """Deny other processes of this user access to this one, and make it a subreaper."""
    libc = ctypes.CDLL(None, use_errno=True)
    supervise.deny_inspection(libc)
    supervise.adopt_orphans(libc)


def is_supervised(pid: int) -> bool:
    """Whether that process is a descendant of a supervisor.

    Raises:
        OSError: the process has ended.
    """
    theirs, ours = _limits_of(pid)[2], _limits_of(os.getpid())[2]
    return theirs != -1 and (ours == -1 or theirs < ours)


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether that process is *ancestor* or a descendant of it.

    Raises:
        OSError: the process has ended.
    """
    while pid not in (0, ancestor):
        pid = _stat(pid).parent
    return pid == ancestor


# Ending and searching.


def _end(find: Callable[[], Iterator[Process]], timeout: float = DEATH_SECS) -> int:
    """End the processes that *find* yields, until it yields none.

    All are stopped before the first is killed, so that none can react to a death by starting
    another process.
    """
    stopped: set[Process] = set()
    refused: set[Process] = set()
    ended: set[Process] = set()
    deadline = time.monotonic() + timeout
    while True:
        processes: set[Process] = set()
        fresh = False
        for process in find():
            if process in refused:
                continue
            processes.add(process)
            if process not in stopped:
                stopped.add(process)
                fresh = True
                _signal(process, signal.SIGSTOP, refused)
        processes -= refused
        is_late = time.monotonic() > deadline
        if fresh and not is_late:
            continue  # until a search finds no new process
        for process in processes:
            _signal(process, signal.SIGKILL, refused)
        ended |= processes
        if not processes or is_late:
            break
        time.sleep(DEATH_PAUSE_SECS)
    if refused or processes:
        pids = sorted(process.pid for process in refused | processes)
        logger.warning("processes cannot be ended: %s", pids)
    return len(ended - refused - processes)


def _signal(process: Process, number: int, refused: set[Process]) -> None:
    """Signal that process and no later one of its pid. Add it to *refused* if not permitted."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return  # the process has ended, or no descriptor is free until the next search
    try:
        if _stat(process.pid).start == process.start:
            signal.pidfd_send_signal(descriptor, number)
    except PermissionError:
        refused.add(process)
    except OSError:
        return  # the process has ended
    finally:
        os.close(descriptor)


def _below(ancestor: int, is_wanted: Callable[[int, int], bool]) -> Iterator[Process]:
    """Yield the descendants of *ancestor* for which *is_wanted* returns True.

    Args:
        is_wanted: called with a pid, and with the pid of the child of *ancestor* that the process
            is or descends from.
    """
    for pid in supervise.children_of(ancestor):
        # Read it immediately: it may start another process and end.
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
        for _ in range(len(parents)):  # a reused pid may produce a cycle
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
        return False  # the process has ended


def _processes() -> Iterator[Process]:
    """Yield all processes, without zombies."""
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
    """Read /proc/PID/stat.

    Raises:
        OSError: the process has ended.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    # A process looks like a zombie if its first thread has ended while others still run.
    is_alive = fields[0] not in b"ZX" or int(fields[17]) > 1
    return _Stat(is_alive, int(fields[1]), int(fields[19]))


def _limits_of(pid: int) -> tuple[int, int, int]:
    """The hard limits of message queues, file locks and resident memory; -1 for no limit.

    Raises:
        OSError: the process has ended.
    """
    try:
        queues, locks, memory = (resource.prlimit(pid, kind)[1] for kind in LIMITS)
    except PermissionError:  # another user's process, such as a setuid program
        lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
        hard = {line[:26].strip(): line[26:].split()[1] for line in lines[1:]}
        queues, locks, memory = (
            -1 if hard[name] == "unlimited" else int(hard[name]) for name in LIMITS.values()
        )
    return queues, locks, memory


def _environ_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError:
        return []
