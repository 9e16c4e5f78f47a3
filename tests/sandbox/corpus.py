"""Attempts to escape from a sandbox, the long form: ``python -I -S corpus.py TARGETS``.

Runs inside a sandbox, like the short form (``server/sandbox/attempts.py``), which it contains, and
prints the results in the same way. It is one file, because a sandbox lets a program read only its
own script. An attempt that succeeds changes nothing but the targets that
were made for it: outside of them it opens a file for writing, and writes nothing.

With ``--list`` it prints the table: what is attempted, and at which levels that must fail.

With ``--then``, further arguments name a program that this one becomes at the end; the results are
then written to ``results.json`` in the working directory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import runpy
import signal
import socket
import stat
import struct
import subprocess
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
        "open_terminal_of_other",
    },
}
"""The attempts that succeed at a level; docs/explanation/security.md lists them."""
PERHAPS = {"landlock": {"label_other_file"}}
"""The attempts that succeed at a level if the file system can carry them out."""


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
    copy_memory(310, 270, targets)


def copy_memory(on_x86: int, on_arm: int, targets: Targets) -> None:
    """Copy 8 bytes from or to an address that no process has: only that may be the error."""
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("QQ", ctypes.addressof(buffer), 8)
    there = struct.pack("QQ", 4096, 8)
    try:
        system_call(on_x86, on_arm, targets["pid"], vector, 1, there, 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


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


REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)


def reach(x86_64: int, aarch64: int, *arguments: Any) -> None:
    """Call the kernel with arguments that it rejects. Raises OSError if it does not see them."""
    try:
        system_call(x86_64, aarch64, *arguments)
    except OSError as error:
        if error.errno in REFUSALS:
            raise


def first_of(paths: list[str], flags: int = os.O_RDONLY) -> None:
    """Open one of the files. Raises OSError if none can be opened."""
    for path in paths:
        try:
            return os.close(os.open(path, flags | os.O_NONBLOCK))
        except OSError:
            continue
    raise OSError("refused")


# More about files.


@attempt
def read_by_program_in_memory(targets: Targets) -> None:
    descriptor = os.memfd_create("program", 0)
    os.write(descriptor, Path("/bin/cat").read_bytes())
    path = f"/proc/self/fd/{descriptor}"
    argv = [path, targets["database"]]
    subprocess.run(argv, check=True, pass_fds=[descriptor], stdout=subprocess.DEVNULL)


@attempt
def read_by_script_interpreter(targets: Targets) -> None:
    subprocess.run(["/bin/sh", "-c", 'read x < "$0"', targets["operator_file"]], check=True)


@attempt
def reopen_path_descriptor(targets: Targets) -> None:
    descriptor = os.open(targets["other_file"], os.O_PATH)
    Path(f"/proc/self/fd/{descriptor}").read_bytes()


@attempt
def link_path_descriptor(targets: Targets) -> None:
    descriptor = os.open(targets["other_file"], os.O_PATH)
    os.link(f"/proc/self/fd/{descriptor}", "linked", follow_symlinks=True)
    Path("linked").read_bytes()


@attempt
def read_after_change_of_folder(targets: Targets) -> None:
    before = os.open(".", os.O_PATH)
    try:
        os.chdir(Path(targets["other_file"]).parent)
        Path("notes").read_bytes()
    finally:
        os.fchdir(before)


@attempt
def exchange_with_other_file(targets: Targets) -> None:
    Path("own").touch()
    other = os.fsencode(targets["other_file"])
    system_call(316, 276, -100, b"own", -100, other, 2)


@attempt
def link_own_file_into_other_workspace(targets: Targets) -> None:
    Path("bait").touch()
    os.link("bait", Path(targets["other_file"]).with_name("bait"))


@attempt
def create_pipe_in_other_workspace(targets: Targets) -> None:
    os.mkfifo(Path(targets["other_file"]).with_name("pipe"))


@attempt
def label_other_file(targets: Targets) -> None:
    os.setxattr(targets["other_file"], "user.label", b"x")


@attempt
def listen_in_data_folder(targets: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(Path(targets["data"], "planted.sock")))


@attempt
def replace_control_socket(targets: Targets) -> None:
    Path(targets["unix_socket"]).rename(targets["unix_socket"] + ".old")


@attempt
def plant_program_on_path(targets: Targets) -> None:
    for folder in [*os.environ.get("PATH", "").split(":"), str(Path(sys.executable).parent)]:
        try:
            Path(folder, "planted-by-an-agent").touch()
        except OSError:
            continue
        return Path(folder, "planted-by-an-agent").unlink()
    raise OSError("refused")


@attempt
def plant_module_of_python(targets: Targets) -> None:
    planted = Path(os.__file__).with_name("planted_by_an_agent.py")
    planted.touch()
    planted.unlink()


@attempt
def read_kernel_image(targets: Targets) -> None:
    first_of(["/proc/kcore", "/dev/port"])


@attempt
def open_other_device(targets: Targets) -> None:
    names = (
        "kvm",
        "fuse",
        "net/tun",
        "userfaultfd",
        "vhost-net",
        "loop-control",
        "uinput",
        "snapshot",
    )
    first_of([f"/dev/{name}" for name in names], os.O_RDWR)


@attempt
def write_device_folder(targets: Targets) -> None:
    os.close(os.open("/dev/planted", os.O_WRONLY | os.O_CREAT))
    Path("/dev/planted").unlink()


@attempt
def fill_memory_with_files(targets: Targets) -> None:
    os.close(os.open("/dev/shm/planted", os.O_WRONLY | os.O_CREAT))
    Path("/dev/shm/planted").unlink()
    assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize > 1 << 30


@attempt
def read_kernel_traces(targets: Targets) -> None:
    paths = ("/sys/kernel/tracing", "/sys/kernel/debug", "/sys/fs/bpf", "/sys/fs/pstore")
    assert any(os.listdir(path) for path in paths if os.access(path, os.R_OK))


def open_terminal(targets: Targets) -> int:
    descriptor = os.open(targets["terminal"], os.O_RDWR | os.O_NOCTTY)
    assert os.fstat(descriptor).st_dev == targets["terminal_device"]
    return descriptor


@attempt
def open_terminal_of_other(targets: Targets) -> None:
    os.close(open_terminal(targets))


@attempt
def type_into_terminal_of_other(targets: Targets) -> None:
    fcntl.ioctl(open_terminal(targets), 0x5412, b"x")


@attempt
def paste_into_terminal(targets: Targets) -> None:
    _, terminal = os.openpty()
    try:
        fcntl.ioctl(terminal, 0x541C, b"\3")
    except OSError as error:
        if error.errno in REFUSALS:
            raise


# More about other processes.


@attempt
def read_descriptor_of_process(targets: Targets) -> None:
    os.close(os.open(f"/proc/{targets['pid']}/fd/1", os.O_WRONLY | os.O_NONBLOCK))
    assert targets["marker"] in Path(f"/proc/{targets['pid']}/cmdline").read_text()


@attempt
def read_other_details_of_process(targets: Targets) -> None:
    for name in ("io", "auxv", "syscall", "stack", "personality", "smaps_rollup"):
        try:
            assert Path(f"/proc/{targets['pid']}/{name}").read_bytes()
        except (OSError, AssertionError):
            continue
        assert targets["marker"] in Path(f"/proc/{targets['pid']}/cmdline").read_text()
        return
    raise OSError("refused")


@attempt
def read_environment_of_thread(targets: Targets) -> None:
    pid = targets["pid"]
    assert targets["secret"] in Path(f"/proc/{pid}/task/{pid}/environ").read_text()


@attempt
def read_root_of_any_process(targets: Targets) -> None:
    paths = [f"/proc/{pid}/{folder}" for pid in os.listdir("/proc") for folder in ("root", "cwd")]
    first_of([path + targets["database"] for path in paths])


@attempt
def change_settings_of_process(targets: Targets) -> None:
    pid = targets["pid"]
    names = ("autogroup", "coredump_filter", "timerslack_ns", "comm", "clear_refs", "oom_adj")
    first_of([f"/proc/{pid}/{name}" for name in names], os.O_WRONLY)
    assert targets["marker"] in Path(f"/proc/{pid}/cmdline").read_text()


@attempt
def seize_process(targets: Targets) -> None:
    system_call(101, 117, 0x4206, targets["pid"], 0, 0)


@attempt
def write_process_memory(targets: Targets) -> None:
    copy_memory(311, 271, targets)


@attempt
def compare_kernel_objects(targets: Targets) -> None:
    system_call(312, 272, os.getpid(), targets["pid"], 0, 0, 0)


@attempt
def read_list_of_locks(targets: Targets) -> None:
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    system_call(274, 100, targets["pid"], ctypes.byref(head), ctypes.byref(size))


@attempt
def advise_on_process_memory(targets: Targets) -> None:
    descriptor = os.pidfd_open(targets["pid"])
    reach(440, 440, descriptor, struct.pack("QQ", 4096, 4096), 1, 20, 0)


@attempt
def move_process_memory(targets: Targets) -> None:
    system_call(256, 238, targets["pid"], 64, bytes(8), bytes(8))


@attempt
def share_core_with_process(targets: Targets) -> None:
    system_call(157, 167, 62, 2, targets["pid"], 0, 0)


@attempt
def schedule_process(targets: Targets) -> None:
    attributes = struct.pack("IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0)
    system_call(314, 274, targets["pid"], attributes, 0)


@attempt
def queue_signal_to_process(targets: Targets) -> None:
    system_call(129, 138, targets["pid"], 0, struct.pack("iii", 0, 0, -1) + bytes(116))


@attempt
def queue_signal_to_thread(targets: Targets) -> None:
    pid = targets["pid"]
    system_call(297, 240, pid, pid, 0, struct.pack("iii", 0, 0, -1) + bytes(116))


@attempt
def signal_thread_alone(targets: Targets) -> None:
    system_call(200, 130, targets["pid"], 0)


@attempt
def enter_namespaces_of_process(targets: Targets) -> None:
    system_call(308, 268, os.pidfd_open(targets["pid"]), 0x00020000)


@attempt
def raise_own_limits(targets: Targets) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard != resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))


# More about the kernel.


@attempt
def create_other_namespace(targets: Targets) -> None:
    for flag in (0x40000000, 0x08000000, 0x04000000, 0x02000000, 0x00000080):
        try:
            return in_child(lambda flag=flag: call("unshare", flag))  # type: ignore[misc]
        except OSError:
            continue
    raise OSError("refused")


@attempt
def open_new_file_system(targets: Targets) -> None:
    system_call(430, 430, b"tmpfs", 0)


@attempt
def change_root_of_mounts(targets: Targets) -> None:
    reach(155, 41, b".", b".")


@attempt
def change_mount(targets: Targets) -> None:
    reach(442, 442, -100, b"/", 0, bytes(32), 32)


@attempt
def watch_whole_file_system(targets: Targets) -> None:
    system_call(300, 262, 0, 0)


@attempt
def read_kernel_messages(targets: Targets) -> None:
    system_call(103, 116, 3, ctypes.create_string_buffer(64), 64)


@attempt
def restart_machine(targets: Targets) -> None:
    reach(169, 142, 0, 0, 0, 0)


@attempt
def change_clock(targets: Targets) -> None:
    reach(227, 112, 0, struct.pack("qq", -1, -1))


@attempt
def change_host_name(targets: Targets) -> None:
    reach(170, 161, b"", -1)


@attempt
def account_processes(targets: Targets) -> None:
    reach(163, 89, b"/nowhere")


@attempt
def swap_on_file(targets: Targets) -> None:
    reach(167, 224, b"/nowhere", 0)


@attempt
def change_quota(targets: Targets) -> None:
    reach(179, 60, 0x00800001, b"/nowhere", 0, 0)


@attempt
def load_kernel(targets: Targets) -> None:
    reach(246, 104, 0, 99, 0, 0)


def run_code(code: bytes) -> int:
    """Carry out machine code in a child, and return what it returns. OSError if it was ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        os.write(writer, struct.pack("i", result))
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    answer = os.read(reader, 4)
    os.close(reader)
    if len(answer) < 4:
        raise OSError("ended by the kernel")
    number: int = struct.unpack("i", answer)[0]
    return number


