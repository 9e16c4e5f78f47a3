"""Attempts to escape from a sandbox, the short form that ``doctor`` runs.

Runs inside a sandbox and without site-packages: ``python -I -S attempts.py TARGETS``. TARGETS is a
JSON object that tells each attempt its target, so that no result depends on an unknown name or pid.
The program prints one JSON object: the name of each attempt to null if it succeeded, or to the
reason why it failed. An attempt fails by raising an exception.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import sys

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Targets = dict[str, Any]
    Attempt = Callable[[Targets], object]

PTRACE_ATTACH = 16
CLONE_NEWUSER, CLONE_PARENT = 0x10000000, 0x8000
ATTEMPTS: dict[str, Attempt] = {}
C_FUNCTIONS = ctypes.CDLL(None, use_errno=True)


def attempt(function: Attempt) -> Attempt:
    """Add a function to the attempts."""
    ATTEMPTS[function.__name__] = function
    return function


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library.

    Raises:
        OSError: it returned -1.
    """
    function = getattr(C_FUNCTIONS, name)
    function.restype = ctypes.c_long if name in ("ptrace", "syscall") else ctypes.c_int
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = function(*converted)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read_start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


@attempt
def read_database(targets: Targets) -> None:
    read_start(targets["database"])


@attempt
def truncate_database(targets: Targets) -> None:
    os.truncate(targets["database"], 1)


@attempt
def list_data_folder(targets: Targets) -> None:
    os.listdir(targets["data"])


@attempt
def create_in_data_folder(targets: Targets) -> None:
    with open(os.path.join(targets["data"], "planted"), "w"):
        pass


@attempt
def read_other_workspace(targets: Targets) -> None:
    read_start(targets["other_file"])


@attempt
def write_other_workspace(targets: Targets) -> None:
    with open(targets["other_file"], "a"):
        pass


@attempt
def read_other_home(targets: Targets) -> None:
    read_start(targets["other_home_file"])


@attempt
def link_other_file(targets: Targets) -> None:
    os.link(targets["other_file"], "stolen")
    read_start("stolen")


@attempt
def write_upload(targets: Targets) -> None:
    with open(targets["upload"], "a"):
        pass


@attempt
def read_operator_home(targets: Targets) -> None:
    read_start(targets["operator_file"])


@attempt
def connect_control_socket(targets: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(targets["unix_socket"])


@attempt
def connect_abstract_socket(targets: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + targets["abstract_socket"])


@attempt
def read_process_environment(targets: Targets) -> None:
    assert targets["secret"].encode() in read_all(f"/proc/{targets['pid']}/environ")


def read_all(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@attempt
def trace_process(targets: Targets) -> None:
    call("ptrace", PTRACE_ATTACH, targets["pid"], 0, 0)


@attempt
def signal_process(targets: Targets) -> None:
    # In a process namespace, another process may have this pid.
    assert targets["marker"].encode() in read_all(f"/proc/{targets['pid']}/cmdline")
    os.kill(targets["pid"], 0 if targets.get("is_gentle") else signal.SIGTERM)


@attempt
def limit_process(targets: Targets) -> None:
    resource.prlimit(targets["pid"], resource.RLIMIT_CORE, (0, 0))


@attempt
def lower_own_tag(targets: Targets) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (soft - 1, hard - 1))


@attempt
def create_user_namespace(targets: Targets) -> None:
    if os.fork() == 0:
        os._exit(C_FUNCTIONS.unshare(CLONE_NEWUSER) == 0)
    assert os.wait()[1] != 0


@attempt
def use_key_ring(targets: Targets) -> None:
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    call("syscall", number, 0, -3, 1)


@attempt
def share_memory(targets: Targets) -> None:
    assert call("shmget", targets["shared_memory_key"], 0, 0) == targets["shared_memory_id"]


def other_processes() -> list[int]:
    """The processes outside of this sandbox that `/proc` shows: those with another Unix session."""
    pids = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getsid(int(name)) != os.getsid(0):
                pids.append(int(name))
        except OSError:
            continue
    return pids


def any_process(function: Callable[[int], object]) -> None:
    """Carry out *function* with another process. Raises OSError if that fails with all of them."""
    for pid in other_processes():
        try:
            function(pid)
        except OSError:
            continue
        return
    raise OSError("refused")


@attempt
def read_any_environment(targets: Targets) -> None:
    any_process(lambda pid: read_start(f"/proc/{pid}/environ"))


@attempt
def read_any_memory(targets: Targets) -> None:
    any_process(lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)))


@attempt
def read_any_descriptor(targets: Targets) -> None:
    any_process(lambda pid: [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)])


@attempt
def signal_any_process(targets: Targets) -> None:
    any_process(lambda pid: os.kill(pid, 0))


@attempt
def connect_listed_abstract_socket(targets: Targets) -> None:
    with open("/proc/net/unix", errors="replace") as file:
        names = [line.split()[-1][1:] for line in file if " @" in line]
    wanted = tuple(targets.get("socket_names", [targets["abstract_socket"][:-1]]))
    for name in filter(lambda name: name.startswith(wanted), names):
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as client:
                client.settimeout(1)
                try:
                    return client.connect("\0" + name)
                except OSError:
                    continue
    raise OSError("refused")


@attempt
def read_through_exchanged_link(targets: Targets) -> None:
    with open("mine", "w"):
        pass
    if (child := os.fork()) == 0:
        while True:
            for target in ("mine", targets["other_file"]):
                os.symlink(target, "next")
                os.rename("next", "exchanged")
    try:
        for _ in range(2000):
            try:
                assert not read_start("exchanged")
            except OSError:
                continue
    except AssertionError:
        return  # it has read the other file
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise OSError("refused")


@attempt
def keep_privileges(targets: Targets) -> None:
    status = read_all("/proc/self/status").decode()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    kept = [name for name in ("CapEff", "CapPrm", "CapInh", "CapAmb") if int(fields[name], 16)]
    assert kept or not int(fields["NoNewPrivs"]) or int(fields["Seccomp"]) != 2


@attempt
def set_up_io_ring(targets: Targets) -> None:
    call("syscall", 425, 1, ctypes.create_string_buffer(120))


@attempt
def mount_file_system(targets: Targets) -> None:
    os.makedirs("mounted", exist_ok=True)
    call("mount", b"none", b"mounted", b"tmpfs", 0, None)
    call("umount", b"mounted")


@attempt
def send_by_raw_pair(targets: Targets) -> None:
    """SOCK_RAW is another name for Unix datagrams."""
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)
    ours.sendto(b"x", targets["datagram_socket"])


@attempt
def delay_others_by_lease(targets: Targets) -> None:
    """Others would wait 45 s to open the file, which may be one of the server's programs."""
    with open("leased", "w"):
        pass
    fcntl.fcntl(os.open("leased", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)


@attempt
def become_child_of_parent(targets: Targets) -> None:
    """A child of the process that starts agents would outlive this agent."""
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    if os.fork() == 0:
        os._exit(C_FUNCTIONS.syscall(number, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) == -1)
    assert os.wait()[1] == 0


def make_attempts(targets: Targets, attempts: dict[str, Attempt]) -> dict[str, str | None]:
    """Run *attempts*, and return why each one failed; None for one that succeeded."""
    results: dict[str, str | None] = {}
    for name, function in attempts.items():
        try:
            function(targets)
        except BaseException as error:  # noqa: BLE001 - however it fails, it fails
            results[name] = repr(error)[:200]
        else:
            results[name] = None
    return results


if __name__ == "__main__":
    print(json.dumps(make_attempts(json.loads(sys.argv[1]), ATTEMPTS)))
