"""Reads the frames of a session's WebSocket."""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import WSMsgType

from ..support.harness import (
    Deadline,
    Json,
    Socket,
)

Frames = list[Json]


def kinds(frames: Frames) -> list[str]:
    return [frame["type"] for frame in frames]


def seqs(socket: Socket) -> list[int]:
    return [entry["seq"] for entry in socket.entries]


def gate(state: Json, name: str = "gate") -> Path:
    """The file that a step ``{"gate": name}`` waits for."""
    return Path(state["cwd"]) / name


async def is_alive(socket: Socket) -> None:
    """Check that the socket still responds, and skip the frames before its response."""
    await socket.send("ping", id="alive?")
    await socket.until("pong", id="alive?")


async def read_to(socket: Socket, seq: int) -> None:
    """Read on until that entry; for many frames, and so without a deadline for each."""
    last = max(seqs(socket), default=0)  # it must have something to come
    async with Deadline(f"entry {seq}"):
        while last < seq:
            message = await socket.ws.receive()
            assert message.type is WSMsgType.TEXT
            socket.frames.append(json.loads(message.data))
            last = socket.frames[-1].get("seq", last)
