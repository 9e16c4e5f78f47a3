"""The network policies: what programs in a sandbox reach, and what they do not."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from server.config import SettingError, Settings
from server.gateways import domain_proxy
from server.gateways.connections import MAX_UNKNOWN
from server.gateways.domains import AllowedDomains
from server.reload.program import ReloadError
from server.sandbox.levels import RESTRICT, Mechanism
from server.sandbox.setup import check_network
from server.sandbox.trial import TrialSpec

from ..conftest import Serve
from ..support import real_agents
from ..support.harness import LocalServer
from ..support.sandboxes import mechanism, system_python
from . import network_attempts

each_level = pytest.mark.parametrize(
    "level", ["landlock", pytest.param("bwrap", marks=pytest.mark.slow)]
)
ATTEMPTS = Path(__file__).with_name("network_attempts.py")


async def run_in(
    server: LocalServer, argv: Sequence[str], **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a sandbox of the server."""
    sandbox, settings = server.services.sessions.backend.sandbox, server.services.settings
    key = f"probe-{secrets.token_hex(4)}"
    cwd = settings.data_dir / "workspaces" / key
    cwd.mkdir(parents=True)
    plan = await asyncio.to_thread(sandbox.plan, TrialSpec(key, str(cwd)), environ)
    file = settings.data_dir / f"{key}.json"
    file.write_text(json.dumps(plan))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(RESTRICT), str(file), *argv],
            env={"PATH": os.environ["PATH"], "HOME": "/nowhere"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return await asyncio.to_thread(run)


def wheel(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return content.getvalue()


def npm_package() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        data = json.dumps({"name": "tiny", "version": "1.0.0"}).encode()
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
async def web_server(tmp_path: Path) -> AsyncIterator[int]:
    """A stand-in for the web: a page, a git repository, a package index and an npm registry."""
    repository = tmp_path / "web" / "repository.git"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path / "work")]
    (tmp_path / "work").mkdir()
    for command in (
        [*git, "init", "-q"],
        [*git, "commit", "-q", "--allow-empty", "-m", "first"],
        ["git", "clone", "-q", "--bare", str(tmp_path / "work"), str(repository)],
        ["git", "-C", str(repository), "update-server-info"],
    ):
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)

    async def answer(request: web.Request) -> web.StreamResponse:
        base = f"http://{request.host}"
        match request.path:
            case "/":
                return web.Response(text="the page")
            case "/simple/tiny/":
                link = '<a href="/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>'
                return web.Response(text=link, content_type="text/html")
            case "/tiny-1.0-py3-none-any.whl":
                return web.Response(body=wheel("tiny"))
            case "/tiny":
                found = {
                    "name": "tiny",
                    "dist-tags": {"latest": "1.0.0"},
                    "versions": {
                        "1.0.0": {
                            "name": "tiny",
                            "version": "1.0.0",
                            "dist": {"tarball": f"{base}/tiny.tgz"},
                        }
                    },
                }
                return web.json_response(found)
            case "/tiny.tgz":
                return web.Response(body=npm_package())
        path = tmp_path / "web" / request.path.lstrip("/")
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield int(runner.addresses[0][1])
    await runner.cleanup()


@pytest.mark.slow
@each_level
async def test_tools_work_through_the_proxy_and_not_past_it(
    serve: Serve, web_server: int, level: str
) -> None:
    mechanism(level)
    server = await serve(
        sandbox=level, sandbox_network="proxy", sandbox_domains=(f"localhost:{web_server}",)
    )
    url = f"http://localhost:{web_server}"
    npm = real_agents.NODE / "lib/node_modules/npm/bin/npm-cli.js"
    pip = [system_python(), "-m", "pip", "--isolated", "--disable-pip-version-check"]
    commands = {
        "curl": ["curl", "-sSf", url],
        "tunnel": ["curl", "-sSf", "--proxytunnel", url],
        "git": ["git", "clone", "-q", f"{url}/repository.git"],
        "npm": [str(real_agents.NODE / "bin/node"), str(npm), f"--registry={url}", "view", "tiny"],
        "pip": [*pip, "download", "-q", "--no-deps", "--index-url", f"{url}/simple", "tiny"],
    }
    for name, argv in commands.items():
        if name == "pip" and (await run_in(server, [*pip, "--version"])).returncode != 0:
            continue
        result = await run_in(server, argv)
        assert result.returncode == 0, (name, result)
    assert (await run_in(server, ["curl", "-sSf", url])).stdout == "the page"

    refused = await run_in(server, ["curl", "-sSf", f"http://other.example:{web_server}"])
    assert refused.returncode != 0
    assert "403" in refused.stderr
    direct = await run_in(server, ["curl", "-sSf", "--noproxy", "*", url])
    assert direct.returncode != 0
    await check_reach(server, web_server)


