"""Attempts to escape from a sandbox, the long form: ``python -I -S corpus.py TARGETS``.

Runs inside a sandbox, like the short form (``server/sandbox/attempts.py``), which it contains, and
prints the results in the same way. An attempt that succeeds changes nothing but the targets that
were made for it: outside of them it opens a file for writing, and writes nothing.

With ``--then``, further arguments name a program that this one becomes at the end; the results are
then written to ``results.json`` in the working directory.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import runpy
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHORT = runpy.run_path(
    str(Path(__file__).parents[2] / "server" / "sandbox" / "attempts.py"), run_name="attempts"
)
Targets = dict[str, Any]
Attempt = Callable[[Targets], object]
ATTEMPTS: dict[str, Attempt] = dict(SHORT["ATTEMPTS"])
call, run, read_all = SHORT["call"], SHORT["make_attempts"], SHORT["read_all"]
# Before any attempt: this one's own descriptor for the listing is closed again.
INHERITED = sorted(
    number
    for number in map(int, os.listdir("/proc/self/fd"))
    if number > 2 and os.path.exists(f"/proc/self/fd/{number}")
)
IS_X86 = os.uname().machine == "x86_64"

OPEN = {
    "bwrap": {"connect_loopback"},
    "landlock": {
        "connect_loopback",
        "read_command_line",
        "see_existence_of_other_file",
        "change_mode_of_other_file",
        "change_times_of_other_file",
        "watch_other_folder",
    },
}
"""The attempts that succeed at a level; docs/explanation/security.md lists them."""


def attempt(function: Attempt) -> Attempt:
    assert function.__name__ not in ATTEMPTS
    ATTEMPTS[function.__name__] = function
    return function


def system_call(x86_64: int, aarch64: int, *arguments: Any) -> int:
    result: int = call("syscall", x86_64 if IS_X86 else aarch64, *arguments)
    return result


def write_to(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def require_victim(targets: Targets) -> int:
    """The pid of the other process, if it is visible under this number."""
    pid: int = targets["pid"]
    assert targets["marker"].encode() in read_all(f"/proc/{pid}/cmdline")
    return pid


# Files.


@attempt
def list_workspaces(targets: Targets) -> None:
    assert Path(targets["other_file"]).parent.name in os.listdir(
        Path(targets["data"], "workspaces")
    )


@attempt
def list_other_workspace(targets: Targets) -> None:
    os.listdir(Path(targets["other_file"]).parent)


@attempt
def rename_other_file(targets: Targets) -> None:
    os.rename(targets["other_file"], targets["other_file"] + ".moved")


@attempt
def delete_other_file(targets: Targets) -> None:
    os.unlink(targets["other_file"])


@attempt
def delete_other_folder(targets: Targets) -> None:
    os.rmdir(targets["empty_folder"])


@attempt
def move_other_file_here(targets: Targets) -> None:
    os.rename(targets["other_file"], "stolen")


@attempt
def create_in_other_workspace(targets: Targets) -> None:
    Path(targets["other_file"]).with_name("planted").touch()


@attempt
def link_into_other_workspace(targets: Targets) -> None:
    os.symlink("/etc/passwd", Path(targets["other_file"]).with_name("link"))


@attempt
def truncate_other_file(targets: Targets) -> None:
    os.truncate(targets["other_file"], 0)


@attempt
def read_through_symbolic_link(targets: Targets) -> None:
    os.symlink(targets["other_file"], "link")
    Path("link").read_bytes()


@attempt
def read_through_parents(targets: Targets) -> None:
    Path("../../../" + targets["database"]).read_bytes()


@attempt
def climb_by_descriptors(targets: Targets) -> None:
    descriptor = os.open(".", os.O_PATH)
    for _ in range(40):
        descriptor = os.open("..", os.O_PATH, dir_fd=descriptor)
    os.open(targets["database"].lstrip("/"), os.O_RDONLY, dir_fd=descriptor)


@attempt
def read_through_process_root(targets: Targets) -> None:
    Path(f"/proc/{targets['pid']}/root{targets['database']}").read_bytes()


@attempt
def read_through_own_root(targets: Targets) -> None:
    Path(f"/proc/self/root{targets['database']}").read_bytes()


@attempt
def read_through_process_cwd(targets: Targets) -> None:
    os.listdir(f"/proc/{require_victim(targets)}/cwd")


@attempt
def use_inherited_descriptor(targets: Targets) -> None:
    assert INHERITED


@attempt
def open_by_handle(targets: Targets) -> None:
    system_call(304, 265, -100, b"\0" * 128, 0)


@attempt
def read_log_of_database(targets: Targets) -> None:
    Path(targets["database"] + "-wal").read_bytes()


@attempt
def replace_lock_by_link(targets: Targets) -> None:
    os.symlink(targets["operator_file"], Path(targets["data"], "lock"))


@attempt
def read_environment_file(targets: Targets) -> None:
    Path(targets["environment_file"]).read_bytes()


@attempt
def write_operator_home(targets: Targets) -> None:
    Path(targets["operator_file"]).with_name(".bashrc").write_text("evil")


@attempt
def list_operator_home(targets: Targets) -> None:
    assert "id_ed25519" in os.listdir(Path(targets["operator_file"]).parent)


@attempt
def list_uploads(targets: Targets) -> None:
    os.listdir(Path(targets["data"], "uploads"))


@attempt
def read_upload_of_other_app(targets: Targets) -> None:
    Path(targets["upload"]).read_bytes()


@attempt
def replace_own_upload(targets: Targets) -> None:
    Path("new").write_text("changed")
    os.replace("new", targets["own_upload"])


@attempt
def write_own_upload(targets: Targets) -> None:
    os.chmod(targets["own_upload"], 0o600)
    Path(targets["own_upload"]).write_text("changed")


@attempt
def truncate_own_upload(targets: Targets) -> None:
    os.truncate(targets["own_upload"], 0)


@attempt
def delete_own_upload(targets: Targets) -> None:
    os.unlink(targets["own_upload"])


@attempt
def replace_own_home(targets: Targets) -> None:
    os.rename(targets["own_home"], targets["own_home"] + ".old")


@attempt
def read_shared_temporary_file(targets: Targets) -> None:
    Path(targets["temporary_file"]).read_bytes()


@attempt
def write_shared_temporary_file(targets: Targets) -> None:
    write_to(targets["temporary_file"])


@attempt
def read_shared_memory_file(targets: Targets) -> None:
    Path(targets["shared_memory_file"]).read_bytes()


@attempt
def read_password_hashes(targets: Targets) -> None:
    Path("/etc/shadow").read_bytes()


@attempt
def write_system_configuration(targets: Targets) -> None:
    write_to("/etc/passwd")


@attempt
def write_program(targets: Targets) -> None:
    write_to("/usr/bin/env")


@attempt
def write_server_code(targets: Targets) -> None:
    write_to(str(Path(__file__).parents[2] / "server" / "__init__.py"))


@attempt
def write_agents_packages(targets: Targets) -> None:
    write_to(str(Path(__file__).parents[2] / "node_modules" / "acpx" / "package.json"))


@attempt
def change_mode_of_other_file(targets: Targets) -> None:
    os.chmod(targets["other_file"], 0o644)


@attempt
def change_times_of_other_file(targets: Targets) -> None:
    os.utime(targets["other_file"])


@attempt
def see_existence_of_other_file(targets: Targets) -> None:
    os.stat(targets["other_file"])


@attempt
def watch_other_folder(targets: Targets) -> None:
    descriptor = call("inotify_init")
    call("inotify_add_watch", descriptor, os.fsencode(Path(targets["other_file"]).parent), 0x100)


# Devices and kernel interfaces.


@attempt
def create_block_device(targets: Targets) -> None:
    os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(254, 0))


@attempt
def read_disk(targets: Targets) -> None:
    for name in ("vda", "sda", "nvme0n1", "xvda"):
        if os.path.exists(f"/dev/{name}"):
            return os.close(os.open(f"/dev/{name}", os.O_RDONLY))
    raise OSError("no disk")


@attempt
def read_kernel_memory(targets: Targets) -> None:
    os.close(os.open("/dev/mem", os.O_RDONLY))


@attempt
def read_kernel_log(targets: Targets) -> None:
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))


@attempt
def write_kernel_parameter(targets: Targets) -> None:
    write_to("/proc/sys/kernel/hostname")


@attempt
def request_by_system_key(targets: Targets) -> None:
    write_to("/proc/sysrq-trigger")


@attempt
def write_device_settings(targets: Targets) -> None:
    write_to("/sys/kernel/mm/transparent_hugepage/enabled")


@attempt
def leave_control_group(targets: Targets) -> None:
    for path in ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"):
        if os.path.exists(path):
            return write_to(path)
    raise OSError("no control group")


@attempt
def type_into_terminal(targets: Targets) -> None:
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, 0x5412, b"x")
    os.close(controller)


@attempt
def add_key(targets: Targets) -> None:
    system_call(248, 217, b"user", b"name", b"value", 5, -4)


@attempt
def request_key(targets: Targets) -> None:
    try:
        system_call(249, 218, b"user", b"no such key", 0, -4)
    except OSError as error:
        assert error.errno == 126  # the kernel has searched


@attempt
def set_up_io_ring(targets: Targets) -> None:
    system_call(425, 425, 1, ctypes.create_string_buffer(120))


@attempt
def load_bpf(targets: Targets) -> None:
    system_call(321, 280, 0, struct.pack("IIIII", 2, 4, 4, 1, 0) + bytes(100), 120)


@attempt
def open_performance_counter(targets: Targets) -> None:
    attributes = struct.pack("IIQ", 1, 112, 0) + bytes(96)
    system_call(298, 241, attributes, 0, -1, -1, 0)


@attempt
def handle_page_faults(targets: Targets) -> None:
    system_call(323, 282, 1)


@attempt
def load_module(targets: Targets) -> None:
    system_call(313, 273, os.open("/dev/null", os.O_RDONLY), b"", 0)


# Namespaces and mounts.


def in_child(function: Callable[[], object]) -> None:
    """Carry out *function* in a child. Raises OSError if it fails there."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise OSError("refused")


