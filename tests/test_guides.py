"""The commands of the pages in ``docs/``, run as a reader would run them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import aiohttp
import pytest

from .conftest import Spawn
from .harness import PATIENCE, ROOT, new_client


def commands_of(page: str) -> str:
    """Every shell block of a page that is marked with ``<!-- run -->``, as one script."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    blocks = re.findall(r"^<!-- run -->\n```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks, f"{page} has no commands to run"
    return "".join(blocks)


async def bash(text: str, folder: Path, **variables: str) -> str:
    """Run a script that stops at the first failure; its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euxo", "pipefail", "-c", text),
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 3 * PATIENCE)
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.mark.slow
async def test_the_operators_commands_work_as_shown(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(AGENTS=None, DEFAULT_AGENT="demo")
    client = await new_client(server.url, http)
    await client.turn(await client.create("demo"), "hello")
    folder = tmp_path / "here"
    folder.mkdir()
    out = await bash(
        commands_of("operations.md"), folder, CLAWDFORGE_DATA_DIR=str(tmp_path / "data")
    )
    assert "a server runs on it" in out
    assert "hello" in (folder / "session.md").read_text("utf-8")
    assert (folder / "clawdforge.tar.gz").is_file()
    assert await client.get("/sessions") == (200, {"ok": True, "count": 0, "sessions": []})