def has_version_6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:  # a container may lack it
        return False
    return True


async def check_reach(server: LocalServer, port: int) -> dict[str, str]:
    """Check that a hostile program reaches no more than the docs say. Returns what it found."""
    sandbox, policy = server.services.sessions.backend.sandbox, server.services.settings
    (gateway,) = sandbox.network.gateway_ports
    family, host = (socket.AF_INET6, "::1") if has_version_6() else (socket.AF_INET, "127.0.0.1")
    with socket.create_server((host, 0), family=family) as other:
        targets = {"port": port, "port6": other.getsockname()[1], "gateway": gateway}
        code = ATTEMPTS.read_text()
        argv = [system_python(), "-I", "-S", "-c", code, json.dumps(targets)]
        result = await run_in(server, argv)
    found: dict[str, str] = json.loads(result.stdout)
    if sandbox.level == "bwrap" and sandbox.network.is_own:
        done = {name for name, what in found.items() if what == "done"}
        assert done <= network_attempts.ONLY_WITHIN
        assert found["connect_to_metadata_service"] not in ("done", "asked")
    else:
        open_ = {name for name, what in found.items() if what in ("done", "asked")}
        kind = "web" if policy.sandbox_network == "web" else "none"
        assert open_ <= network_attempts.OPEN[kind], found
    return found


@each_level
async def test_key_proxy_is_reachable_without_a_network(
    serve: Serve, web_server: int, level: str
) -> None:
    mechanism(level)
    server = await serve(sandbox=level, sandbox_network="none", key_proxy="on")
    sandbox = server.services.sessions.backend.sandbox
    (port,) = sandbox.network.gateway_ports
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
    for _ in range(2):  # each sandbox has a network of its own
        result = await run_in(server, [*argv, f"http://127.0.0.1:{port}/anthropic/v1/messages"])
        assert result.stdout == "401", result
    await check_reach(server, web_server)
    assert "loopback" not in sandbox.open
    assert "network" in sandbox.enforced


@each_level
async def test_web_policy_allows_only_the_ports_of_the_web(
    serve: Serve, web_server: int, level: str
) -> None:
    mechanism(level)
    server = await serve(sandbox=level, sandbox_network="web", key_proxy="on")
    (port,) = server.services.sessions.backend.sandbox.network.gateway_ports
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
    result = await run_in(server, [*argv, f"http://127.0.0.1:{port}/anthropic/v1/messages"])
    assert result.stdout == "401", result
    found = await check_reach(server, web_server)
    assert found["connect_to_port_of_web"] in ("done", "asked")


def test_policy_that_cannot_be_enforced_stops_the_start() -> None:
    for level, abi, fields in (
        ("off", 7, {"sandbox_network": "none"}),
        ("landlock", 3, {"sandbox_network": "none"}),
        ("bwrap", 3, {"sandbox_network": "web"}),
        ("bwrap", 7, {"sandbox_network": "proxy"}),
        ("bwrap", 7, {"sandbox_domains": ("a.example",)}),
    ):
        found = Mechanism(level, is_chosen=True, abi=abi)  # type: ignore[arg-type]
        with pytest.raises(SettingError, match="CLAWDFORGE_SANDBOX_"):
            check_network(Settings(**fields), found)


