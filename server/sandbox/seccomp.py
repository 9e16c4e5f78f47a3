"""The seccomp filter of sandboxed programs, as BPF instructions.

The filter closes what the other mechanisms leave open: kernel keys, io_uring, new namespaces,
System V objects and, with Landlock, Unix sockets and the settings of other processes. The supported
architectures are x86_64 and aarch64; :func:`build_filter` returns None on others.
"""

from __future__ import annotations

import errno
import platform
import resource
import struct
from collections.abc import Iterator, Mapping

EPERM, ENOSYS, EACCES = errno.EPERM, errno.ENOSYS, errno.EACCES
UNSUPPORTED_FAMILY = errno.EAFNOSUPPORT

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _RETURN, _AND = 0x20, 0x15, 0x25, 0x45, 0x06, 0x54
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_INSTRUCTION = struct.Struct("HBBI")

_NAMESPACES = 0x7E020000
"""The flags of `clone` that create namespaces."""
_NEW_TIME_NAMESPACE = 0x80
_INET, _INET6, _NETLINK, _UNIX = 2, 10, 16, 1
_TYPE_MASK, _STREAM, _DATAGRAM, _PACKETS, _TCP = 0xF, 1, 2, 5, 6
_SIBLING = 0x8000
"""CLONE_PARENT, with which a process would become a child of the process that started its agent."""
_SET_LEASE, _SET_DELEGATION = 1024, 1040
"""F_SETLEASE and F_SETDELEG, with which others must wait a minute to open a file."""
_FAST_OPEN = 0x20000000
"""MSG_FASTOPEN, which connects without asking Landlock."""
_TERMINAL_INPUT, _TERMINAL_CONSOLE = 0x5412, 0x541C
"""TIOCSTI and TIOCLINUX, which type into a terminal."""

# Name: the number on x86_64, and on aarch64 (None if it has no such call).
_NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone": (56, 220),
    "clone3": (435, 435),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "fcntl": (72, 25),
    "listen": (50, 201),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_mrelease": (448, 448),
}

_FORBIDDEN_CALLS = (
    *("add_key", "request_key", "keyctl", "setns", "mount", "umount2", "pivot_root", "chroot"),
    *("open_tree", "open_tree_attr", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick"),
    *("mount_setattr", "bpf", "perf_event_open", "userfaultfd", "kexec_load", "kexec_file_load"),
    *("init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff", "acct"),
    *("quotactl", "quotactl_fd", "syslog", "iopl", "ioperm", "settimeofday", "clock_settime"),
    *("clock_adjtime", "adjtimex", "sethostname", "setdomainname", "vhangup"),
    *("open_by_handle_at", "fanotify_init", "lookup_dcookie", "move_pages", "migrate_pages"),
)
_MISSING = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
"""Programs have another way if the kernel lacks these."""
_SHARED_OBJECTS = (
    *("shmget", "shmat", "shmctl", "semget", "semop", "semctl", "semtimedop"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "process_mrelease"),
)
_OTHER_PROCESS_FIRST = (
    *("sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"),
)
"""Calls whose first argument is a process, 0 for the caller."""
_OTHER_PROCESS_SECOND = ("setpriority", "ioprio_set")
_MESSAGE_FLAGS = (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3))
"""The calls that send a message, and the argument with its flags."""
TAG_LIMITS = (resource.RLIMIT_MSGQUEUE, 10, resource.RLIMIT_RSS)
"""The resource limits that tag the processes of an agent; 10 is RLIMIT_LOCKS."""

Code = list[tuple[int, int, int, int]]


def build_filter(
    *,
    has_namespaces: bool,
    unix_sockets: bool,
    tcp_only: bool = False,
    datagrams: bool = True,
    servers: bool = True,
) -> bytes | None:
    """The filter; None if the machine's architecture is not supported.

    Args:
        has_namespaces: the program has process and IPC namespaces of its own, so that what
            happens there concerns no other session.
        unix_sockets: the program may create Unix sockets that have a name.
        tcp_only: streams must be of TCP, whose ports Landlock restricts.
        datagrams: the program may send datagrams to the Internet.
        servers: others may connect to the program.
    """
    machine = platform.machine()
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        return None
    column = list(_ARCHITECTURES).index(machine)
    code: Code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER, 0, 1, _X32_BIT - 1),
        (_RETURN, 0, 0, _ERRNO | ENOSYS),
    ]

    def rule(name: str, body: Code) -> None:
        number = _NUMBERS[name][column]
        if number is not None:
            code.extend([(_JUMP_EQUAL, 0, len(body), number), *body])

    for name in (*_FORBIDDEN_CALLS, *(() if servers else ("listen",))):
        rule(name, _deny(EPERM))
    for name in _MISSING:
        rule(name, _deny(ENOSYS))
    flags = _NAMESPACES | _SIBLING
    rule("clone", [_load_argument(0), (_JUMP_SET, 0, 1, flags), *_deny(EPERM), *_allow()])
    flags = _NAMESPACES | _NEW_TIME_NAMESPACE
    rule("unshare", [_load_argument(0), (_JUMP_SET, 0, 1, flags), *_deny(EPERM), *_allow()])
    rule("ioctl", _fail_if(1, (_TERMINAL_INPUT, _TERMINAL_CONSOLE), EPERM))
    rule("fcntl", _fail_if(1, (_SET_LEASE, _SET_DELEGATION), EPERM))
    rule("setrlimit", _fail_if(0, TAG_LIMITS, EPERM))
    rule("prlimit64", _prlimit(own_only=not has_namespaces))
    inet = _internet(tcp_only=tcp_only, datagrams=datagrams)
    rule("socket", _socket(inet, unix_sockets=unix_sockets))
    for name, argument in _MESSAGE_FLAGS if tcp_only else ():
        refused = [(_JUMP_SET, 0, 1, _FAST_OPEN), *_deny(EPERM), *_allow()]
        rule(name, [_load_argument(argument), *refused])
    rule("socketpair", _socketpair(unix_sockets=unix_sockets))
    for name, body in () if has_namespaces else _rules_about_others():
        rule(name, body)
    code += _allow()
    return b"".join(_INSTRUCTION.pack(op, yes, no, value) for op, yes, no, value in code)


