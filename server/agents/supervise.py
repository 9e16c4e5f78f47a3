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
import select
import signal
import struct
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
SCHED_ATTR = struct.Struct("IIQiIQQQ")
"""Size, policy, flags, nice, priority, runtime (the slice), deadline, period."""
SLICE_NS = 3_000_000
"""A little more than the kernel gives by itself: whoever has less is let in at once."""


def reap() -> set[int]:
    """Collect the children that have ended."""
    ended = set()
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            ended.add(pid)
    return ended


def children() -> list[int]:
    me = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                if int(stat.read().rpartition(b")")[2].split()[1]) == me:
                    found.append(int(name))
    return found


def kill_all() -> None:
    """Kill the children until there are none: those of a killed one become ours.

    What may not be killed, as another user's, is left.
    """
    foreign: set[int] = set()
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
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
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