@attempt
def create_mount_namespace(targets: Targets) -> None:
    in_child(lambda: call("unshare", 0x20000))


@attempt
def create_process_namespace(targets: Targets) -> None:
    in_child(lambda: call("unshare", 0x10000000 | 0x20000000))


@attempt
def clone_into_user_namespace(targets: Targets) -> None:
    def clone() -> None:
        if system_call(56, 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
            os._exit(0)

    in_child(clone)


@attempt
def clone_with_structure(targets: Targets) -> None:
    arguments = struct.pack("8Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)

    def clone() -> None:
        if system_call(435, 435, arguments, len(arguments)) == 0:
            os._exit(0)

    in_child(clone)


@attempt
def enter_namespace(targets: Targets) -> None:
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY)
    call("setns", descriptor, 0)


@attempt
def mount_file_system(targets: Targets) -> None:
    os.makedirs("mounted", exist_ok=True)
    call("mount", b"none", b"mounted", b"tmpfs", 0, None)
    call("umount", b"mounted")


@attempt
def mount_by_descriptor(targets: Targets) -> None:
    system_call(428, 428, -100, b"/", 1)


@attempt
def change_root(targets: Targets) -> None:
    in_child(lambda: os.chroot("."))


# Other processes.


@attempt
def read_process_memory(targets: Targets) -> None:
    os.close(os.open(f"/proc/{require_victim(targets)}/mem", os.O_RDONLY))


@attempt
def read_process_map(targets: Targets) -> None:
    assert read_all(f"/proc/{require_victim(targets)}/maps")


@attempt
def list_process_descriptors(targets: Targets) -> None:
    names = os.listdir(f"/proc/{require_victim(targets)}/fd")
    os.readlink(f"/proc/{targets['pid']}/fd/{names[0]}")


@attempt
def copy_process_memory(targets: Targets) -> None:
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("QQ", ctypes.addressof(buffer), 8)
    try:
        system_call(310, 270, targets["pid"], vector, 1, struct.pack("QQ", 4096, 8), 1, 0)
    except OSError as error:
        assert error.errno == 14  # only the address is wrong


@attempt
def take_process_descriptor(targets: Targets) -> None:
    descriptor = os.pidfd_open(targets["pid"])
    system_call(438, 438, descriptor, 0, 0)


@attempt
def read_command_line(targets: Targets) -> None:
    require_victim(targets)


@attempt
def signal_by_descriptor(targets: Targets) -> None:
    signal.pidfd_send_signal(os.pidfd_open(require_victim(targets)), 0)


@attempt
def signal_process_group(targets: Targets) -> None:
    os.killpg(require_victim(targets), 0)


@attempt
def signal_thread(targets: Targets) -> None:
    pid = require_victim(targets)
    system_call(234, 131, pid, pid, 0)


@attempt
def signal_by_file_owner(targets: Targets) -> None:
    pid = require_victim(targets)
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
    fcntl.fcntl(reader, 10, signal.SIGTERM)  # F_SETSIG
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writer, b"x")
    assert targets["is_gentle"] is None  # the victim shows whether it received the signal


