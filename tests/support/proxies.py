"""Real proxies in front of a server, with the configuration of ``docs/howto/proxy.md``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .harness import ROOT, TIMEOUT_SECS, eventually

NAME = "chat.example.org"
DOCUMENTED = "127.0.0.1:8800"
"""The server's address in the documentation."""


def program(name: str) -> str:
    """The path of a system program. Without it the test is skipped, or fails in CI."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        missing = f"{name} is not installed"
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def configuration(marker: str) -> str:
    """The code block after ``<!-- marker -->`` in the documentation."""
    text = (ROOT / "docs" / "howto" / "proxy.md").read_text("utf-8")
    found = re.findall(
        rf"^<!-- {re.escape(marker)} -->\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1, marker
    return str(found[0])


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def certificate(folder: Path) -> tuple[Path, Path]:
    """Create a certificate for :data:`NAME`. Returns the certificate and its key."""
    certificate_file, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(program("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"),
            *("-out", str(certificate_file), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate_file, key


@contextlib.asynccontextmanager
async def running(argv: list[str], port: int, folder: Path) -> AsyncIterator[None]:
    """Run a proxy in the foreground, from its first accepted connection on."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "proxy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *argv, env=environ, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )

    async def is_listening() -> bool:
        assert process.returncode is None, (folder / "proxy.log").read_text("utf-8")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually("the proxy to listen", is_listening)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), TIMEOUT_SECS)


@contextlib.asynccontextmanager
async def nginx(folder: Path, port: int, server: str) -> AsyncIterator[Path]:
    """Run nginx in front of *server* (``127.0.0.1:PORT``), at the root and under ``/chat/``.

    Yields the certificate that clients must trust.
    """
    cert, key = certificate(folder)
    site = configuration("nginx")
    site = replaced(site, "listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    site = replaced(site, "/etc/ssl/chat.example.org.pem", str(cert))
    site = replaced(site, "/etc/ssl/chat.example.org.key", str(key))
    site = replaced(
        site, "    location / {", f"{configuration('nginx under a path')}\n    location / {{"
    )
    site = replaced(site, DOCUMENTED, server)
    user = "user root;" if os.getuid() == 0 else ""
    whole = (
        f"daemon off; pid {folder}/pid; error_log stderr; {user} worker_processes 1;\n"
        "events {}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n"
        f"{site}}}\n"
    )
    (folder / "nginx.conf").write_text(whole, "utf-8")
    argv = [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    async with running(argv, port, folder):
        yield cert


@contextlib.asynccontextmanager
async def caddy(folder: Path, port: int, server: str) -> AsyncIterator[Path]:
    """Run Caddy in the same way. It issues its certificates itself."""
    options = (
        "{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n\tauto_https disable_redirects\n"
        f"\tstorage file_system {folder}/storage\n}}\n"
    )
    site = replaced(
        configuration("caddy"), f"{NAME} {{", f"https://{NAME}:{port} {{\n\tbind 127.0.0.1"
    )
    other = configuration("caddy under a path")
    inside = replaced(other, "www.example.org {\n", "").rstrip().removesuffix("}")
    site = replaced(site, "\treverse_proxy", f"{inside}\treverse_proxy")
    (folder / "Caddyfile").write_text(options + replaced(site, DOCUMENTED, server), "utf-8")
    argv = [
        program("caddy"),
        "run",
        "--adapter",
        "caddyfile",
        "--config",
        str(folder / "Caddyfile"),
    ]
    root = folder / "storage" / "pki" / "authorities" / "local" / "root.crt"

    async def is_trusted() -> bool:
        trust = ssl.create_default_context(cafile=root)
        try:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trust, server_hostname=NAME
            )
        except OSError:  # Caddy signs it a moment later
            return False
        writer.close()
        return True

    async with running(argv, port, folder):
        await eventually("Caddy's authority", root.exists)
        await eventually("Caddy's certificate", is_trusted)
        yield root