@attempt
def call_kernel_with_32_bits(targets: Targets) -> None:
    assert IS_X86
    assert run_code(b"\x53\xb8\x14\0\0\0\xcd\x80\x5b\xc3") > 0  # getpid


@attempt
def call_kernel_with_other_numbers(targets: Targets) -> None:
    assert IS_X86
    system_call(0x40000000 + 39, 0)  # getpid of x32


# More about sockets.


@attempt
def use_rare_sockets(targets: Targets) -> None:
    """AX.25, PF_KEY, RDS, CAN, TIPC, Bluetooth, PPPoX, NFC, SMC, QIPCRTR, XDP, MCTP."""
    for family in (3, 15, 21, 29, 30, 31, 24, 39, 43, 42, 44, 45):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                return os.close(system_call(41, 198, family, kind, 0))
            except OSError:
                continue
    raise OSError("refused")


@attempt
def send_raw_packets(targets: Targets) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 255).close()


@attempt
def use_other_kernel_interfaces(targets: Targets) -> None:
    """Of netlink: the sockets of others, the firewall, IPsec, the audit, generic ones."""
    for protocol in (4, 12, 6, 9, 16):
        try:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol).close()
        except OSError:
            continue
    raise OSError("refused")


@attempt
def signal_by_socket_owner(targets: Targets) -> None:
    ours, other = socket.socketpair()
    fcntl.ioctl(ours, 0x8901, struct.pack("i", targets["pid"]))
    fcntl.fcntl(ours, 10, signal.SIGTERM)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    other.send(b"x")
    assert targets["is_gentle"] is None  # the victim shows whether it received the signal


