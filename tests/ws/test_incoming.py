"""Unhandled messages of clients: counted and limited for each app."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator

import pytest

from server.ws.incoming import MAX_FRAGMENTS, UNBUDGETED_BYTES, FrameScanner

from ..support.harness import Client, Deadline, LocalServer, eventually
from ..support.raw_socket import TEXT, RawSocket, upgrade

CONTINUATION, PING = 0, 9
LARGE = 3 << 20


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, size: int | None = None) -> bytes:
    """A masked frame; *size* is its declared size, if that is not the actual one."""
    told = len(payload) if size is None else size
    head = bytes([(0x80 if fin else 0) | opcode])
    if told < 126:
        head += bytes([0x80 | told])
    elif told < 1 << 16:
        head += b"\xfe" + struct.pack("!H", told)
    else:
        head += b"\xff" + struct.pack("!Q", told)
    return head + bytes(4) + payload


BEGUN = frame(TEXT, b"x" * (UNBUDGETED_BYTES + 1), size=LARGE)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_scanner_counts_messages_in_pieces_of_any_size(step: int) -> None:
    data = b"".join(
        [
            frame(TEXT, b"a" * 10),
            frame(PING, b"p" * 5),
            frame(TEXT, b"b" * 200, fin=False),
            frame(PING),
            frame(CONTINUATION, b"", fin=False),
            frame(CONTINUATION, b"c" * 70_000),
            frame(TEXT, b""),
            frame(TEXT, b"d" * 9, size=20),
        ]
    )
    scanner = FrameScanner()
    for start in range(0, len(data), step):
        scanner.feed(data[start : start + step])
    assert (scanner.whole, scanner.message, scanner.frames) == (70_210, 9, 1)
    assert (scanner.expected, scanner.is_in_message) == (20, True)


def test_scanner_does_not_know_the_size_of_a_fragmented_message() -> None:
    scanner = FrameScanner()
    scanner.feed(frame(TEXT, b"x" * 9, fin=False))
    assert (scanner.expected, scanner.message) == (None, 9)


@contextlib.asynccontextmanager
async def socket_of(client: Client, path: str) -> AsyncIterator[RawSocket]:
    raw = await upgrade(client, path, receive_buffer=65536)
    try:
        yield raw
    finally:
        raw.connection.close()


async def put(raw: RawSocket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(raw.connection, data)


async def test_unfinished_messages_are_limited_for_each_app(
    server: LocalServer, client: Client
) -> None:
    budget = server.incoming.budget
    session = await client.create()
    other = await server.client("other")
    path = f"/sessions/{session}/ws"
    rest = b"x" * (LARGE - UNBUDGETED_BYTES - 1)
    async with contextlib.AsyncExitStack() as stack:
        fit = (32 << 20) // LARGE
        raws = [
            await stack.enter_async_context(socket_of(client, where))
            for where in itertools.islice(itertools.cycle([path, "/acp"]), fit + 1)
        ]
        for raw in raws[:-1]:
            await put(raw, BEGUN)
        await eventually("the budget of all", lambda: budget.used == fit * LARGE)
        last = raws[-1]
        await put(last, BEGUN)
        sending = asyncio.create_task(put(last, rest))
        stack.callback(sending.cancel)
        socket = await other.connect(await other.create())
        assert (await socket.turn("x" * 100_000))["stop_reason"] == "end_turn"
        assert budget.used == fit * LARGE
        raws[0].connection.close()
        async with Deadline("the message that waited"):
            assert await last.until_closed() == 4501  # it was no JSON
    await eventually("the budget to be released", lambda: budget.used == 0)


async def test_message_without_budget_or_progress_closes_its_socket(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.incoming, "budget_timeout", 0.05)
    path = f"/sessions/{await client.create()}/ws"
    budget = server.incoming.budget
    held = budget.request(client_name(server), (32 << 20) - LARGE + 1)
    async with socket_of(client, path) as raw:
        await put(raw, BEGUN)
        async with Deadline("the close of the one that waits"):
            assert await raw.until_closed() == 1013
    budget.release(held)
    monkeypatch.setattr(server.incoming, "stall_timeout", 0.05)
    async with socket_of(client, path) as raw:
        await put(raw, BEGUN)
        async with Deadline("the close of the one that is late"):
            assert await raw.until_closed() == 1013
    await eventually("the budget to be released", lambda: budget.used == 0)


def client_name(server: LocalServer) -> str:
    [row] = server.services.tokens.rows()
    return row.name


async def test_message_in_too_many_fragments_closes_its_socket(client: Client) -> None:
    path = f"/sessions/{await client.create()}/ws"
    tiny = frame(CONTINUATION, b"x", fin=False)
    async with socket_of(client, path) as raw:
        await put(raw, frame(TEXT, b"{", fin=False) + tiny * MAX_FRAGMENTS)
        async with Deadline("the close"):
            assert await raw.until_closed() == 1013


async def test_message_counts_until_its_response_is_read(
    server: LocalServer, client: Client
) -> None:
    budget = server.incoming.budget
    path = f"/sessions/{await client.create()}/ws"
    size = 600_000  # more than the kernel takes
    ping = frame(TEXT, b'{"type":"ping","id":"%b"}' % (b"x" * size))
    async with socket_of(client, path) as raw:
        sending = asyncio.create_task(put(raw, ping * 2))
        await eventually("its budget", lambda: budget.used > size)
        for _ in range(2):
            assert budget.used > size
            await raw.until("pong", size=1 << 20)
            raw.frames.clear()
        await sending
    await eventually("the budget to be released", lambda: budget.used == 0)


async def test_number_of_files_of_a_prompt_is_limited(client: Client) -> None:
    session = await client.create()
    many = ["ff_x"] * 101
    status, reply = await client.turn(session, "x", files=many)
    assert (status, reply["code"]) == (400, "bad_request")
    socket = await client.connect(session)
    await socket.send("prompt", prompt="x", files=many)
    assert (await socket.until("error"))["code"] == "bad_request"
