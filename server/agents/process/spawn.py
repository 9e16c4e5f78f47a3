"""Starts programs for the server, each under a supervisor of its own.

Runs alone and without site-packages: ``python -I -S spawn.py CONTROL``. CONTROL is a socket to the
server. One byte on it requests a program and carries four descriptors: a socket for that program,
and its stdin, stdout and stderr. This process forks for each program, which takes a millisecond; a
new Python process takes fifteen or more.

The fork is the program's supervisor. On the program's socket it reads a line of JSON, ``{argv,
environ, cwd, keep, sandbox}``, starts the program and writes ``{pid}``; when the program has ended,
it writes ``{status}`` (negative for a signal). ``sandbox`` is the plan by which ``restrict.py``
restricts the program, or null. The byte ``T`` on that socket sends SIGTERM to the program, ``K``
sends SIGKILL. As a subreaper the supervisor inherits every orphan of the program,
also grandchildren in sessions of their own. It kills them after the program has ended, before it
writes the status, and also when the socket is closed, because the server has ended then.

The byte on CONTROL is ``+``, or ``k`` for ``keep``. With ``keep`` the program's descendants may
outlive it until this process ends. This process ends and kills all its descendants when CONTROL is
closed. The byte ``.`` on CONTROL sends SIGTERM to all children; this process ends when they have.
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

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from server.agents.process import supervise
    from server.sandbox import restrict
else:  # an isolated interpreter (-I) does not search the script's folder
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    import supervise

    sys.path[0] = os.path.join(sys.path[0], "../../sandbox")  # noqa: PTH118
    import restrict

    del sys.path[0]

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ORDERS = {ord("T"): signal.SIGTERM, ord("K"): signal.SIGKILL}
FINISH = b"."
KEEP = b"k"
CHANGED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

libc = ctypes.CDLL(None, use_errno=True)


def child_events() -> int:
    """Return a descriptor that becomes readable when a child has ended."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake_read


def wait_for(control: socket.socket, child_ended: int) -> bool:
    """Wait for the socket or a child. Return whether the socket is readable."""
    ready, _, _ = select.select([control.fileno(), child_ended], [], [])
    if child_ended in ready:
        os.read(child_ended, 4096)
    return control.fileno() in ready


def exec_program(program: dict[str, Any], stdio: list[int]) -> NoReturn:
    """Replace this process by the program."""
    for number in (*IGNORED, *CHANGED_BY_PYTHON, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    supervise.mark_as_supervised()
    for target, descriptor in enumerate(stdio):
        os.dup2(descriptor, target)
    argv = program["argv"]
    try:
        if program["sandbox"] is not None:
            restrict.enter(program["sandbox"], argv, program["environ"])
        os.chdir(program["cwd"])
        os.execve(argv[0], argv, program["environ"])  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    os._exit(127)


def start(program: dict[str, Any], stdio: list[int]) -> int:
    """Fork a process that becomes the program. Return its pid."""
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        libc.prctl(supervise.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        exec_program(program, stdio)
    for descriptor in stdio:
        os.close(descriptor)
    return pid


def collect(pid: int) -> int | None:
    """Reap all ended children. Return the exit status of *pid* if it is one of them."""
    return supervise.reap().get(pid)


def kill_rest() -> None:
    """Kill the program's remaining descendants. Reads /proc only if there are children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
        supervise.kill_all()


def read_line(control: socket.socket) -> tuple[bytes, bytes]:
    """Read the first line. Return it and the bytes after it; both are empty without a line end."""
    data = b""
    while b"\n" not in data:
        piece = control.recv(1 << 16)
        if not piece:
            return b"", b""
        data += piece
    line, _, rest = data.partition(b"\n")
    return line, rest


def supervise_program(control: socket.socket, stdio: list[int]) -> None:
    """Start the program that *control* describes, and report its end."""
    child_ended = child_events()
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
                os.kill(pid, ORDERS[order])  # not reaped yet, so the pid is not reused
            has_orders = wait_for(control, child_ended)
            if (status := collect(pid)) is not None:
                if not keep:
                    kill_rest()
                control.send(b'{"status":%d}\n' % status)
                return
            orders = control.recv(64) if has_orders else b""
            if has_orders and not orders:
                kill_rest()
                return


def main() -> int:
    """Serve requests until CONTROL is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    supervise.deny_inspection(libc)
    supervise.adopt_orphans(libc)
    for ignored in IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    child_ended = child_events()
    supervisors: set[int] = set()
    is_keeping = False
    finishing: set[int] | None = None
    while finishing is None or finishing:
        has_request = wait_for(control, child_ended)
        ended = supervise.reap()
        supervisors.difference_update(ended)
        if any(ended.values()) and not is_keeping:
            # A supervisor was killed; this process has inherited its children.
            supervise.kill_all(spared=supervisors)
            supervisors.intersection_update(supervise.children())
        if finishing is not None:
            finishing.difference_update(ended)
        if not has_request:
            continue
        request, passed, _, _ = socket.recv_fds(control, 1, 4, socket.MSG_CMSG_CLOEXEC)
        if not request:
            break  # the server has ended; the supervisors notice it, too
        if request == FINISH:
            finishing = set(supervise.children())
            for pid in finishing:
                os.kill(pid, signal.SIGTERM)  # not reaped yet, so the pid is not reused
            continue
        is_keeping = is_keeping or request == KEEP
        if (supervisor := os.fork()) != 0:
            supervisors.add(supervisor)
        else:
            control.close()
            with contextlib.suppress(ConnectionError):  # the server closed the program's socket
                supervise_program(socket.socket(fileno=passed[0]), passed[1:])
            os._exit(0)
        for descriptor in passed:
            os.close(descriptor)
    supervise.kill_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
