"""The address of a client of trusted proxies, and the check of the Host header."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from server.config import Settings, load
from server.errors import Error
from server.web.request_origin import check_host, client_address


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["1.1.1.1, nonsense"], ""),
        ("10.0.0.1", ["1.1.1.1, unknown"], ""),
        ("10.0.0.1", ["1.1.1.1:5678"], "1.1.1.1"),
        ("10.0.0.1", [" 1.1.1.1:5678 ,10.0.0.2:80"], "1.1.1.1"),
        ("10.0.0.1", ["[2001:db8::1]:5678"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::1"),
        ("10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, ::ffff:10.0.0.2"], "1.1.1.1"),
        ("10.0.0.1", ["1.1.1.1:99999999"], ""),
        ("10.0.0.1", ["1.1.1.1, [10.0.0.2"], ""),
        ("10.0.0.1", ["1.1.1.1," + "10.0.0.2," * 60 + "10.0.0.2"], ""),
        ("10.0.0.1", [""], ""),
        ("::ffff:10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
    ],
)
def test_client_address_is_the_last_untrusted_hop(
    peer: str, header: list[str], client: str
) -> None:
    settings = load({"CLAWDFORGE_TRUSTED_PROXIES": "10.0.0.0/8, ::1/128"})
    request = make_mocked_request("GET", "/").clone(
        remote=peer, headers=[("X-Forwarded-For", line) for line in header]
    )
    assert client_address(request, settings.trusted_proxies) == client
    assert client_address(request, ()) == peer


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ([("Forwarded", "for=203.0.113.9")], "203.0.113.9"),
        ([("Forwarded", 'For="[2001:db8::1]:80";proto=https')], "2001:db8::1"),
        (
            [("Forwarded", 'for=1.1.1.1, proto=http;for="203.0.113.9:80", for=10.0.0.2')],
            "203.0.113.9",
        ),
        ([("Forwarded", "for=1.1.1.1"), ("Forwarded", "for=203.0.113.9")], "203.0.113.9"),
        ([("Forwarded", 'for="a,b";by=1.1.1.1')], ""),
        ([("Forwarded", "for=1.1.1.1, for=unknown")], ""),
        ([("Forwarded", "for=_hidden")], ""),
        ([("Forwarded", "by=1.1.1.1")], ""),
        # The proxy writes one of the two headers; the client may have written the other.
        ([("Forwarded", "for=1.1.1.1"), ("X-Forwarded-For", "203.0.113.9")], ""),
        ([("Forwarded", "for=203.0.113.9"), ("X-Forwarded-For", "203.0.113.9")], "203.0.113.9"),
    ],
)
def test_forwarded_header_is_read(headers: list[tuple[str, str]], client: str) -> None:
    settings = load({"CLAWDFORGE_TRUSTED_PROXIES": "10.0.0.0/8"})
    request = make_mocked_request("GET", "/").clone(remote="10.0.0.1", headers=headers)
    assert client_address(request, settings.trusted_proxies) == client
    direct = request.clone(remote="192.0.2.1")
    assert client_address(direct, settings.trusted_proxies) == "192.0.2.1"


def is_host_allowed(host: str, settings: Settings) -> bool:
    try:
        check_host(make_mocked_request("GET", "/", headers={"Host": host}), settings)
    except Error:
        return False
    return True


@pytest.mark.parametrize("listening_host", ["0.0.0.0", "127.0.0.1", "chat.example.org"])
def test_allowed_hosts_are_enforced_on_every_listening_address(listening_host: str) -> None:
    settings = Settings(
        host=listening_host,
        allowed_hosts=("chat.example.org", "other.example.org:8443"),
        allowed_origins=("https://third.example.org", "capacitor://app"),
    )
    for host, allowed in [
        *(("chat.example.org", True), ("Chat.example.org:80", True), ("localhost:1", True)),
        *(("127.0.0.1", True), ("127.0.0.2:5", True), ("[::1]", True), ("app", True)),
        *(("other.example.org", False), ("other.example.org:8443", True)),
        *(("third.example.org", True), ("third.example.org:443", True)),
        *(("third.example.org:80", False), ("evil.example", False), ("10.0.0.1", False)),
    ]:
        assert is_host_allowed(host, settings) is allowed, host


def test_host_is_checked_only_on_loopback_without_allowed_hosts() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost", "::ffff:127.0.0.1", "a.localhost"):
        assert not is_host_allowed("evil.example", Settings(host=host))
    for host in ("0.0.0.0", "10.0.0.1", "::", "chat.example.org"):
        assert is_host_allowed("evil.example", Settings(host=host))
