"""Strangers and misbehaved clients: bounded in number, time and memory; users do not notice."""

from __future__ import annotations

import asyncio
import contextlib
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

from ..conftest import Connect, Spawn
from ..support.harness import Deadline, eventually, new_client
from ..support.raw_socket import TEXT, RawSocket, open_connection, read_head
from .conftest import LONG, Scenario
from .crowd import open_files, p99, resident_kb, turn_times

AUTH_SECS = 1.0
PER_ADDRESS = 30


async def _send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def test_strangers_in_numbers(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """Connections that never say who they are are few, go soon, and hold up no user."""
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
    files, memory = open_files(server.pid), resident_kb(server.pid)
    began = time.monotonic()
    strangers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{__package__}.strangers"),
        *(server.url, str(server.pid), session, str(count)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        telling = asyncio.create_task(strangers.communicate())
        beside: list[float] = []
        while not telling.done():
            beside += await turn_times(user, 10)
        told = json.loads((await telling)[0])
    finally:
        if strangers.returncode is None:
            strangers.kill()
            await strangers.wait()
    outcomes, most = told["outcomes"], told["most"] - files
    gone = time.monotonic() - began
    await eventually("their descriptors to be free", lambda: open_files(server.pid) <= files)
    grown = resident_kb(server.pid) - memory
    chaos.measured(
        strangers=count,
        at_most_at_once=most,
        all_gone_in_s=gone,
        memory_kb=grown,
        user_alone_ms=statistics.median(alone),
        user_beside_ms=statistics.median(beside),
        user_beside_p99_ms=p99(sorted(beside)),
        **{name.replace(" ", "_"): number for name, number in outcomes.items()},
    )
    assert outcomes.keys() <= {"let wait", "told to come later", "dropped"}
    assert outcomes["let wait"]
    # Beyond the bound there is only what is being refused at this moment.
    assert most <= PER_ADDRESS + 160
    assert statistics.median(beside) < 3 * statistics.median(alone) + 20
    assert grown < 32_768
    assert (await user.turn("still here"))["stop_reason"] == "end_turn"


async def test_floods_of_strangers(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """Bodies that are dear to read cost strangers a refusal, and users nothing."""
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    user = await client.connect(await client.create())
    await turn_times(user, 20)
    alone = await turn_times(user, chaos.size(50, 1000))
    memory = resident_kb(server.pid)
    floods = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{__package__}.floods", server.url, chaos.size("0.5", "20")),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert floods.stdout is not None
        await floods.stdout.readline()  # it has made what it sends
        telling = asyncio.create_task(floods.communicate())
        beside: list[float] = []
        grown = 0
        while not telling.done():
            beside += await turn_times(user, 10)
            grown = max(grown, resident_kb(server.pid) - memory)
        statuses = json.loads((await telling)[0])
    finally:
        if floods.returncode is None:
            floods.kill()
            await floods.wait()
    chaos.measured(
        refused=sum(statuses.values()),
        memory_kb=grown,
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
    """A masked frame, whose mask leaves the payload as it is."""
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

# What is sent, and the close codes that it may get; None where the socket stays open.
ABUSE: dict[str, tuple[bytes, set[int] | None]] = {
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


async def _send_and_see(raw: RawSocket, data: bytes, answer: str | None) -> int | None:
    """The close code that *data* gets; None where it is answered, or the connection just broke."""
    with contextlib.suppress(ConnectionError):  # it has heard enough
        await _send(raw.connection, data)
        if answer is not None:
            await raw.send("ping", id="after it")
            await raw.until(answer, id="after it")
            return None
    return await raw.until_closed()


async def test_frames_that_are_no_frames(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Bad frames close their socket with the right code, and cost nobody anything."""
    rounds = chaos.size(1, 10)
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    user = await client.connect(session)
    await user.turn("warm")
    memory = files = 0
    wrong: dict[str, object] = {}
    for n in range(rounds + 1):
        for what, (data, codes) in ABUSE.items():
            raw = await connect(client, session)
            async with Deadline(what):
                code = await _send_and_see(raw, data, None if codes else "pong")
            # A peer that still sends may see a reset instead of why.
            reset = code is None and len(data) > (1 << 20)
            if code is not None if codes is None else code not in codes and not reset:
                wrong[what] = code
            raw.abort()
        assert (await user.turn("still here"))["stop_reason"] == "end_turn"
        if n == 0:
            memory, files = resident_kb(server.pid), open_files(server.pid)
    await eventually("the descriptors to be free", lambda: open_files(server.pid) <= files)
    grown = resident_kb(server.pid) - memory
    chaos.measured(kinds=len(ABUSE), rounds=rounds + 1, memory_kb=grown)
    assert not wrong
    assert grown < 32_768


async def _http(url: str, request: bytes) -> int:
    """The status that a raw request gets; 0 where the connection is dropped."""
    connection = await open_connection(url, receive_buffer=65536)
    try:
        await _send(connection, request)
        head, _ = await read_head(connection)
    except ConnectionError:
        return 0
    finally:
        connection.close()
    return int(head.split(b" ", 2)[1]) if head else 0


async def test_requests_that_are_no_requests(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """Bad requests get an error, never a 500, and memory stays bounded."""
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
    chaos.measured(kinds=len(requests), memory_kb=grown)
    assert not {what: s for what, s in statuses.items() if not (s == 0 or 400 <= s < 500)}
    assert statuses["another host"] == 403
    assert statuses["a body too large"] in (0, 413)
    assert statuses["a bomb of gzip"] in (0, 415)
    assert grown < 131_072
    assert (await client.turn(session, "still here"))[0] == 200