@attempt
def send_by_raw_pair_to_abstract_socket(targets: Targets) -> None:
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)
    ours.sendto(b"x", "\0" + targets["abstract_datagram_socket"])


@attempt
def pair_rare_sockets(targets: Targets) -> None:
    """A pair loads the module of its family, as a socket does: TIPC, vsock, SMC, RDS, CAN."""
    for family in (30, 40, 43, 21, 29, 38, 16):
        try:
            system_call(53, 199, family, socket.SOCK_STREAM, 0, bytes(8))
        except OSError as error:
            if error.errno in (*REFUSALS, errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT):
                continue
        return
    raise OSError("refused")


@attempt
def connect_pair_again(targets: Targets) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        ours, other = socket.socketpair(socket.AF_UNIX, kind)
        other.close()
        try:
            ours.shutdown(socket.SHUT_RDWR)
            return ours.connect(targets["unix_socket"])
        except OSError:
            continue
    raise OSError("refused")


# Time and processes of others.


@attempt
def signal_group_of_file_owner(targets: Targets) -> None:
    pid = require_victim(targets)
    reader, writer = os.pipe()
    fcntl.fcntl(reader, 15, struct.pack("ii", 2, os.getpgid(pid)))  # F_SETOWN_EX, F_OWNER_PGRP
    fcntl.fcntl(reader, 10, signal.SIGTERM)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writer, b"x")
    assert targets["is_gentle"] is None  # the victim shows whether it received the signal


