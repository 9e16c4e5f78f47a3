"""A process that tries to outlive the agent that started it: ``hostile.py KIND PID_FILE``.

It detaches from its parents, lowers every limit that identifies it, and executes itself again with
an empty environment. The kinds:

    sleeps       does nothing more
    stopped      stops itself
    headless     ends its first thread while another continues
    restless     forks continuously, each time into a session of its own
    watchful     two processes; each restarts the other when it has ended
    regicide     kills the supervisor, which is its parent after the detachment
    operator     requests a token at the operator's socket and writes the response to PID_FILE
    detached operator   the same, after the process that has connected has ended
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

RLIMIT_LOCKS = 10


def detach() -> None:
    for _ in range(2):
        if os.fork():
            os._exit(0)
        os.setsid()


def lower_limits() -> None:
    for kind in (resource.RLIMIT_MSGQUEUE, RLIMIT_LOCKS, resource.RLIMIT_RSS):
        _, hard = resource.getrlimit(kind)
        lower = (1 << 30 if hard == resource.RLIM_INFINITY else hard) - 7
        resource.setrlimit(kind, (lower, lower))


def write_file(pid_file: str, text: str = "") -> None:
    whole = Path(f"{pid_file}.new")
    whole.write_text(text or str(os.getpid()), encoding="utf-8")
    whole.replace(pid_file)


def watch_each_other() -> None:
    """Restart the other process whenever a pipe shows that it has ended; never returns."""
    while True:
        mine, theirs = os.pipe(), os.pipe()
        if not os.fork():
            mine, theirs = theirs, mine
        os.close(mine[0])
        os.close(theirs[1])
        os.read(theirs[0], 1)
        os.close(theirs[0])
        os.close(mine[1])


def ask_for_token(*, detached: bool) -> str:
    """Request a token at the socket in the data folder, two levels above the agent's folder."""
    connection = socket.socket(socket.AF_UNIX)
    os.chdir("../..")
    child = os.fork() if detached else 0
    if child == 0:
        connection.connect("control.sock")
        if detached:
            os._exit(0)
    else:
        os.waitpid(child, 0)
    body = b'{"name": "mine"}'
    head = "POST /admin/tokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
    return connection.recv(4096).decode()


def main() -> None:
    kind, pid_file = sys.argv[1:3]
    if len(sys.argv) == 3:
        detach()
        lower_limits()
        os.execve(sys.executable, [sys.executable, "-IS", *sys.argv, "again"], {})
    supervisor = os.getppid()
    if kind.endswith("operator"):
        write_file(pid_file, ask_for_token(detached=kind != "operator"))
    elif kind != "regicide":
        write_file(pid_file)
    match kind:
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "headless":
            threading.Thread(target=time.sleep, args=(1000,)).start()
            ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
        case "restless":
            while True:
                if os.fork():
                    os._exit(0)
                os.setsid()
        case "watchful":
            watch_each_other()
        case "regicide":
            os.kill(supervisor, signal.SIGKILL)
            while os.getppid() == supervisor:
                time.sleep(0.001)
            write_file(pid_file)
    time.sleep(1000)


main()
