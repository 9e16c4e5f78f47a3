"""Attempts to reach a network: ``python -I -S network_attempts.py TARGETS``, inside a sandbox.

TARGETS is a JSON object: ``port`` and ``port6`` of TCP services outside, ``gateway``, the port of
a gateway. Prints a JSON object with the name of each attempt and its result: ``done``, ``asked`` if
the network was asked and nothing answered, or the reason why the kernel refused it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

Targets = dict[str, Any]
FAST_OPEN = 0x20000000
REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENETUNREACH),
    *(errno.ESOCKTNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENOPROTOOPT, errno.EHOSTUNREACH),
}
ATTEMPTS: dict[str, Callable[[Targets], object]] = {}

OPEN = {
    "none": set(),
    "web": {
        *("connect_to_metadata_service", "listen", "listen_without_a_name", "send_datagram"),
        *("send_datagram_to_mapped", "send_datagram_over_version_6", "send_light_datagram"),
        *("resolve_by_datagram", "connect_to_port_of_web"),
    },
}
"""The attempts that are not refused with Landlock, by the policy.

docs/explanation/security.md names them.
"""
ONLY_WITHIN = {
    *("listen", "listen_without_a_name", "send_datagram", "send_datagram_over_version_6"),
    *("send_datagram_to_mapped", "send_light_datagram", "resolve_by_datagram"),
    *("connect_in_packets", "connect_by_other_stream"),
}
"""The attempts that a network namespace allows: they reach only the sandbox itself."""


def attempt(function: Callable[[Targets], object]) -> Callable[[Targets], object]:
    ATTEMPTS[function.__name__] = function
    return function


def connect(family: int, address: tuple[Any, ...], protocol: int = 0) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as one:
        one.settimeout(2)
        one.connect(address)


@attempt
def connect_to_loopback(targets: Targets) -> None:
    connect(socket.AF_INET, ("127.0.0.1", targets["port"]))


@attempt
def connect_to_port_of_web(targets: Targets) -> None:
    connect(socket.AF_INET, ("127.0.0.1", 80))


@attempt
def connect_to_other_loopback(targets: Targets) -> None:
    connect(socket.AF_INET, ("127.7.7.7", targets["port"]))


@attempt
def connect_to_any_address(targets: Targets) -> None:
    connect(socket.AF_INET, ("0.0.0.0", targets["port"]))


@attempt
def connect_over_version_6(targets: Targets) -> None:
    connect(socket.AF_INET6, ("::1", targets["port6"]))


@attempt
def connect_to_mapped_address(targets: Targets) -> None:
    connect(socket.AF_INET6, ("::ffff:127.0.0.1", targets["port"]))


@attempt
def connect_to_metadata_service(targets: Targets) -> None:
    connect(socket.AF_INET, ("169.254.169.254", 80))


@attempt
def connect_with_first_data(targets: Targets) -> None:
    with socket.socket() as one:
        one.sendto(b"x", FAST_OPEN, ("127.0.0.1", targets["port"]))


@attempt
def connect_with_first_data_over_version_6(targets: Targets) -> None:
    with socket.socket(socket.AF_INET6) as one:
        one.sendto(b"x", FAST_OPEN, ("::ffff:127.0.0.1", targets["port"]))


@attempt
def connect_with_first_message(targets: Targets) -> None:
    with socket.socket() as one:
        one.sendmsg([b"x"], [], FAST_OPEN, ("127.0.0.1", targets["port"]))


@attempt
def connect_later(targets: Targets) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
        one.connect(("127.0.0.1", targets["port"]))
        one.send(b"x")


@attempt
def connect_by_several_paths(targets: Targets) -> None:
    connect(socket.AF_INET, ("127.0.0.1", targets["port"]), 262)


@attempt
def connect_by_other_stream(targets: Targets) -> None:
    for family, protocol in ((socket.AF_INET, 132), (socket.AF_INET6, 132), (43, 0), (43, 1)):
        try:
            return socket.socket(family, socket.SOCK_STREAM, protocol).close()
        except OSError:
            continue
    raise OSError(errno.EACCES, "refused")


@attempt
def connect_in_packets(targets: Targets) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, 132).close()


@attempt
def reconnect_socket_of_gateway(targets: Targets) -> None:
    library = ctypes.CDLL(None)
    with socket.socket() as one:
        one.connect(("127.0.0.1", targets["gateway"]))
        library.connect(one.fileno(), bytes(16), 16)  # AF_UNSPEC disconnects it
        one.connect(("127.0.0.1", targets["port"]))


@attempt
def listen(targets: Targets) -> None:
    with socket.socket() as one:
        one.bind(("0.0.0.0", 0))
        one.listen()


@attempt
def listen_without_a_name(targets: Targets) -> None:
    with socket.socket() as one:
        one.listen()


@attempt
def send_datagram(targets: Targets) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", targets["port"]))


@attempt
def send_datagram_over_version_6(targets: Targets) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("::1", targets["port"]))


@attempt
def send_datagram_to_mapped(targets: Targets) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("::ffff:127.0.0.1", targets["port"]))


@attempt
def send_light_datagram(targets: Targets) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136).close()


@attempt
def send_echo_request(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as one:
        one.sendto(b"\x08\0\0\0\0\0\0\0", ("127.0.0.1", 0))


@attempt
def send_raw(targets: Targets) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP).close()


@attempt
def resolve_by_datagram(targets: Targets) -> None:
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0\6secret\7example\3com\0\0\1\0\1"
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        one.sendto(query, ("127.0.0.53", 53))


@attempt
def resolve_by_stream(targets: Targets) -> None:
    connect(socket.AF_INET, ("127.0.0.53", 53))


@attempt
def change_routes(targets: Targets) -> None:
    message = b"\x24\0\0\0\x18\0\5\6" + bytes(28)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        one.send(message)
        assert one.recv(4096)[16:20] == bytes(4)


def main() -> None:
    targets, results = json.loads(sys.argv[1]), {}
    for name, function in ATTEMPTS.items():
        try:
            function(targets)
        except (OSError, AssertionError) as error:
            is_refused = getattr(error, "errno", errno.EPERM) in REFUSALS
            results[name] = repr(error) if is_refused else "asked"
        else:
            results[name] = "done"
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