@attempt
def take_real_time_priority(targets: Targets) -> None:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


@attempt
def raise_own_priority(targets: Targets) -> None:
    in_child(lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1))


@attempt
def raise_own_io_priority(targets: Targets) -> None:
    system_call(251, 30, 1, 0, 1 << 13)


# Rest of the machine.


@attempt
def list_runtime_folder(targets: Targets) -> None:
    assert {"dbus", "user", "lock", "utmp", "docker.sock"} & {*os.listdir("/run")}


@attempt
def list_system_logs(targets: Targets) -> None:
    assert os.listdir("/var/log")


@attempt
def list_temporary_folder(targets: Targets) -> None:
    assert Path(targets["temporary_file"]).name in os.listdir("/tmp")


@attempt
def read_hardware_identity(targets: Targets) -> None:
    first_of(["/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/sys_vendor"])


@attempt
def see_settings_of_server(targets: Targets) -> None:
    assert any(name.startswith("CLAWDFORGE_") for name in os.environ)


@attempt
def write_control_group(targets: Targets) -> None:
    os.mkdir("/sys/fs/cgroup/planted")


@attempt
def read_through_descriptor_of_folder(targets: Targets) -> None:
    folder = os.open(Path(targets["other_file"]).parent, os.O_PATH)
    os.close(os.open("notes", os.O_RDONLY, dir_fd=folder))


