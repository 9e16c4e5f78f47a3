"""Prompts over REST, and what tests wait for while they run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from ..support.harness import (
    Client,
    Json,
    eventually,
    script,
)


async def run_held(client: Client, session: str, *steps: Json, **body: Any) -> tuple[int, Json]:
    """A turn that ends when :func:`release` is called for its session."""
    return await client.turn(session, script({"gate": "go"}, *steps), **body)


async def release(client: Client, session: str) -> None:
    (Path((await client.state(session))["cwd"]) / "go").touch()


async def wait_running(client: Client, session: str) -> None:
    async def is_running() -> bool:
        return bool((await client.state(session))["state"] == "running")

    await eventually("the turn to run", is_running)


async def wait_head(client: Client, session: str, kind: str) -> Json:
    """Wait for a log entry of that type."""

    async def found() -> Json | None:
        entries = await client.events(session)
        return next((entry for entry in entries if entry["type"] == kind), None)

    entry: Json = await eventually(f"{kind} on the log", found)
    return entry


async def post_large(client: Client, path: str, body: Json) -> tuple[int, Json]:
    """A body of more than 1 MiB, which aiohttp wants as a file."""
    return await client.call("POST", path, data=io.BytesIO(json.dumps(body).encode()))


async def turn_with_key(client: Client, session: str, prompt: str, key: str) -> tuple[int, Json]:
    headers = {"Idempotency-Key": key}
    return await client.post(f"/sessions/{session}/turn", {"prompt": prompt}, headers=headers)
