"""Log lines: fields, formats and redaction; the stderr of agents."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.agents.host import stderr
from server.logs import JsonFormatter, TextFormatter

from .conftest import Serve, Spawn
from .support.harness import (
    ADMIN,
    ROOT,
    Json,
    eventually,
    mock_agent,
    new_client,
    run_program,
    script,
)


def lines_of(log: Path) -> list[Json]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def said(lines: list[Json], message: str) -> Json:
    found = [line for line in lines if line["message"] == message]
    assert len(found) == 1, (message, lines)
    return found[0]


@pytest.mark.parametrize("log_format", ["text", pytest.param("json", marks=pytest.mark.slow)])
async def test_token_in_a_request_is_redacted(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path, log_format: str
) -> None:
    server = await spawn(LOG_FORMAT=log_format)
    client = await new_client(server.url, http)
    await client.get(f"/sessions/{client.token}")
    await client.get(f"/{client.token}/nowhere")
    await server.stop()
    log = (tmp_path / "server.log").read_text("utf-8")
    assert "/sessions/cf_… 404" in log
    assert str(client.token)[3:] not in log


async def test_lines_have_the_request_app_session_and_turn(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(LOG_FORMAT="json")
    client = await new_client(server.url, http, name="bot")
    secret = "a secret of the prompt's"
    session = await client.create()
    about = {"app": "bot", "session": session}
    await client.turn(session, secret)
    turn_request = client.last_headers["X-Request-Id"]
    socket = await client.connect(session)
    await socket.turn(script({"error": {"code": -1, "message": secret}}))
    await socket.close()
    await client.get(f"/sessions?token={client.token}&include_closed=true")
    for path in ("/healthz", "/readyz"):
        await client.get(path)
    await client.delete(f"/sessions/{session}")
    status, _ = await client.get("/nowhere")
    assert status == 404
    await server.stop()

    lines = lines_of(tmp_path / "server.log")
    turn = said(lines, f"POST /sessions/{session}/turn 200")
    assert about.items() <= turn.items()
    assert (turn["request_id"], turn["turn"]) == (turn_request, 1)
    assert about.items() <= said(lines, "session opened: mock").items()
    ended = {**about, "request_id": turn_request, "turn": 1}
    assert ended.items() <= said(lines, "turn ended: end_turn").items()
    upgrade = said(lines, f"GET /sessions/{session}/ws 101")
    ended = {**about, "request_id": upgrade["request_id"], "turn": 2}
    assert ended.items() <= said(lines, "turn ended: error: agent_failed").items()
    assert about.items() <= said(lines, "session closed: client").items()
    said(lines, "GET /sessions 200")
    said(lines, "GET /nowhere 404")

    whole = (tmp_path / "server.log").read_text("utf-8")
    assert client.token is not None
    for secret_text in (secret, client.token, ADMIN, "include_closed", "healthz", "readyz"):
        assert secret_text not in whole


def record(**extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("server.x", logging.INFO, "x.py", 1, "hello %s", ("you",), None)
    made.__dict__.update(extra)
    return made


def test_text_and_json_formats() -> None:
    text = TextFormatter().format(record(request_id="r", app="a", session=None, turn=3))
    assert re.fullmatch(r"[-\d]+ [:\d]+ info    hello you request_id=r app=a turn=3", text)
    entry = json.loads(JsonFormatter().format(record(session="s", secret="no field of ours")))
    assert entry.pop("at")
    assert entry == {
        "level": "info",
        "logger": "server.x",
        "message": "hello you",
        "session": "s",
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_line_break_in_a_message_is_escaped(formatter: logging.Formatter) -> None:
    forged = formatter.format(record(app="a\n2026-01-01 00:00:00 info    forged"))
    assert len(forged.splitlines()) == 1


STRAY = """
import asyncio, logging, sys, threading, warnings
from server import logs
from server.config import Settings
logs.set_up(Settings(log_format=sys.argv[1], admin_token="the-operators-own-secret-1"))
SECRET = "cf_" + "s" * 43
warnings.warn(f"a file {SECRET}\\n2026-01-01 00:00:00 info forged \\x1b[31m", stacklevel=1)
def fail(): raise ValueError(f"thread {SECRET} the-operators-own-secret-1")
thread = threading.Thread(target=fail); thread.start(); thread.join()
class Odd:
    def __del__(self): raise ValueError("ignored")
Odd()
class Unwritable:
    def __str__(self): raise ValueError("unwritable")
logging.warning("%s", Unwritable())
async def main():
    asyncio.get_running_loop().call_soon(fail)
    async def task(): fail()
    asyncio.create_task(task())
    await asyncio.sleep(0.01)
asyncio.run(main())
raise ValueError(f"uncaught {SECRET}")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_warnings_and_uncaught_exceptions_are_logged(log_format: str) -> None:
    status, out, err = await run_program(
        sys.executable, "-c", STRAY, log_format, PYTHONWARNINGS="default", PYTHONPATH=str(ROOT)
    )
    assert (status, out) == (1, "")
    assert "ssss" not in err
    assert "operators" not in err
    assert "\x1b" not in err
    if log_format == "json":
        entries = [json.loads(line) for line in err.splitlines()]
        assert [entry["logger"] for entry in entries] == [
            *("py.warnings", "server.logs", "server.logs", "server.logs"),
            *("asyncio", "asyncio", "server.logs"),
        ]
        assert all(entry.get("exception") for entry in entries[-3:])
    else:
        heads = [line for line in err.splitlines() if not line.startswith("    ")]
        assert len(heads) == 7
        assert all(re.match(r"[-\d]+ [:\d]+ (warning|error  |critical) ", line) for line in heads)


async def test_stderr_of_an_agent_is_kept_until_its_session_is_deleted(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr, "FILE_BYTES", 2000)
    noisy = mock_agent("--stderr=no login")
    server = await serve(agents={"noisy": noisy}, default_agent="noisy", session_hard_ttl_secs=0)
    client = await server.client()
    session = await client.create("noisy")
    await client.turn(session, script(*[{"stderr": f"line {n:03}"} for n in range(300)]))
    kept = stderr.stderr_path(tmp_path / "data" / "stderr", session)
    await eventually("stderr to be kept", lambda: kept.exists() and "299" in kept.read_text())
    lines = kept.read_text("utf-8").splitlines()
    assert lines[-1] == "line 299"
    assert lines == [f"line {n:03}" for n in range(300 - len(lines), 300)], "whole lines, in order"
    assert kept.stat().st_size <= 2000
    assert kept.stat().st_mode & 0o777 == 0o600
    await client.delete(f"/sessions/{session}")
    await server.services.sessions.sweeper.sweep()
    assert not kept.exists()