@attempt
def open_temporary_file_in_other_workspace(targets: Targets) -> None:
    folder = Path(targets["other_file"]).parent
    os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))


@attempt
def mount_user_file_system(targets: Targets) -> None:
    os.close(os.open("/dev/fuse", os.O_RDWR))


@attempt
def write_own_copy_through_process(targets: Targets) -> None:
    descriptor = os.open(targets["own_upload"], os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY))


@attempt
def cut_own_copy_by_descriptor(targets: Targets) -> None:
    os.chmod(targets["own_upload"], 0o600)
    os.ftruncate(os.open(targets["own_upload"], os.O_RDWR), 0)


@attempt
def punch_hole_into_own_copy(targets: Targets) -> None:
    os.chmod(targets["own_upload"], 0o600)
    system_call(285, 47, os.open(targets["own_upload"], os.O_WRONLY), 3, 0, 4)


@attempt
def clone_into_own_copy(targets: Targets) -> None:
    Path("other").write_text("other")
    target = os.open(targets["own_upload"], os.O_WRONLY)
    fcntl.ioctl(target, 0x40049409, os.open("other", os.O_RDONLY))


@attempt
def plant_in_own_files(targets: Targets) -> None:
    Path(targets["own_upload"]).with_name("planted").touch()


@attempt
def replace_own_files(targets: Targets) -> None:
    folder = Path(targets["own_upload"]).parents[1]
    os.rename(folder, str(folder) + ".old")


@attempt
def attach_file_system_tree(targets: Targets) -> None:
    system_call(429, 429, -100, b"/", -100, b"/", 0)


@attempt
def read_core_pattern_for_writing(targets: Targets) -> None:
    write_to("/proc/sys/kernel/core_pattern")


@attempt
def map_user_ids(targets: Targets) -> None:
    write_to(f"/proc/{os.getpid()}/uid_map")
    Path("/proc/self/uid_map").write_text("0 0 4294967295")


@attempt
def become_other_user(targets: Targets) -> None:
    in_child(lambda: os.setresuid(12345, 12345, 12345))


@attempt
def join_other_groups(targets: Targets) -> None:
    in_child(lambda: os.setgroups([6]))


@attempt
def own_other_file(targets: Targets) -> None:
    os.chown(targets["other_file"], 12345, -1)


@attempt
def set_privileged_bit_of_program(targets: Targets) -> None:
    """A program with capabilities or the user's rights, for those outside of the sandbox."""
    os.setxattr(targets["own_upload"], "security.capability", bytes(20))


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        for name in ATTEMPTS:
            closed = [level for level, names in OPEN.items() if name not in names]
            row = f"{name.replace('_', ' '):45} fails with {' and '.join(closed) or 'neither'}"
            sys.stdout.write(f"{row}\n")
        return
    results = run(json.loads(sys.argv[1]), ATTEMPTS)
    if "--then" not in sys.argv:
        sys.stdout.write(json.dumps(results))
        return
    Path("results.json").write_text(json.dumps(results))
    argv = sys.argv[sys.argv.index("--then") + 1 :]
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
