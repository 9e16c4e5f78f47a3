"""Runs the acpx host and kills all its descendants when the host or the server ends.

Runs alone and without site-packages: ``python -I -S supervise.py LIFELINE HOST [ARG ...]``.
LIFELINE is the descriptor of a pipe that the server holds open; it reaches its end when the server
ends. As a subreaper this process inherits every orphan among its descendants, also grandchildren in
sessions of their own. When the host or the server has ended, for whatever reason, it kills all of
them and ends.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
import sys

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
        while (one := os.waitpid(-1, os.WNOHANG))[0] != 0:
            ended[one[0]] = os.waitstatus_to_exitcode(one[1])
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
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                if int(stat.read().rpartition(b")")[2].split()[1]) == pid:
                    found.append(int(name))
    return found


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
    lifeline = int(sys.argv[1])
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
            os.execvp(sys.argv[2], sys.argv[2:])
        except OSError as error:
            os.write(2, f"{sys.argv[2]}: {error.strerror}\n".encode())
            os._exit(127)
    for inherited in (0, 1):  # only the host may hold them, or the server would not see its end
        os.close(inherited)

    while True:
        ready, _, _ = select.select([lifeline, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        if lifeline in ready or host in reap():
            kill_all()
            return 0


if __name__ == "__main__":
    sys.exit(main())
