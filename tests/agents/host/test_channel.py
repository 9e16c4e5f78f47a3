"""A channel reads the agent's output in pieces that leave time for other sessions."""

from __future__ import annotations

import asyncio
import contextlib
import os

from server.agents.host.channel import OUTPUT_PIECE_BYTES, Channel
from server.agents.pipes import as_file


async def test_other_tasks_run_between_the_pieces_of_a_large_output() -> None:
    reader, writer = os.pipe()
    written = b"x" * (3 * OUTPUT_PIECE_BYTES)
    os.write(writer, written)  # less than a pipe holds
    os.close(writer)
    pieces: list[bytes] = []
    with contextlib.ExitStack() as undo:
        channel = Channel(pieces.append)
        await channel.open_source(undo.enter_context(as_file(reader, "rb")), undo)
        for _ in range(20):
            before = len(pieces)
            await asyncio.sleep(0)
            assert len(pieces) <= before + 1
            if b"".join(pieces) == written:
                break
        assert b"".join(pieces) == written
        assert max(map(len, pieces)) <= OUTPUT_PIECE_BYTES
    await asyncio.sleep(0)