@pytest.mark.parametrize(
    ("host", "port", "is_allowed"),
    [
        ("crates.io", 443, True),
        ("Crates.IO.", 80, True),
        ("crates.io", 22, False),
        ("evil-crates.io", 443, False),
        ("crates.io.evil.example", 443, False),
        ("api.github.com", 443, True),
        ("a.b.github.com", 443, True),
        ("github.com", 443, False),
        ("notgithub.com", 443, False),
        ("registry.internal", 8443, True),
        ("registry.internal", 443, False),
    ],
)
def test_domains_are_matched_by_whole_labels(host: str, port: int, is_allowed: bool) -> None:
    domains = AllowedDomains(["crates.io", "*.github.com", "registry.internal:8443"])
    assert domains.allows(host, port) == is_allowed


def test_private_addresses_need_an_entry_with_a_port() -> None:
    domains = AllowedDomains(["crates.io", "*.github.com:443", "registry.internal:8443"])
    for address in (
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "64:ff9b::10.0.0.1",
        "2002:a00:1::1",
        "fec0::1",
    ):
        assert not domains.allows_address("crates.io", 443, address)
        assert not domains.allows_address("a.github.com", 443, address)
        assert domains.allows_address("registry.internal", 8443, address)
    assert domains.allows_address("crates.io", 443, "151.101.0.223")


async def test_server_with_allowed_domains_reloads_while_no_agent_runs(serve: Serve) -> None:
    mechanism("landlock")
    server = await serve(
        sandbox="landlock", sandbox_network="proxy", sandbox_domains=("a.example",)
    )
    client = await server.client()
    session = await client.create()
    await client.turn(session, "hello")
    carriers = {one.name: one for one in server.services.reloader.carriers}
    with pytest.raises(ReloadError):
        await carriers["listeners"].freeze()
    assert await server.services.sessions.cached[session].agent.hibernate()
    await carriers["listeners"].freeze()
    carriers["listeners"].thaw()