def _rules_about_others() -> Iterator[tuple[str, Code]]:
    """Refuse objects that all processes share, and settings of other processes."""
    yield from ((name, _deny(EACCES)) for name in _SHARED_OBJECTS)
    yield from ((name, _fail_unless_zero(0)) for name in _OTHER_PROCESS_FIRST)
    yield "setpriority", _own_only()
    yield "ioprio_set", _own_only(process=1)


def _load_argument(argument: int, *, high: bool = False) -> tuple[int, int, int, int]:
    """Load the lower half of an argument, or its upper half (both machines are little-endian)."""
    return _LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4 * high


def _deny(number: int) -> Code:
    return [(_RETURN, 0, 0, _ERRNO | number)]


def _allow() -> Code:
    return [(_RETURN, 0, 0, _ALLOW)]


def _fail_if(argument: int, values: tuple[int, ...], number: int) -> Code:
    tests = [(_JUMP_EQUAL, len(values) - 1 - i, 0, value) for i, value in enumerate(values)]
    *others, (op, _, _, last) = tests
    return [_load_argument(argument), *others, (op, 0, 1, last), *_deny(number), *_allow()]


def _socketpair(*, unix_sockets: bool) -> Code:
    """Allow pairs of Unix sockets, perhaps only those that stay connected with each other.

    Every other type is one of datagrams (SOCK_RAW as well), which could be sent to any socket that
    has a name.
    """
    connected: Code = [
        _load_argument(1),
        (_AND, 0, 0, _TYPE_MASK),
        (_JUMP_EQUAL, 2, 0, _STREAM),
        (_JUMP_EQUAL, 1, 0, _PACKETS),
        *_deny(EACCES),
    ]
    return [
        _load_argument(0),
        (_JUMP_EQUAL, 1, 0, _UNIX),
        *_deny(UNSUPPORTED_FAMILY),
        *(() if unix_sockets else connected),
        *_allow(),
    ]


def _fail_unless_zero(argument: int) -> Code:
    return [_load_argument(argument), (_JUMP_EQUAL, 1, 0, 0), *_deny(EPERM), *_allow()]


def _own_only(process: int = 0) -> Code:
    """Allow only a call about the process (kind *process*) that makes it."""
    return [
        _load_argument(0),
        (_JUMP_EQUAL, 1, 0, process),
        *_deny(EPERM),
        *_fail_unless_zero(1),
    ]


def _prlimit(*, own_only: bool) -> Code:
    """Allow to read all limits, and to set those that are not tags; perhaps only one's own."""
    setting = [*(_fail_unless_zero(0)[:-1] if own_only else ()), *_fail_if(1, TAG_LIMITS, EPERM)]
    return [
        _load_argument(2),
        (_JUMP_EQUAL, 0, 3, 0),
        _load_argument(2, high=True),
        (_JUMP_EQUAL, 0, 1, 0),
        *_allow(),
        *setting,
    ]


def _internet(*, tcp_only: bool, datagrams: bool) -> Code:
    """Allow Internet sockets, perhaps only those of TCP and UDP."""
    if not tcp_only and datagrams:
        return _allow()
    stream: Code = [
        _load_argument(2),
        (_JUMP_EQUAL, 1, 0, 0),
        (_JUMP_EQUAL, 0, 1, _TCP),
        *_allow(),
        *_deny(EACCES),
    ]
    return [
        _load_argument(1),
        (_AND, 0, 0, _TYPE_MASK),
        (_JUMP_EQUAL, 0, len(stream), _STREAM),
        *stream,
        (_JUMP_EQUAL, 0, 1, _DATAGRAM),
        *(_allow() if datagrams else _deny(EACCES)),
        *_deny(EACCES),
    ]


def _socket(internet: Code, *, unix_sockets: bool) -> Code:
    """Allow the Internet, routing messages, and perhaps Unix sockets."""
    unix = [(_JUMP_EQUAL, 0, 1, _UNIX), *_allow()] if unix_sockets else []
    return [
        _load_argument(0),
        (_JUMP_EQUAL, 1, 0, _INET),
        (_JUMP_EQUAL, 0, len(internet), _INET6),
        *internet,
        *unix,
        (_JUMP_EQUAL, 0, 3, _NETLINK),
        _load_argument(2),
        (_JUMP_EQUAL, 0, 1, 0),
        *_allow(),
        *_deny(EACCES if not unix_sockets else UNSUPPORTED_FAMILY),
    ]
