"""Requests, processes and rows of ``/run``, for its tests."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp

from server.data_dir import DataDir
from server.storage.rows import RunRow

from .engine import stored_rows
from .harness import ROOT, Client, Json, LocalServer, eventually, is_running

KEYS = {"ok", "result", "duration_ms", "stop_reason"}
FAILURE_KEYS = {"ok", "error", "code", "stderr", "duration_ms", "stop_reason"}


def steps(*steps: Json) -> str:
    """A prompt that the fake claude executes; see the table of steps in its docstring."""
    return json.dumps(steps)


def make_fake_claude(folder: Path) -> str:
    """Create the fake program in *folder*, run by this Python. Returns its path."""
    source = (ROOT / "tests" / "stand_ins" / "fake_claude.py").read_text("utf-8")
    program = folder / "claude"
    program.write_text(f"#!{sys.executable} -IS\n{source}", "utf-8")
    program.chmod(0o755)
    return str(program)


async def post(client: Client, body: Json) -> tuple[int, Json]:
    # A body of megabytes has to be a file for aiohttp's client.
    return await client.call("POST", "/run", data=io.BytesIO(json.dumps(body).encode()))


async def run(client: Client, prompt: str, **body: Any) -> Any:
    """Execute a run that succeeds. Returns its result."""
    status, reply = await post(client, {"prompt": prompt, **body})
    assert status == 200, reply
    assert set(reply) == KEYS
    assert reply["ok"] is True
    return reply["result"]


async def fail(client: Client, prompt: str, **body: Any) -> Json:
    """Execute a run that fails. Returns the body of the response."""
    status, reply = await client.post("/run", {"prompt": prompt, **body})
    assert status == 502, reply
    assert set(reply) >= FAILURE_KEYS
    assert reply["ok"] is False
    return reply


def read_rows(data_dir: Path) -> list[RunRow]:
    """The rows of all runs, by their start."""
    columns = ", ".join(field.name for field in dataclasses.fields(RunRow))
    found = stored_rows(data_dir, f"SELECT {columns} FROM runs ORDER BY started_at")
    return [RunRow(*row) for row in found]


async def rows(server: LocalServer) -> list[RunRow]:
    return await asyncio.to_thread(read_rows, server.services.settings.data_dir)


def is_clean(server: LocalServer) -> bool:
    """Whether no folder of a run is left."""
    return not list(DataDir.of(server.services.settings).runs.iterdir())


async def pid_in(path: Path) -> int:
    """Wait for the pid that a step writes to *path*."""
    return int(await eventually(f"{path.name} to be written", lambda: _text_of(path)))


def _text_of(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def until_ended(pid: int) -> None:
    await eventually(f"process {pid} to end", lambda: not is_running(pid))


async def last_reason(server: LocalServer, reason: str) -> bool:
    """Whether the newest run has ended with the stop reason."""
    return (await rows(server))[-1].stop_reason == reason


async def upload(
    client: Client, content: bytes, name: str = "notes.txt", *, ttl_secs: int | None = None
) -> str:
    form = aiohttp.FormData()
    form.add_field("file", content, filename=name)
    if ttl_secs is not None:
        form.add_field("ttl_secs", str(ttl_secs))
    async with client.http.post(
        client.url + "/files", data=form, headers=client.headers()
    ) as response:
        assert response.status == 200
        return str((await response.json())["file_token"])