async def raw(port: int, text: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    status = await reader.readline()
    writer.close()
    return status


async def test_proxy_requires_the_token_of_a_session(serve: Serve, web_server: int) -> None:
    mechanism("landlock")
    server = await serve(
        sandbox="landlock", sandbox_network="proxy", sandbox_domains=(f"localhost:{web_server}",)
    )
    (port,) = server.services.sessions.backend.sandbox.network.gateway_ports
    target = f"localhost:{web_server}"
    for header in ("", "Proxy-Authorization: Basic eDp5\r\n", "Proxy-Authorization: Basic !!\r\n"):
        for line in (
            f"CONNECT {target} HTTP/1.1",
            f"GET http://{target}/ HTTP/1.1",
            "GET / HTTP/1.1",
        ):
            status = await raw(port, f"{line}\r\nHost: {target}\r\n{header}\r\n")
            assert b" 407 " in status


@pytest.mark.parametrize(
    ("target", "status"),
    [
        # The resolver of the C library reads a name up to its first NUL.
        ("localhost\0.allowed.example:443", b" 400 "),
        ("b\xe9.allowed.example:443", b" 400 "),
        ("%6cocalhost.allowed.example:443", b" 400 "),
        ("allowed@localhost:443", b" 400 "),
        ("localhost:443/.allowed.example", b" 400 "),
        ("localhost#.allowed.example:443", b" 400 "),
        ("localhost", b" 400 "),
        ("allowed.example:99999", b" 400 "),
        ("2130706433:443", b" 403 "),
        ("0x7f.1:443", b" 403 "),
        ("0177.0.0.1:443", b" 403 "),
        ("127.1:443", b" 403 "),
        ("0.0.0.0:443", b" 403 "),
        ("[::1]:443", b" 403 "),
        ("[::]:443", b" 403 "),
        ("[::ffff:127.0.0.1]:443", b" 403 "),
        ("[::ffff:7f00:1]:443", b" 403 "),
        ("169.254.169.254:80", b" 403 "),
        ("metadata.google.internal:80", b" 403 "),
        ("localhost.:443", b" 403 "),
        ("LOCALHOST:443", b" 403 "),
        ("allowed.example:22", b" 403 "),
        (".allowed.example.evil:443", b" 403 "),
        ("127.0.0.1.nip.io:443", b" 403 "),
        ("localhost,x.allowed.example:443", b" 400 "),
    ],
)
async def test_other_spellings_of_a_host_open_no_other_host(target: str, status: bytes) -> None:
    proxy = domain_proxy.DomainProxy(
        AllowedDomains(["allowed.example", "*.allowed.example"]), lambda _: "session"
    )
    await proxy.start()
    try:
        credentials = "Proxy-Authorization: Basic eDp5\r\n\r\n"
        found = await raw(proxy.port, f"CONNECT {target} HTTP/1.1\r\n{credentials}")
        assert status in found
        if "/" not in target and ":443" in target:
            url = f"http://{target}/"
            found = await raw(proxy.port, f"GET {url} HTTP/1.1\r\n{credentials}")
            assert b" 40" in found
    finally:
        await proxy.stop()


class Rebinding:
    """A name that resolves to another address every time."""

    def __init__(self, *addresses: str) -> None:
        self.left = list(addresses)

    async def getaddrinfo(self, host: str, port: int, **_: object) -> list[object]:
        return [(0, 0, 0, "", (self.left.pop(0), port))]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "10.0.0.1", "169.254.169.254", "100.64.0.1", "192.168.1.1"),
        *("::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "fe80::1%1", "fd00::1", "ff02::1"),
        *("64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1", "255.255.255.255", "192.0.0.192"),
        "168.63.129.16",
    ],
)
async def test_allowed_name_that_changes_its_address_opens_no_private_one(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    names = Rebinding(address, "93.184.215.14")
    loop = asyncio.get_running_loop()
    proxy = domain_proxy.DomainProxy(AllowedDomains(["*.allowed.example"]), lambda _: "session")
    await proxy.start()
    monkeypatch.setattr(loop, "getaddrinfo", names.getaddrinfo, raising=False)
    try:
        head = "CONNECT a.allowed.example:443 HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n"
        reader, writer = await asyncio.open_connection(
            sock=await asyncio.to_thread(socket.create_connection, ("127.0.0.1", proxy.port))
        )
        writer.write(head.encode())
        assert b" 403 " in await reader.readline()
        assert len(names.left) == 1  # it was resolved once
        writer.close()
    finally:
        await proxy.stop()


async def test_silent_connections_do_not_lock_others_out_of_the_allowed_domains() -> None:
    proxy = domain_proxy.DomainProxy(AllowedDomains([]), lambda _: "session")
    await proxy.start()
    head = "CONNECT other.example:443 HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n"
    silent: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        while len(silent) < MAX_UNKNOWN + 20:
            silent.append(await asyncio.open_connection("127.0.0.1", proxy.port))
        assert b" 403 " in await raw(proxy.port, head)
        for reader, _ in silent[:20]:  # the oldest ones
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    finally:
        for _, writer in silent:
            writer.close()
        await proxy.stop()


@pytest.mark.parametrize("is_silent", [False, True])
async def test_tunnel_ends_once_neither_side_sends(
    monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    """A download, in which the program sends nothing, may take longer than the limit."""
    idle_secs = 0.2 if is_silent else 1.0
    monkeypatch.setattr(domain_proxy, "TUNNEL_IDLE_SECS", idle_secs)
    loop = asyncio.get_running_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = loop.time() + 1.5 * idle_secs
        while not is_silent and loop.time() < end:
            writer.write(b".")
            await asyncio.sleep(0.02)
        if is_silent:
            await reader.read()
        writer.write(b"end")
        writer.close()

    host = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = host.sockets[0].getsockname()[1]
    proxy = domain_proxy.DomainProxy(AllowedDomains([f"localhost:{port}"]), lambda _: "session")
    await proxy.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        head = f"CONNECT localhost:{port} HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n"
        writer.write(head.encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(30):
            received = await reader.read()
        assert received.endswith(b"end") != is_silent
        writer.close()
    finally:
        await proxy.stop()
        host.close()
