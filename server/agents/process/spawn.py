"""Start programs for the server, each below a supervisor of its own.

Run alone and without site-packages: ``python -I -S spawn.py CONTROL``. CONTROL is
a socket to the server; a byte on it, ``+`` or ``k``, asks for a program, and brings a
socket for that program alone and its stdin, stdout and stderr. This process forks for each,
which takes a millisecond where a new Python takes fifteen or more.

The fork is the program's supervisor. It reads on the program's socket what to
start, ``{argv, environ, cwd, keep}`` on a line, and tells ``{pid}`` and in the end
``{status}`` (negative: the signal); ``T`` on it is SIGTERM for the program, ``K``
is SIGKILL. As a subreaper it inherits every orphan of the program, grandchildren
in sessions of their own too, and kills them when the program has ended, before it
tells so, or when the socket ends: then the server is gone.

With ``keep``, which the byte ``k`` says too, the program may leave processes: they stay
until this process ends. It does, and kills all below it, when CONTROL is closed; ``.``
on CONTROL is SIGTERM for what was left, and then it ends as soon as that has.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys

TYPE_CHECKING = False  # known to type checkers by its name
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from server.agents.process import supervise
else:  # a script's own folder is not on the path of an isolated interpreter (-I)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    import supervise

    del sys.path[0]

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ORDERS = {ord("T"): signal.SIGTERM, ord("K"): signal.SIGKILL}
FINISH = b"."
KEEP = b"k"
CHANGED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

libc = ctypes.CDLL(None, use_errno=True)


def wake_on_child() -> int:
    """A descriptor that is readable when a child has ended."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake_read


def wait_for(control: socket.socket, wake: int) -> bool:
    """Wait for the socket or a child; whether the socket has something."""
    ready, _, _ = select.select([control.fileno(), wake], [], [])
    if wake in ready:
        os.read(wake, 4096)
    return control.fileno() in ready


def run(program: dict[str, Any], stdio: list[int]) -> NoReturn:
    """Become the program."""
    for number in (*IGNORED, *CHANGED_BY_PYTHON, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    supervise.mark_as_supervised()
    for target, descriptor in enumerate(stdio):
        os.dup2(descriptor, target)
    argv = program["argv"]
    try:
        os.chdir(program["cwd"])
        os.execve(argv[0], argv, program["environ"])  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    os._exit(127)


def start(program: dict[str, Any], stdio: list[int]) -> int:
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        libc.prctl(supervise.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        run(program, stdio)
    for descriptor in stdio:
        os.close(descriptor)
    return pid


def collect(pid: int) -> int | None:
    """Reap what has ended; the status of *pid*, once it has."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            if ended[0] == pid:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


def kill_rest() -> None:
    """Kill what the program left. Most leave nothing, and then /proc need not be read."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
        supervise.kill_all()


def read_line(control: socket.socket) -> tuple[bytes, bytes]:
    """The first line, and what came behind it; nothing at all where it never ended."""
    data = b""
    while b"\n" not in data:
        piece = control.recv(1 << 16)
        if not piece:
            return b"", b""
        data += piece
    line, _, rest = data.partition(b"\n")
    return line, rest


def supervise_program(control: socket.socket, stdio: list[int]) -> None:
    wake = wake_on_child()
    with control:
        line, orders = read_line(control)
        if not line:
            return
        program = json.loads(line)
        keep = bool(program["keep"])
        libc.prctl(supervise.PR_SET_CHILD_SUBREAPER, not keep)
        pid = start(program, stdio)
        control.send(b'{"pid":%d}\n' % pid)
        while True:
            for order in orders:
                os.kill(pid, ORDERS[order])  # it is not reaped yet, so the pid is its own
            asked = wait_for(control, wake)
            if (status := collect(pid)) is not None:
                if not keep:
                    kill_rest()
                control.send(b'{"status":%d}\n' % status)
                return
            orders = control.recv(64) if asked else b""
            if asked and not orders:
                kill_rest()
                return


def main() -> int:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    supervise.shut_memory(libc)
    supervise.adopt_orphans(libc)
    for ignored in IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    wake = wake_on_child()
    supervisors: set[int] = set()
    is_keeping = False
    finishing: set[int] | None = None
    while finishing is None or finishing:
        is_asked = wait_for(control, wake)
        ended = supervise.reap()
        supervisors.difference_update(ended)
        if any(ended.values()) and not is_keeping:
            # A supervisor was killed: what was below it is below this process now.
            supervise.kill_all(spared=supervisors)
            supervisors.intersection_update(supervise.children())
        if finishing is not None:
            finishing.difference_update(ended)
        if not is_asked:
            continue
        asked, passed, _, _ = socket.recv_fds(control, 1, 4, socket.MSG_CMSG_CLOEXEC)
        if not asked:
            break  # the supervisors see it too
        if asked == FINISH:
            finishing = set(supervise.children())
            for pid in finishing:
                os.kill(pid, signal.SIGTERM)  # a child of ours, so it is not reaped yet
            continue
        is_keeping = is_keeping or asked == KEEP
        if (supervisor := os.fork()) != 0:
            supervisors.add(supervisor)
        else:
            control.close()
            with contextlib.suppress(ConnectionError):  # the server has gone, or wants no more
                supervise_program(socket.socket(fileno=passed[0]), passed[1:])
            os._exit(0)
        for descriptor in passed:
            os.close(descriptor)
    supervise.kill_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
