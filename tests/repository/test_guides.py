"""Runs the commands and programs of ``docs/`` as a reader would run them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.agents.catalog import find_node
from server.web import resources

from ..conftest import Serve, Spawn
from ..support.harness import ROOT, TIMEOUT_SECS, eventually, new_client, script
from ..support.operator import Operator
from ..support.proxies import free_port, program


def commands_of(page: str) -> str:
    """The shell blocks of a page that are marked with ``<!-- run -->``, as one script."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    blocks = re.findall(r"^<!-- run -->\n```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks, f"{page} has no commands to run"
    return "".join(blocks)


def program_of(page: str, name: str) -> str:
    """The program of a page that is marked with its file name."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = re.findall(
        rf"^<!-- {re.escape(name)} -->\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1, name
    return str(found[0])


async def bash(text: str, folder: Path, **variables: str) -> str:
    """Run a script that stops at the first failure, and return its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euxo", "pipefail", "-c", text),
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 10 * TIMEOUT_SECS)
    assert process.returncode == 0, out.decode()
    return out.decode()


PYTHON_HERE = r"""
python() {
    exec 9<>"/dev/tcp/127.0.0.1/$OPERATOR"
    printf '%s\n' "$@" '' >&9
    local status
    read -r status <&9
    cat <&9
    exec 9>&-
    return "$status"
}
"""
"""A bash function `python` that lets :class:`Operator` run its arguments. A real Python takes 0.4 s
to start, and `tests/commands` already checks that the module runs."""


async def test_operator_commands_work_as_shown(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await spawn(AGENTS=None, DEFAULT_AGENT="demo")
    client = await new_client(server.url, http)
    await client.turn(await client.create("demo"), "hello")
    operator = Operator(tmp_path / "data", monkeypatch)
    ran: list[str] = []

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\n\n")).decode()
        module, name, *argv = asked.split("\n")[:-2]
        try:
            assert (module, name) == ("-m", "server")
            said, _ = await operator.run(*argv)
            ran.append(argv[0])
            writer.write(f"0\n{said}".encode())
        except Exception as error:
            writer.write(f"1\n{error!r}\n".encode())
            raise
        finally:
            await writer.drain()
            writer.close()

    commands = commands_of("howto/operations.md")
    async with await asyncio.start_server(run, "127.0.0.1", 0) as listener:
        port = str(listener.sockets[0].getsockname()[1])
        out = await bash(PYTHON_HERE + commands, tmp_path, OPERATOR=port)
    assert len(ran) == len(re.findall(r"python -m server", commands))
    assert "a server uses it" in out
    assert "hello" in (tmp_path / "session.md").read_text("utf-8")
    assert (tmp_path / "clawdforge.tar.gz").is_file()
    assert await client.get("/sessions") == (200, {"ok": True, "count": 0, "sessions": []})


async def test_bots_print_the_answer_and_report_a_refused_token(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(AGENTS=None, DEFAULT_AGENT="demo")
    client = await new_client(server.url, http)
    assert client.token is not None
    program("jq")
    runners = {"bot.py": sys.executable, "bot.mjs": find_node(), "bot.sh": "bash"}
    runners["client.py"] = sys.executable
    pages = {"client.py": "howto/python-client.md"}

    async def run(name: str, runner: str | Path, token: str) -> str:
        command = f"'{runner}' {name} hello, bot"
        command = f"exec {command}" if token == client.token else f"! {command}"
        return await bash(command, tmp_path, URL=server.url, TOKEN=token)

    for name in runners:
        (tmp_path / name).write_text(program_of(pages.get(name, "tutorial/bots.md"), name), "utf-8")
    answers = [run(*each, client.token) for each in runners.items()]
    refusals = [run(*each, "cf_wrong") for each in runners.items()]
    said = await asyncio.gather(*answers, *refusals)
    for name, out in zip(runners, said[: len(runners)], strict=True):
        assert "hello, bot" in out.partition("hello, bot")[2], (name, out)
    for name, out in zip(runners, said[len(runners) :], strict=True):
        assert "a valid token is needed" in out, (name, out)


@pytest.mark.slow
async def test_bot_resumes_after_a_killed_server(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    port = str(free_port())
    server = await spawn(PORT=port)
    client = await new_client(server.url, http)
    assert client.token is not None
    (tmp_path / "bot.py").write_text(program_of("tutorial/bots.md", "bot.py"), "utf-8")
    gate = tmp_path / "gate"
    text = script({"say": "one "}, {"gate": str(gate)}, {"say": "two "})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "bot.py", text),
        cwd=tmp_path,
        env={**os.environ, "URL": server.url, "TOKEN": client.token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_SECS):
        assert await process.stdout.readexactly(4) == b"one "
    await server.kill()
    server = await spawn(PORT=port)
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_SECS)
    # The turn ended with its server: the bot reports it and has received nothing twice.
    assert (process.returncode, out) == (1, b"")
    assert b"the server restarted" in err


async def test_embedded_page_connects_with_a_ticket(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    port = str(free_port())
    server = await spawn(AGENTS=None, DEFAULT_AGENT="demo")
    client = await new_client(server.url, http)
    assert client.token is not None
    (tmp_path / "backend.py").write_text(program_of("howto/embed.md", "backend.py"), "utf-8")
    # It goes on forever, as a page does; fetch has no page to be relative to in Node.
    prelude = (
        f"const {{ fetch: real }} = globalThis;\n"
        f"globalThis.fetch = (path, options) => real('http://127.0.0.1:{port}' + path, options);\n"
        "const { log } = console;\n"
        "console.log = (text) => { log(text); process.exit(0); };\n"
    )
    (tmp_path / "page.mjs").write_text(prelude + program_of("howto/embed.md", "page.mjs"), "utf-8")
    backend = await asyncio.create_subprocess_exec(
        *(sys.executable, "backend.py"),
        cwd=tmp_path,
        env={**os.environ, "URL": server.url, "TOKEN": client.token, "PORT": port},
    )
    try:

        async def answers() -> bool:
            try:
                async with http.get(f"http://127.0.0.1:{port}/"):
                    return True
            except aiohttp.ClientConnectionError:
                return False

        await eventually("the backend to answer", answers)
        out = await bash(f"exec '{find_node()}' page.mjs", tmp_path)
    finally:
        backend.terminate()
        await backend.wait()
    assert "What I can show" in out


async def test_resource_of_the_guide_passes_its_tests(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "howto/add-a-rest-resource.md"
    (tmp_path / "notes.py").write_text(program_of(page, "the resource"), "utf-8")
    monkeypatch.setattr(resources, "__path__", [*resources.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{resources.__name__}.notes", raising=False)
    client = await (await serve()).client()
    tests: dict[str, Any] = {"__package__": "tests.web", "__name__": "tests.web.test_notes"}
    exec(program_of(page, "the tests"), tests)
    found = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(found) == 2
    for test in found:
        await test(client)
