"""Runs the acpx host and kills all its descendants when the host or the server ends.

Runs alone, without site-packages: ``python -I -S supervise.py LIFELINE FREEZE_MS HOST [ARG ...]``.
LIFELINE is the descriptor of a pipe that the server holds open; it reaches its end when the server
ends. As a subreaper this process inherits every orphan among its descendants, also grandchildren in
sessions of their own. When the host or the server has ended, for whatever reason, it kills all of
them and ends.

FREEZE_MS is 0, or the server is a node of a cluster and writes each of its beats to the pipe. If
there was no beat for that time, another node may soon run the sessions of this one: the agents are
stopped (SIGSTOP), also if the server hangs. At the next beat they continue.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
import sys
import time

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
UNLIMITED = 1 << 40
"""The base value of a resource limit that is unlimited."""
SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
SCHED_ATTR = struct.Struct("IIQiIQQQ")
"""Size, policy, flags, nice, priority, runtime (the time slice), deadline, period."""
BEAT = struct.Struct("=d")
"""A beat on the lifeline: the time of :func:`now` at which the server asked for it."""
SLICE_NS = 3_000_000
"""A slice a little longer than the kernel's default: processes with shorter slices preempt it."""


def deny_inspection(libc: ctypes.CDLL) -> None:
    """Deny other processes of this user access to this one's memory, environment, descriptors."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def adopt_orphans(libc: ctypes.CDLL) -> None:
    """Make this process a subreaper: orphans among its descendants become its children."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def mark_as_supervised() -> None:
    """Mark this process and its future descendants as descendants of a supervisor.

    The mark is a lowered limit of resident memory, which Linux ignores. Only root can raise it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_RSS)
    lower = (UNLIMITED if hard == resource.RLIM_INFINITY else hard) - 1
    resource.setrlimit(resource.RLIMIT_RSS, (lower, lower))


def reap() -> dict[int, int]:
    """Reap the ended children. Return pid to exit status, negative for a signal."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0] != 0:
            if os.WIFSTOPPED(child[1]):  # it has asked its parent to trace it
                os.kill(child[0], signal.SIGKILL)
                continue
            ended[child[0]] = os.waitstatus_to_exitcode(child[1])
    return ended


def children() -> list[int]:
    """The pids of this process's children. Requires that the process has one thread."""
    return children_of(os.getpid())


def children_of(pid: int) -> list[int]:
    """The pids of the children of *pid*'s first thread, which also inherits a subreaper's orphans.

    The kernel lists them in a few microseconds. Searching /proc takes so long that a process which
    forks and ends continuously has ended before it is found.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:  # the kernel lacks CONFIG_PROC_CHILDREN, or the process has ended
        return _search_children(pid)


def _search_children(pid: int) -> list[int]:
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                if int(stat.read().rpartition(b")")[2].split()[1]) == pid:
                    pids.append(int(name))
    return pids


def kill_all(spared: "AbstractSet[int]" = frozenset()) -> None:
    """Kill the children until none is left; the children of a killed child become ours.

    Leaves the *spared* children, and those that may not be killed, such as another user's.
    """
    foreign = set(spared)
    while pids := set(children()) - foreign:
        for pid in pids:
            try:
                _kill_group(pid)
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:
                foreign.add(pid)
        if pids - foreign:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
        reap()


def _kill_group(pid: int) -> None:
    """Kill the process group of a child if its session is not ours, so all in it descend from us.

    The kernel does this at once: no process of the group can fork in between. Killed one by one,
    processes that fork continuously survive for as long as they win that race.
    """
    if os.getsid(pid) != os.getsid(0):
        with contextlib.suppress(PermissionError):
            os.killpg(os.getpgid(pid), signal.SIGKILL)


def now() -> float:
    """Seconds of the clock that the beats carry. It also runs while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def signal_descendants(number: int) -> None:
    """Send a signal to all descendants, and again to those that were forked meanwhile."""
    reached: set[int] = set()
    while pids := _descendants() - reached:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        reached |= pids


def _descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    pids: set[int] = set()
    left = [os.getpid()]
    while left:
        below = children.get(left.pop(), [])
        pids.update(below)
        left += below
    return pids


class FreezeSwitch:
    """Stops all descendants if the server's beats stay away, and continues them at the next beat.

    Args:
        lifeline: the pipe on which the beats arrive.
        freeze_secs: the time without a beat; 0 for no limit.
    """

    def __init__(self, lifeline: int, freeze_secs: float) -> None:
        self._lifeline = lifeline
        self._freeze_secs = freeze_secs
        self._deadline = now() + freeze_secs
        self._is_frozen = False

    def timeout(self) -> "float | None":
        """Seconds until :meth:`check` must be called; None for never."""
        if not self._freeze_secs or self._is_frozen:
            return None
        return max(0.0, self._deadline - now())

    def read_beats(self) -> bool:
        """Read the beats that have arrived. Return False if the server has ended."""
        data = os.read(self._lifeline, BEAT.size * 512)  # a beat is written whole
        if not data:
            return False
        (sent_at,) = BEAT.unpack(data[-BEAT.size :])
        self._deadline = sent_at + self._freeze_secs
        return True

    def check(self) -> None:
        """Stop or continue the descendants, if it is time."""
        is_late = bool(self._freeze_secs) and now() >= self._deadline
        if is_late != self._is_frozen:
            self._is_frozen = is_late
            signal_descendants(signal.SIGSTOP if is_late else signal.SIGCONT)


def lower_priority(libc: ctypes.CDLL) -> None:
    """Let the server preempt this process and its future descendants.

    Otherwise this process, when the server wakes it, takes the core from the server and its
    threads, which have a prompt to store and other clients to serve. If the kernel does not permit
    the change or is older than 6.12, the server only runs a little later.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if number := SYS_SCHED_SETATTR.get(os.uname().machine):
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = (SCHED_ATTR.size, os.SCHED_BATCH, 0, nice, 0, SLICE_NS, 0, 0)
        libc.syscall(number, 0, SCHED_ATTR.pack(*attributes), 0)


def main() -> int:
    """Start the host, and wait for its end or the server's."""
    lifeline, freeze_ms, *command = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)
    deny_inspection(libc)
    adopt_orphans(libc)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)

    me = os.getpid()
    host = os.fork()
    if host == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        for restored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(restored, signal.SIG_DFL)
        os.close(lifeline)
        os.setsid()  # so that its group can be killed at once
        mark_as_supervised()
        lower_priority(libc)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
            os._exit(127)
    for inherited in (0, 1):  # only the host may hold them, or the server would not see its end
        os.close(inherited)

    switch = FreezeSwitch(lifeline, freeze_ms / 1000)
    while True:
        ready, _, _ = select.select([lifeline, wake_read], [], [], switch.timeout())
        if wake_read in ready:
            os.read(wake_read, 4096)
        if (lifeline in ready and not switch.read_beats()) or host in reap():
            kill_all()
            return 0
        switch.check()


if __name__ == "__main__":
    sys.exit(main())
