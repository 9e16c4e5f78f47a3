"""Requests to hosts that apps name: what they reach, and what they do not."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from yarl import URL

from server.hosts import AllowedHosts, host_rule, is_public
from server.origins import Address, address_of
from server.outbox.http_client import OutboundClient, RequestError

from ..support.harness import Deadline
from ..support.receiver import Receiver

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::1",
    "2001:0:a00:1::1",
]


def address(text: str) -> Address:
    found = address_of(text)
    assert found is not None
    return found


@contextlib.asynccontextmanager
async def client_of(
    *rules: str,
    found: Sequence[str] = (),
    timeout: float = 5,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[OutboundClient]:
    """A client whose lookups return *found*, one address each time."""
    left = list(found)

    async def lookup(host: str, port: int) -> Sequence[Address]:
        return [address(left.pop(0))] if address_of(host) is None else [address(host)]

    hosts = AllowedHosts([host_rule(rule) for rule in rules])
    client = OutboundClient(hosts, "HOSTS", timeout, lookup=lookup, tls=tls)
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("text", PRIVATE)
def test_private_address_is_not_public(text: str) -> None:
    assert not is_public(address(text))


@pytest.mark.parametrize("text", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_address_is_public(text: str) -> None:
    assert is_public(address(text))


@pytest.mark.parametrize(
    ("rule", "url", "is_allowed"),
    [
        ("example.org", "https://example.org/x", True),
        ("example.org", "https://EXAMPLE.org:8443/x", True),
        ("example.org", "https://example.org.evil.test/x", False),
        ("example.org", "https://sub.example.org/x", False),
        ("example.org", "https://example.org@evil.test/x", False),
        ("example.org:8443", "https://example.org/x", False),
        ("example.org:443", "https://example.org/x", True),
        ("*.example.org", "https://sub.example.org/x", True),
        ("*.example.org", "https://example.org/x", False),
        ("bücher.example", "https://xn--bcher-kva.example/", True),
        ("127.0.0.1", "http://127.0.0.1:9/x", True),
        ("127.0.0.1", "http://127.0.0.2:9/x", False),
        ("10.0.0.0/8", "http://10.1.2.3/x", True),
        ("10.0.0.0/8", "http://11.1.2.3/x", False),
        ("[::1]", "http://[::1]:9/x", True),
        ("1.1.1.1", "https://1.1.1.1/x", True),
        ("1.1.1.1", "http://1.1.1.1/x", False),
    ],
)
async def test_rule_allows_its_hosts_only(rule: str, url: str, is_allowed: bool) -> None:
    async with client_of(rule) as client:
        if is_allowed:
            client.check_url(url)
        else:
            with pytest.raises(ValueError, match=r"HOSTS|http|user"):
                client.check_url(url)


async def test_no_host_is_allowed_without_rules() -> None:
    async with client_of() as client:
        with pytest.raises(ValueError, match="HOSTS"):
            client.check_url("https://example.org/x")


@pytest.mark.parametrize("text", ["10.0.0.0/33", "example.org/x", "*", "a b", "host:port", "*.*.a"])
def test_invalid_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        host_rule(text)


async def test_named_host_with_a_private_address_gets_no_request(receiver: Receiver) -> None:
    url = f"http://hooks.example.org:{receiver.port}/hook"
    async with client_of("hooks.example.org", found=["127.0.0.1"]) as client:
        with pytest.raises(RequestError, match="private"):
            await client.post(client.check_url(url), {}, b"{}")
    assert not receiver.attempts


@pytest.mark.parametrize("rule", ["127.0.0.1", "127.0.0.0/8"])
async def test_private_address_that_is_named_gets_the_request_of_its_host(rule: str) -> None:
    hosts: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        hosts.append(request.host)
        return web.Response()

    async with served(answer) as port:
        url = f"http://hooks.example.org:{port}/hook"
        async with client_of("hooks.example.org", rule, found=["127.0.0.1"]) as client:
            assert (await client.post(client.check_url(url), {}, b"{}")).status == 200
    assert hosts == [f"hooks.example.org:{port}"]


async def test_each_connection_goes_to_the_address_that_was_checked() -> None:
    """A host that changes its address after the check (DNS rebinding) gains nothing."""

    async def answer(request: web.Request) -> web.Response:
        response = web.Response()
        response.force_close()
        return response

    async with served(answer) as port:
        url = f"http://hooks.example.org:{port}/x"
        found = ["127.0.0.1", "169.254.169.254"]
        async with client_of("hooks.example.org", "127.0.0.1", found=found) as client:
            assert (await client.post(client.check_url(url), {}, b"{}")).status == 200
            with pytest.raises(RequestError, match="private"):
                await client.post(client.check_url(url), {}, b"{}")
            assert not found[2:]


async def test_unencrypted_request_to_a_public_address_is_refused() -> None:
    async with client_of("hooks.example.org", found=["1.1.1.1", "1.1.1.1"]) as client:
        url = client.check_url("http://hooks.example.org/x")
        with pytest.raises(ValueError, match="https"):
            await client.check_addresses(url)
        with pytest.raises(RequestError, match="https"):
            await client.post(url, {}, b"{}")


async def test_host_whose_lookup_hangs_occupies_one_thread_and_no_other_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups: list[str] = []
    release = threading.Event()

    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        if host == "hangs.example.org":
            release.wait(20)
        return [(2, 1, 6, "", ("127.0.0.1", 0))]

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    hosts = AllowedHosts([host_rule("*.example.org"), host_rule("127.0.0.1")])
    client = OutboundClient(hosts, "HOSTS", 0.3)
    async with served(answer) as port:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        hanging = client.check_url(f"http://hangs.example.org:{port}/x")
        requests = [client.post(hanging, {}, b"{}") for _ in range(40)]
        failed = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(one, RequestError) for one in failed)
        with pytest.raises(RequestError):
            await client.post(hanging, {}, b"{}")
        other = client.check_url(f"http://other.example.org:{port}/x")
        assert (await client.post(other, {}, b"{}")).status == 200
        release.set()
        assert (await client.post(hanging, {}, b"{}")).status == 200
        assert lookups.count("hangs.example.org") <= 2
    await client.close()


async def test_redirect_is_not_followed(receiver: Receiver) -> None:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": receiver.url})

    async with served(redirect) as port, client_of("127.0.0.1") as client:
        url = client.check_url(f"http://127.0.0.1:{port}/x")
        assert (await client.post(url, {}, b"{}")).status == 307
    assert not receiver.attempts


async def test_endless_response_is_not_read_to_its_end() -> None:
    written = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(1 << 16))
                written += 1 << 16
        return response

    async with served(endless) as port, client_of("127.0.0.1") as client:
        url = client.check_url(f"http://127.0.0.1:{port}/x")
        async with Deadline("the status"):
            assert (await client.post(url, {}, b"{}")).status == 200
    assert written < 64 << 20  # the buffers of the two sockets


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "slow"])
async def test_slow_receiver_is_left_after_the_timeout(is_silent: bool) -> None:
    async def serve_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if not is_silent:
                writer.write(b"HTTP/1.1 200 OK\r\n")
            while await reader.read(1 << 16):  # until the client ends the connection
                await writer.drain()
                if not is_silent:
                    writer.write(b"X-Name: 1\r\n")
        writer.close()
        await writer.wait_closed()
        has_ended.set()

    has_ended = asyncio.Event()
    async with await asyncio.start_server(serve_slowly, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with client_of("127.0.0.1", timeout=0.2) as client:
            with pytest.raises(RequestError, match=r"0\.2 s"):
                await client.post(URL(f"http://127.0.0.1:{port}/x"), {}, b"{}")
        async with Deadline("the end of the connection"):
            await has_ended.wait()


async def test_certificate_of_an_unknown_authority_is_refused(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(self_signed("127.0.0.1"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    async with served(answer, tls) as port:
        url = f"https://127.0.0.1:{port}/x"
        async with client_of("127.0.0.1") as client:
            with pytest.raises(RequestError, match="certificate"):
                await client.post(client.check_url(url), {}, b"{}")
        async with client_of("127.0.0.1", "localhost", tls=trusting) as client:
            assert (await client.post(client.check_url(url), {}, b"{}")).status == 200
        async with client_of("localhost", found=["127.0.0.1"], tls=trusting) as client:
            with pytest.raises(RequestError, match="certificate"):  # it has another name
                await client.post(client.check_url(url.replace("127.0.0.1", "localhost")), {}, b"")


def self_signed(host: str) -> bytes:
    """A certificate for an address and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM) + secret


@contextlib.asynccontextmanager
async def served(handler: object, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve POST requests on a local port."""
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
