"""Restricts a process and turns it into the program of an agent. Needs only the standard library.

The launchers (``launch.py``, ``spawn.py`` and this module itself) call :func:`enter` as their last
step. The server makes the plan (:meth:`server.sandbox.sandbox.Sandbox.plan`); it is a JSON object:

``level``       ``bwrap``, ``landlock`` or ``off``
``cwd``         ``[top, path below it]``, opened without following links
``own``         ``[[top, path below it, is_writable], …]``: the folders of the session
``read``        paths that may be read and executed
``listed``      ``[[path, is_writable], …]``: the operator's folders, opened without following links
``program``     the arguments that name files of the program itself; by default all: none may be a
                client's then
``private``     paths that a program's own files never open to it, whatever they refer to
``hidden``      paths that stay hidden although they are below a readable one (``bwrap``)
``devices``     devices that may be read and written (``landlock``)
``tmp``         the one of ``own`` that becomes `/tmp`, or null (``bwrap``)
``environ``     variables to set
``unset``       variables to remove
``seccomp``     the filter, in hexadecimal
``bwrap``       the program and its first arguments (``bwrap``)
``tags``        variables by which processes are found, for bubblewrap's own environment
``tcp_ports``   the only TCP ports that the program may connect to; null for all
``limits``      ``processes`` of the session (``bwrap``), ``memory_bytes`` of a process and
                ``file_bytes``; ``all_processes`` of the user; 0 for none
``group``       ``{folder, controllers, processes}``: the control group to join; null for none
``tunnel``      ``{socket, secret, ports}``: see ``network.py``; null without a network of its own
``python``      the Python that runs ``network.py``
``relay``       the command of a program that is run instead, and runs this one again
``pid_file``    the file that gets the id of this process, which is then that of the program

Run as a program (``python -I -S restrict.py PLAN ARGV…``) it reads the plan from a file, removes
all ``CLAWDFORGE_`` variables and becomes ARGV.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn

    from server.sandbox import program_files, resource_limits
elif __package__:
    from . import program_files, resource_limits
else:  # an isolated interpreter (-I) does not search the script's folder
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import program_files
    import resource_limits

    del sys.path[0]

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF, SYS_OPENAT2 = 444, 445, 446, 437
"""The number is the same on every architecture."""
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION = 0x20080522
RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS = 0x08, 0x04
RELAYED = "CLAWDFORGE_RELAYED"
"""The variable by which the plan's ``relay`` runs this program."""
FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# The rights of Landlock, by the version that knows them.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
RESOLVE_UNIX = 1 << 16
FS_RIGHTS = {
    1: (1 << 13) - 1,
    2: (1 << 14) - 1,
    3: (1 << 15) - 1,
    5: (1 << 16) - 1,
    9: (1 << 17) - 1,
}
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = ((1 << 15) - 1 | RESOLVE_UNIX) & ~(MAKE_CHAR | MAKE_BLOCK)
DEVICE = READ_FILE | WRITE_FILE | READ_DIR | TRUNCATE | IOCTL_DEVICE
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
CONNECT_TCP = 1 << 1
NETWORK_SINCE, SCOPES_SINCE = 4, 6
SCOPES = 0b11
"""Abstract Unix sockets and signals."""

