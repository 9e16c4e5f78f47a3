"""Unauthenticated and malicious clients: they are limited, and do not slow other clients."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import socket
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Iterator

import aiohttp
import pytest

from ..conftest import Connect, Spawn
from ..support.harness import Deadline, eventually, new_client
from ..support.raw_socket import TEXT, RawSocket, open_connection, read_head
from .conftest import LONG, Scenario
from .measurements import connections_of, open_files, p99, resident_kb, turn_times

AUTH_SECS = 1.0
PER_ADDRESS = 30


async def _send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


@pytest.mark.slow
async def test_many_unauthenticated_connections(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """Unauthenticated connections are limited in number and time, and do not delay clients."""
    count = chaos.size(240, 10_000)
    server = await spawn(
        AUTH_TIMEOUT_SECS=str(AUTH_SECS),
        MAX_WAITING_SOCKETS_PER_ADDRESS=str(PER_ADDRESS),
        DRAIN_SECS="0",
    )
    client = await new_client(server.url, http)
    session = await client.create()
    user = await client.connect(session)
    alone = await turn_times(user, 100)
    others, memory = connections_of(server.pid), resident_kb(server.pid)
    files = open_files(server.pid)
    started_at = time.monotonic()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{__package__}.unauthenticated"),
        *(server.url, str(server.pid), session, str(count)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        reading = asyncio.create_task(program.communicate())
        beside: list[float] = []
        while not reading.done():
            beside += await turn_times(user, 10)
        report = json.loads((await reading)[0])
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    outcomes, most = report["outcomes"], report["most"] - files
    gone = time.monotonic() - started_at
    await eventually("their descriptors to be closed", lambda: connections_of(server.pid) <= others)
    grown = resident_kb(server.pid) - memory
    chaos.record(
        connections=count,
        at_most_at_once=most,
        all_closed_in_s=gone,
        memory_kb=grown,
        user_alone_ms=statistics.median(alone),
        user_beside_ms=statistics.median(beside),
        user_beside_p99_ms=p99(sorted(beside)),
        **{name.replace(" ", "_"): number for name, number in outcomes.items()},
    )
    assert outcomes.keys() <= {"accepted", "refused", "dropped"}
    assert outcomes["accepted"]
    # Connections above the limit are those that are being refused.
    assert most <= PER_ADDRESS + 160
    if LONG:  # other tests run beside the short form
        assert statistics.median(beside) < 3 * statistics.median(alone) + 20
    assert grown < 32_768
    assert (await user.turn("another turn"))["stop_reason"] == "end_turn"


@pytest.mark.slow
async def test_flood_of_expensive_bodies(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """Expensive bodies without a token are refused, and do not delay clients."""
    server = await spawn(DRAIN_SECS="0", MAX_COMMANDS_PER_SEC="1000")
    client = await new_client(server.url, http)
    user = await client.connect(await client.create())
    await turn_times(user, 20)
    alone = await turn_times(user, chaos.size(50, 1000))
    memory = resident_kb(server.pid)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{__package__}.flood", server.url, chaos.size("0.5", "20")),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert program.stdout is not None
        await program.stdout.readline()  # the program is ready to send
        reading = asyncio.create_task(program.communicate())
        beside: list[float] = []
        grown = 0
        while not reading.done():
            beside += await turn_times(user, 10)
            grown = max(grown, resident_kb(server.pid) - memory)
        statuses = json.loads((await reading)[0])
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    chaos.record(
        refused=sum(statuses.values()),
        memory_kb=grown,
        user_alone_ms=statistics.median(alone),
        user_alone_p99_ms=p99(alone),
        user_beside_ms=statistics.median(beside),
        user_beside_p99_ms=p99(sorted(beside)),
    )
    assert statuses.keys() <= {"401", "415", "dropped"}
    assert {"401", "415"} <= statuses.keys()
    assert grown < 65_536
    if LONG:
        assert p99(sorted(beside)) < p99(alone) + 20


def _frame(opcode: int, payload: bytes, *, fin: bool = True, reserved: int = 0) -> bytes:
    """A masked frame. The mask of zeros leaves the payload unchanged."""
    head = bytes([(0x80 if fin else 0) | reserved | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += b"\xfe" + struct.pack("!H", size)
    else:
        head += b"\xff" + struct.pack("!Q", size)
    return head + b"\0\0\0\0" + payload


def _fragments(payload: bytes, count: int) -> Iterator[bytes]:
    size = len(payload) // count + 1
    for n in range(count):
        part = payload[n * size : (n + 1) * size]
        yield _frame(TEXT if n == 0 else 0, part, fin=n == count - 1)


def _deflated(size: int) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(b" " * size) + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]


BOMB = b'{"type":"ping","id":"' + b"x" * (5 << 20) + b'"}'


@functools.cache
def abuse() -> dict[str, tuple[bytes, set[int] | None]]:
    """The sent bytes, and the expected close codes; None if the socket stays open."""
    return {
        "a binary frame": (_frame(2, b"\0\1"), {4501}),
        "no JSON": (_frame(TEXT, b"hello"), {4501}),
        "an array": (_frame(TEXT, b"[1]"), {4501}),
        "wrong UTF-8": (_frame(TEXT, b'{"type":"ping","id":"\xff\xfe"}'), {1007, 4501}),
        "deep JSON": (
            _frame(TEXT, b'{"type":"ping","id":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
            {4501},
        ),
        "an oversize frame": (_frame(TEXT, BOMB), {1009}),
        "an oversize message in fragments": (b"".join(_fragments(BOMB, 50)), {1009}),
        "a frame of 2 EiB": (b"\x81\xff" + struct.pack("!Q", 1 << 61) + b"\0\0\0\0", {1002, 1009}),
        "a compressed frame, unasked": (_frame(TEXT, _deflated(64 << 20), reserved=0x40), {1002}),
        "an unmasked frame": (b"\x81\x02{}", None),
        "a reserved opcode": (_frame(3, b""), {1002}),
        "a continuation of nothing": (_frame(0, b"{}"), {1002, 4501}),
        "a long ping": (_frame(9, b"x" * 126), {1002}),
        "a flood": (_frame(TEXT, b'{"type":"ping"}') * 3000, {4005}),
        "a flood of pings": (_frame(9, b"") * 3000, {4005}),
        "a message in fragments": (b"".join(_fragments(b'{"type":"ping","id":1}', 20)), None),
        "an unknown type": (_frame(TEXT, b'{"type":"what"}'), None),
        "a bad field": (_frame(TEXT, b'{"type":"cancel","turn_index":"x"}'), None),
    }


async def _send_and_get_code(raw: RawSocket, data: bytes, pong: str | None) -> int | None:
    """The close code after *data*; None if the socket stays open, or was reset."""
    with contextlib.suppress(ConnectionError):  # the server has closed the connection already
        await _send(raw.connection, data)
        if pong is not None:
            await raw.send("ping", id="after it")
            await raw.until(pong, id="after it")
            return None
    return await raw.until_closed()


@pytest.mark.slow
async def test_malformed_frames(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Malformed frames close their socket with the right code, and memory stays bounded."""
    rounds = chaos.size(1, 10)
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    user = await client.connect(session)
    await user.turn("warm")
    memory, others = 0, set[str]()
    wrong: dict[str, object] = {}
    for n in range(rounds + 1):
        for what, (data, codes) in abuse().items():
            raw = await connect(client, session)
            async with Deadline(what):
                code = await _send_and_get_code(raw, data, None if codes else "pong")
            # A client that still sends may see a reset instead of the close code.
            reset = code is None and len(data) > (1 << 20)
            if code is not None if codes is None else code not in codes and not reset:
                wrong[what] = code
            raw.abort()
        assert (await user.turn("another turn"))["stop_reason"] == "end_turn"
        if n == 0:
            memory, others = resident_kb(server.pid), connections_of(server.pid)
    await eventually("the descriptors to be closed", lambda: connections_of(server.pid) <= others)
    grown = resident_kb(server.pid) - memory
    chaos.record(kinds=len(abuse()), rounds=rounds + 1, memory_kb=grown)
    assert not wrong
    assert grown < 32_768


