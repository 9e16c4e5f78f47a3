"""Run the acpx host, and leave nothing behind when it or the server is gone.

Run alone and without site-packages: ``python -I -S supervise.py LIFELINE HOST
[ARG ...]``. LIFELINE is the descriptor of a pipe that the server holds open: at
its end the server is gone. As a subreaper this process inherits every orphan
below it, grandchildren in sessions of their own too; when the host has ended,
for whatever reason, or the server has, it kills all of them and ends.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
import sys

TYPE_CHECKING = False  # known to type checkers by its name
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
UNLIMITED = 1 << 40
SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
SCHED_ATTR = struct.Struct("IIQiIQQQ")
"""Size, policy, flags, nice, priority, runtime (the slice), deadline, period."""
SLICE_NS = 3_000_000
"""A little more than the kernel gives by itself: whoever has less is let in at once."""


def shut_memory(libc: ctypes.CDLL) -> None:
    """Close this process's memory, environment and descriptors to other processes of its user."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def adopt_orphans(libc: ctypes.CDLL) -> None:
    """Let the orphans of all that this process starts become its children."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def mark_as_supervised() -> None:
    """Mark this process, and all that it starts, as below a supervisor.

    The mark is a limit of the resident memory, which Linux ignores: it takes root to raise it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_RSS)
    lower = (UNLIMITED if hard == resource.RLIM_INFINITY else hard) - 1
    resource.setrlimit(resource.RLIMIT_RSS, (lower, lower))


def reap() -> dict[int, int]:
    """Collect the children that have ended: pid to exit status, negative for a signal."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG))[0] != 0:
            ended[one[0]] = os.waitstatus_to_exitcode(one[1])
    return ended


def children() -> list[int]:
    """The children of this process, which has one thread."""
    return children_of(os.getpid())


def children_of(pid: int) -> list[int]:
    """The children of the first thread of *pid*, which gets the orphans below a subreaper, too.

    The kernel lists them in a few microseconds. To look through all of /proc takes so long that a
    process which forks and ends all the time is gone before it is found.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or it has ended
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
    """Kill the children until there are none: those of a killed one become ours.

    The *spared* are left, and what may not be killed, as another user's.
    """
    foreign = set(spared)
    while pids := set(children()) - foreign:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:
                foreign.add(pid)
        if pids - foreign:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
        reap()


def give_way(libc: ctypes.CDLL) -> None:
    """Have this process, and all that it starts, let the server go first.

    Else it takes the core from the server that wakes it, and keeps it from the server's
    threads: but they have a prompt to store meanwhile, and others to serve. Where that
    may not be set, and on a kernel before 6.12, all runs a little later.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if number := SYS_SCHED_SETATTR.get(os.uname().machine):
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = (SCHED_ATTR.size, os.SCHED_BATCH, 0, nice, 0, SLICE_NS, 0, 0)
        libc.syscall(number, 0, SCHED_ATTR.pack(*attributes), 0)


def main() -> int:
    lifeline = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    shut_memory(libc)
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
        mark_as_supervised()
        give_way(libc)
        try:
            os.execvp(sys.argv[2], sys.argv[2:])
        except OSError as error:
            os.write(2, f"{sys.argv[2]}: {error.strerror}\n".encode())
            os._exit(127)
    for inherited in (0, 1):  # the host's own: the server must see their end when it ends
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