@attempt
def change_process_priority(targets: Targets) -> None:
    os.setpriority(os.PRIO_PROCESS, targets["pid"], 19)


@attempt
def change_user_priority(targets: Targets) -> None:
    victim = require_victim(targets)
    before = os.getpriority(os.PRIO_PROCESS, victim)
    os.setpriority(os.PRIO_USER, os.getuid(), before)


@attempt
def change_process_scheduler(targets: Targets) -> None:
    os.sched_setscheduler(targets["pid"], os.SCHED_IDLE, os.sched_param(0))


@attempt
def change_process_affinity(targets: Targets) -> None:
    os.sched_setaffinity(targets["pid"], os.sched_getaffinity(0))


@attempt
def change_process_io_priority(targets: Targets) -> None:
    system_call(251, 30, 1, targets["pid"], 3 << 13)


@attempt
def make_process_killable_first(targets: Targets) -> None:
    Path(f"/proc/{require_victim(targets)}/oom_score_adj").write_text("1000")


@attempt
def lower_tag_of_memory(targets: Targets) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_RSS)
    top = (1 << 40) if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_RSS, (top - 2, top - 2))


# Sockets and shared objects.


@attempt
def send_to_named_socket(targets: Targets) -> None:
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(b"x", targets["datagram_socket"])


@attempt
def send_to_abstract_socket(targets: Targets) -> None:
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(b"x", "\0" + targets["abstract_datagram_socket"])


@attempt
def capture_packets(targets: Targets) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


@attempt
def use_kernel_ciphers(targets: Targets) -> None:
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()


@attempt
def reach_hypervisor(targets: Targets) -> None:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


@attempt
def read_kernel_events(targets: Targets) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15).close()


@attempt
def attach_shared_memory(targets: Targets) -> None:
    assert targets["shared_memory_id"] >= 0
    call("shmctl", targets["shared_memory_id"], 2, ctypes.create_string_buffer(256))


@attempt
def open_message_queue(targets: Targets) -> None:
    call("mq_open", targets["message_queue"].encode(), os.O_RDONLY)


@attempt
def connect_loopback(targets: Targets) -> None:
    socket.create_connection(("127.0.0.1", targets["tcp_port"]), 2).close()


def main() -> None:
    results = run(json.loads(sys.argv[1]), ATTEMPTS)
    if "--then" not in sys.argv:
        sys.stdout.write(json.dumps(results))
        return
    Path("results.json").write_text(json.dumps(results))
    argv = sys.argv[sys.argv.index("--then") + 1 :]
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