c_library = ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: Any) -> int:
    """Call the kernel.

    Raises:
        OSError: the call failed.
    """
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    c_library.syscall.restype = ctypes.c_long
    result: int = c_library.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def control(option: int, *arguments: Any) -> None:
    """Call ``prctl``.

    Raises:
        OSError: the call failed.
    """
    padded = [*arguments, *[0] * (4 - len(arguments))]
    converted = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in padded]
    if c_library.prctl(option, *converted) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def landlock_version() -> int:
    """The version of Landlock that the kernel offers; 0 if it offers none."""
    try:
        return system_call(SYS_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def open_beneath(top: str, path: str) -> int:
    """Open a folder below *top* without following any link.

    Args:
        top: a folder; its own path may contain links.
        path: relative to *top*; empty for *top* itself.

    Raises:
        OSError: the folder is missing, or a part of *path* is not a folder.
    """
    parent = os.open(top, FOLDER_FLAGS)
    if path in ("", "."):
        return parent
    try:
        how = struct.pack("QQQ", FOLDER_FLAGS, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        return system_call(SYS_OPENAT2, parent, os.fsencode(path), how, len(how))
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise OSError(error.errno, error.strerror, os.path.join(top, path)) from None
    finally:
        os.close(parent)
    return _open_by_steps(top, path)


def _open_by_steps(top: str, path: str) -> int:
    """The same as `openat2`, which kernels before 5.6 and some containers lack."""
    descriptor = os.open(top, FOLDER_FLAGS)
    for name in path.split("/"):
        if name == "..":
            os.close(descriptor)
            raise OSError(errno.EXDEV, "leads out of the folder", path)
        below = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    return descriptor


# Entering the sandbox.


def enter(plan: Mapping[str, Any], argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Restrict this process as *plan* says, and replace it by the program.

    Raises:
        OSError: the folder is missing, the restriction is not possible, or the program is not.
    """
    unset = set(plan.get("unset", ()))
    environ = {name: value for name, value in environ.items() if name not in unset}
    environ.update(plan.get("environ", {}))
    cwd = open_beneath(*plan["cwd"])
    os.fchdir(cwd)
    if plan.get("group") is not None:
        try:
            resource_limits.join_group(plan["group"])
        except OSError as error:  # the program gets a share of the CPU with the server itself
            sys.stderr.write(f"{error.filename}: {error.strerror}\n")
    if plan["level"] == "off":
        os.close(cwd)
        os.execvpe(argv[0], list(argv), environ)
    _close_inherited(keep=cwd)
    # With the PATH of the server: a client may set another for its agent.
    programs = program_files.program_paths(plan.get("program", argv), os.environ.get("PATH"))
    reads = [*plan["read"], *program_files.without_private(programs, plan.get("private", ()))]
    listed = [*_open_listed(plan)]
    own = [(open_beneath(top, path), top, path, bool(rw)) for top, path, rw in plan["own"]]
    own.append((cwd, *plan["cwd"], True))
    resource_limits.apply(plan.get("limits", {}))
    if plan["level"] == "bwrap":
        _enter_bwrap(plan, reads, listed, own, argv, environ)
    drop_capabilities()
    _restrict_files(plan, reads, [*listed, *own])
    for descriptor, *_ in (*listed, *own):
        os.close(descriptor)
    filter_system_calls(bytes.fromhex(plan["seccomp"]))
    os.execvpe(argv[0], list(argv), environ)


def confine(plan: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Restrict this process to the files and ports of *plan*, for a program of the system.

    It has ``read``, ``write``, ``devices``, ``tcp_ports`` and ``seccomp``.

    Raises:
        OSError: the restriction is not possible.
    """
    _restrict_files(plan, [*plan["read"], *program_files.program_paths(argv, None)], [])
    filter_system_calls(bytes.fromhex(plan["seccomp"]))


Own = "tuple[int, str, str, bool]"
"""A folder of the session: its descriptor, its path in two parts, and whether it is writable."""


def _open_listed(plan: Mapping[str, Any]) -> Iterator[Any]:
    """Open the operator's folders, which agents may be able to replace by links."""
    for path, is_writable in plan.get("listed", ()):
        try:
            yield open_beneath("/", path[1:]), "/", path[1:], is_writable
        except OSError:
            continue  # it was removed or replaced


def _close_inherited(keep: int) -> None:
    """Close the descriptors that the parent passed on, except stdin, stdout and stderr."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != keep:
            try:  # `contextlib` would take as long to import as this module
                os.close(number)
            except OSError:
                continue


def _restrict_files(plan: Mapping[str, Any], reads: Iterable[str], own: Iterable[Any]) -> None:
    version = landlock_version()
    known = FS_RIGHTS[max(key for key in FS_RIGHTS if key <= version)]
    ruleset = _ruleset(version, known, plan)
    for paths, rights in ((reads, READ), (plan.get("write", ()), WRITE), (plan["devices"], DEVICE)):
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # it was removed meanwhile
            _add_rule(ruleset, descriptor, rights & known)
            os.close(descriptor)
    for descriptor, _, _, is_writable in own:
        _add_rule(ruleset, descriptor, (WRITE if is_writable else READ) & known)
    _apply_ruleset(ruleset)


def _scope(plan: Mapping[str, Any]) -> None:
    """Restrict signals, abstract sockets and ports, but no files, so that bwrap may mount them."""
    version = landlock_version()
    if version >= (SCOPES_SINCE if plan.get("tcp_ports") is None else NETWORK_SINCE):
        _apply_ruleset(_ruleset(version, 0, plan))


def _ruleset(version: int, rights: int, plan: Mapping[str, Any]) -> int:
    ports = plan.get("tcp_ports") if version >= NETWORK_SINCE else None
    attributes = struct.pack(
        "QQQ",
        rights,
        0 if ports is None else CONNECT_TCP,
        SCOPES if version >= SCOPES_SINCE else 0,
    )
    size = 8 if version < NETWORK_SINCE else 16 if version < SCOPES_SINCE else 24
    ruleset = system_call(SYS_CREATE_RULESET, attributes, size, 0)
    for port in ports or ():
        rule = struct.pack("QQ", CONNECT_TCP, port)
        system_call(SYS_ADD_RULE, ruleset, 2, rule, 0)
    return ruleset


def _add_rule(ruleset: int, descriptor: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= FILE_RIGHTS
    system_call(SYS_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)


def _apply_ruleset(ruleset: int) -> None:
    control(PR_SET_NO_NEW_PRIVS, 1)
    system_call(SYS_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """Drop all capabilities, also those that root would regain by executing a program."""
    if number := SYS_CAPSET.get(os.uname().machine):
        for capability in range(64):
            try:
                control(PR_CAPBSET_DROP, capability)
            except OSError:
                break  # after the last capability, or if the process has none
        control(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        header = struct.pack("Ii", CAPABILITY_VERSION, 0)
        system_call(number, header, struct.pack("6I", *[0] * 6))


def filter_system_calls(instructions: bytes) -> None:
    """Apply a seccomp filter, a list of BPF instructions."""
    control(PR_SET_NO_NEW_PRIVS, 1)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxQ", len(instructions) // 8, ctypes.addressof(buffer))
    control(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


# bubblewrap.


def _enter_bwrap(
    plan: Mapping[str, Any],
    reads: Sequence[str],
    listed: Sequence[Any],
    own: Sequence[Any],
    argv: Sequence[str],
    environ: Mapping[str, str],
) -> NoReturn:
    """Become bubblewrap, which mounts the folders and becomes the program."""
    descriptors = []
    reads = [*program_files.uncovered(set(reads), plan)]
    mounts = [(path, program_files.mount_of(path)) for path in reads]
    masks = [(path, program_files.mask_of(path)) for path in plan["hidden"]]
    for number, (descriptor, top, path, is_writable) in enumerate((*listed, *own)):
        if number == len(listed):  # of the same path, the later mount counts
            mounts += masks
        target = os.path.join(top, path)
        option = "--bind-fd" if is_writable else "--ro-bind-fd"
        mounts.append((target, [option, str(descriptor), target]))
        descriptors.append(descriptor)
        if is_writable and path == plan.get("tmp"):
            copy = os.dup(descriptor)
            mounts.append(("/tmp", ["--bind-fd", str(copy), "/tmp"]))
            descriptors.append(copy)
    seccomp = os.memfd_create("seccomp")
    os.write(seccomp, bytes.fromhex(plan["seccomp"]))
    os.lseek(seccomp, 0, os.SEEK_SET)
    arguments = list(plan["bwrap"])
    for _, options in sorted(mounts, key=lambda mount: mount[0].count("/") * (mount[0] != "/")):
        arguments += options
    # Folders in memory without a limit.
    for path in ("/", "/dev", *filter(os.path.isdir, plan["hidden"])):
        arguments += ["--remount-ro", path]
    arguments += ["--chdir", os.path.normpath(os.path.join(*plan["cwd"]))]
    arguments += ["--seccomp", str(seccomp), "--clearenv"]
    argv, variables = resource_limits.without_linker(argv, environ)
    for name, value in variables.items():
        arguments += ["--setenv", name, value]
    program, *options = arguments
    file = os.memfd_create("options")  # other users can read a command line
    with open(os.dup(file), "wb") as writer:
        writer.write(b"".join(os.fsencode(option) + b"\0" for option in options))
    os.lseek(file, 0, os.SEEK_SET)
    argv, tunnel = resource_limits.before_program(plan, argv)
    for descriptor in (*descriptors, *tunnel, seccomp, file):
        os.set_inheritable(descriptor, True)
    _scope(plan)
    # bubblewrap itself is not restricted: a client's LD_PRELOAD must not reach it.
    own_environ = {name: environ[name] for name in plan["tags"] if name in environ}
    os.execve(program, [program, "--args", str(file), "--", *argv], own_environ)


def main() -> None:
    import json  # the launchers do without it

    with open(sys.argv[1], "rb") as file:
        plan = json.load(file)
    if plan.get("relay") and RELAYED not in os.environ:
        os.execv(plan["relay"][0], [*plan["relay"], *sys.argv[1:]])
    if plan.get("pid_file"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(plan["pid_file"], flags, 0o600), "w") as file:
            file.write(f"{os.getpid()}\n")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
    argv = sys.argv[2:]
    try:
        enter(plan, argv, environ)
    except OSError as error:
        sys.exit(f"{error.filename or argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
