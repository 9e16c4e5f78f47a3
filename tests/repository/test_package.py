"""The packages: built, installed in empty environments, and used there without this clone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from server.agents.catalog import find_node

from ..conftest import Spawn
from ..support.harness import ROOT, new_client
from .test_guides import program_of
from .test_readme import snippet

NODE = find_node()
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def test_client_has_the_version_of_the_server() -> None:
    from clawdforge_client import __version__ as of_client

    from server import __version__ as of_server

    assert of_client == of_server


def environ_of_a_new_user(home: Path, **variables: str) -> dict[str, str]:
    """An environment without anything of this clone."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CLAWDFORGE_", "PYTHON", "VIRTUAL_ENV", "NODE_COMPILE", "XDG_"))
    }
    # The registry that this machine uses.
    npmrc = {"npm_config_userconfig": str(Path.home() / ".npmrc")}
    return {**kept, **npmrc, "HOME": str(home), "DEMO_PACE_MS": "0", **variables}


def run(*argv: str | Path, cwd: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [str(one) for one in argv],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for source in (".", "clients/python"):
        subprocess.run(
            [*PIP, "wheel", "-q", "--no-deps", "-w", folder, source], cwd=ROOT, check=True
        )
    return folder


def new_environment(folder: Path, *packages: Path) -> Path:
    """A virtual environment with these packages. Returns its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    argv = [python, *PIP[1:], "install", "-q", *packages]
    subprocess.run([str(one) for one in argv], cwd=folder, check=True)
    return folder / "bin"


@asynccontextmanager
async def started(program: Path, folder: Path, **variables: str) -> AsyncIterator[tuple[str, str]]:
    """Start the installed server. Yields its address and its output until it was ready."""
    process = await asyncio.create_subprocess_exec(
        *(program, "run"),
        cwd=folder,
        env=environ_of_a_new_user(folder, CLAWDFORGE_PORT="0", **variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        output = ""
        async with asyncio.timeout(600):
            while "hashes" not in output and "stopping" not in output:
                line = (await process.stdout.readline()).decode()
                assert line, output
                output += line
                if "is ready on" in line and variables.get("CLAWDFORGE_ADMIN_TOKEN"):
                    break
        found = re.search(r"is ready on (\S+)/", output)
        assert found is not None, output
        yield found[1], output
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = await asyncio.gather(process.wait(), process.stdout.read())
        assert process.returncode == 0, rest.decode()
        assert "Traceback" not in rest.decode()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_wheel_runs_in_an_empty_environment_and_then_offline(
    wheels: Path, tmp_path: Path
) -> None:
    [server] = wheels.glob("clawdforge-*.whl")
    [client] = wheels.glob("clawdforge_client-*.whl")
    programs = await asyncio.to_thread(new_environment, tmp_path / "server", server)
    user = await asyncio.to_thread(new_environment, tmp_path / "client", client)
    folder = tmp_path / "home"
    folder.mkdir()
    bot = folder / "bot.py"
    clawdforge = programs / "clawdforge"

    async with started(clawdforge, folder) as (url, output):
        assert "the first start installs acpx" in output
        assert "later starts need no network" in output
        found = re.search(r"app token +(cf_\S+)", output)
        assert found is not None
        token = found[1]
        bot.write_text(snippet("the bot").replace("http://127.0.0.1:8800", url), "utf-8")
        environ = environ_of_a_new_user(folder, TOKEN=token)
        said = await asyncio.to_thread(
            run, user / "python", "-W", "error", bot, cwd=folder, environ=environ
        )
        assert "What I can show" in said
        doctor = await asyncio.to_thread(
            run, clawdforge, "doctor", cwd=folder, environ=environ_of_a_new_user(folder)
        )
        assert "ok    acpx" in doctor

    # Neither a registry nor a cache of npm is there.
    offline = {
        "npm_config_registry": "http://127.0.0.1:9/",
        "npm_config_cache": str(tmp_path / "npm"),
    }
    admin = {"CLAWDFORGE_ADMIN_TOKEN": "admin-token-of-the-tests"}
    async with started(clawdforge, folder, **offline, **admin) as (url, output):
        assert "npm" not in output
        bot.write_text(snippet("the bot").replace("http://127.0.0.1:8800", url), "utf-8")
        said = await asyncio.to_thread(run, user / "python", bot, cwd=folder, environ=environ)
        assert "What I can show" in said
        page = await asyncio.to_thread(run, "curl", "-sSf", f"{url}/", cwd=folder, environ=environ)
        assert "?v=" in page  # the minified files, which the first start has made
    assert not (tmp_path / "npm").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_failed_installation_says_why_and_leaves_nothing(
    wheels: Path, tmp_path: Path
) -> None:
    [server] = wheels.glob("clawdforge-*.whl")
    programs = await asyncio.to_thread(new_environment, tmp_path / "server", server)
    home = tmp_path / "home"
    home.mkdir()
    environ = environ_of_a_new_user(
        home, npm_config_registry="http://127.0.0.1:9/", npm_config_fetch_retries="0"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [str(programs / "clawdforge"), "run"],
        cwd=home,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "a registry of npm" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (home / ".cache" / "clawdforge").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_javascript_client_is_installed_from_its_package(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(AGENTS=None, DEFAULT_AGENT="demo")
    token = (await new_client(server.url, http)).token
    assert token is not None
    environ = environ_of_a_new_user(tmp_path, URL=server.url, TOKEN=token)
    build = ROOT / "clients" / "javascript" / "build.mjs"
    await asyncio.to_thread(run, NODE, build, tmp_path, cwd=ROOT, environ=environ)
    [package] = tmp_path.glob("clawdforge-client-*.tgz")
    npm = Path(NODE).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    await asyncio.to_thread(
        run, NODE, npm, "install", "--offline", package, cwd=tmp_path, environ=environ
    )
    (tmp_path / "client.mjs").write_text(program_of("howto/javascript-client.md", "client.mjs"))
    said = await asyncio.to_thread(
        run, NODE, "client.mjs", "hello", "bot", cwd=tmp_path, environ=environ
    )
    assert "hello bot" in said
    # The declarations are valid, and complete.
    (tmp_path / "user.ts").write_text(
        'import { Clawdforge, TurnError } from "clawdforge-client";\n'
        'import { Wire } from "clawdforge-client/wire.js";\n'
        'const forge = new Clawdforge("http://x", "cf_x");\n'
        "const turn = (await forge.createSession()).prompt('hello');\n"
        "const text: string = (await turn.result()).text;\n"
        "export { text, TurnError, Wire };\n"
    )
    tsc = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
    options = ("--noEmit", "--strict", "--target", "es2024", "--module", "nodenext")
    libraries = ("--lib", "esnext,dom,dom.iterable,dom.asynciterable", "--types", "")
    await asyncio.to_thread(
        run, NODE, tsc, *options, *libraries, "user.ts", cwd=tmp_path, environ=environ
    )