async def _http(url: str, request: bytes) -> int:
    """The status of a raw request; 0 if the connection was dropped."""
    connection = await open_connection(url, receive_buffer=65536)
    try:
        await _send(connection, request)
        head, _ = await read_head(connection)
    except ConnectionError:
        return 0
    finally:
        connection.close()
    return int(head.split(b" ", 2)[1]) if head else 0


@pytest.mark.slow
async def test_malformed_requests(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """Malformed requests get a 4xx status, and memory stays bounded."""
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    token = f"Authorization: Bearer {client.token}\r\n".encode()
    host = b"Host: 127.0.0.1\r\n"
    memory = resident_kb(server.pid)

    def post(body: bytes, *, path: str = "/sessions", more: bytes = b"") -> bytes:
        head = f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
        return head + host + token + more + b"\r\n" + body

    zipped = gzip.compress(b'{"agent":"' + b"x" * (200 << 20) + b'"}', 1)
    requests = {
        "a long header": b"GET /sessions HTTP/1.1\r\nX: "
        + b"x" * 100_000
        + b"\r\n"
        + host
        + b"\r\n",
        "many headers": b"GET /sessions HTTP/1.1\r\n" + host + b"X: y\r\n" * 5000 + b"\r\n",
        "a long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
        "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
        "a token in a broken line": b"GET /sessions HTTP/1.1\r\nAuthorization: Bearer "
        + str(client.token).encode()
        + b"\0\r\n"
        + host
        + b"\r\n",
        "a bad method": b"G@T / HTTP/1.1\r\n" + host + b"\r\n",
        "a bad length": b"POST /sessions HTTP/1.1\r\nContent-Length: -1\r\n" + host + b"\r\n",
        "two lengths": b"POST /sessions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n"
        + host
        + b"\r\nx",
        "length and chunks": b"POST /sessions HTTP/1.1\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n" + host + b"\r\n0\r\n\r\n",
        "a body too large": post(b"x" * (17 << 20)),
        "a bomb of gzip": post(zipped, more=b"Content-Encoding: gzip\r\n"),
        "gzip that is none": post(b"{}", more=b"Content-Encoding: gzip\r\n"),
        "deep JSON": post(b"[" * 500_000),
        "an odd key": post(
            b'{"prompt":"x"}',
            path=f"/sessions/{session}/turn",
            more=b"Idempotency-Key: \xff\xfe\r\n",
        ),
        "odd bytes in the path": b"GET /sessions/%ff%00%0a HTTP/1.1\r\n" + host + token + b"\r\n",
        "odd bytes in a token": b"GET /sessions HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\n"
        + host
        + b"\r\n",
        "another host": b"GET /sessions HTTP/1.1\r\nHost: evil.example\r\n" + token + b"\r\n",
    }
    statuses = {what: await _http(server.url, request) for what, request in requests.items()}
    grown = resident_kb(server.pid) - memory
    chaos.record(kinds=len(requests), memory_kb=grown)
    assert not {what: s for what, s in statuses.items() if not (s == 0 or 400 <= s < 500)}
    assert statuses["another host"] == 403
    assert statuses["a body too large"] in (0, 413)
    assert statuses["a bomb of gzip"] in (0, 415)
    assert grown < 131_072
    assert (await client.turn(session, "another turn"))[0] == 200
