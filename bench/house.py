"""The server itself: its start, a new session, what an open one costs, and a long log."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from measure import Samples, find_house, read_memory
from report import Report
from targets import AGENT, Clawdforge, RawPipe, Server

from server.metrics import Metrics
from server.sessions.entries import event_fields
from server.sessions.event_log import EventLogs, SessionLog
from server.storage.database import Database
from server.storage.queries import Queries
from server.storage.writer import DatabaseWriter

CHUNK = 20_000
UPDATE = json.dumps(
    {
        "jsonrpc": "2.0",
        "method": "session/update",
        "params": {
            "sessionId": "bench",
            "update": {
                "sessionUpdate": "agent_message_chunk",
                "content": {"type": "text", "text": "so many words "},
            },
        },
    },
    separators=(",", ":"),
).encode()


def measure_start(folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool) -> None:
    """From the server's start to its greeting, on an empty folder."""
    starts = Samples()
    for number in range(3 if quick else 8):
        room = folder / f"start-{number}"
        with contextlib.closing(Server(room, environ, AGENT)) as server:
            starts.add(server.start_secs * 1000)
        shutil.rmtree(room)
    report.compare("Server start to ready, empty", "ms", {"clawdforge": starts})
    report.at_most("server start to ready, empty", starts.median, 500, "ms")


def measure_creation(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """From the wish for a session to its first prompt's first update."""
    rounds = 5 if quick else 12
    raw, ours, prewarmed, answers = Samples(), Samples(), Samples(), Samples()
    room = folder / "creating"
    room.mkdir()
    plain = Server(room / "plain", environ, AGENT, MAX_LIVE_AGENTS="100")
    warm = Server(room / "warm", environ, AGENT, MAX_LIVE_AGENTS="100", PREWARMED_AGENTS="2")
    with contextlib.closing(plain), contextlib.closing(warm):
        for number in range(rounds + 1):
            began = time.perf_counter()
            with contextlib.closing(RawPipe(AGENT, room)) as pipe:
                pipe.turn("hi", 1)
                took = [time.perf_counter() - began]
            for server in (plain, warm):
                time.sleep(0.6)  # in which the next one is prewarmed
                began = time.perf_counter()
                created = Clawdforge(server)
                answered = time.perf_counter() - began
                with contextlib.closing(created):
                    first = created.turn("hi", 1).first
                took.append(answered + first)
            if number:
                for samples, secs in zip((raw, ours, prewarmed), took, strict=True):
                    samples.add(secs * 1000)
                answers.add(answered * 1000)
    report.compare(
        "A new session, to its first update",
        "ms",
        {"clawdforge": ours, "clawdforge, prewarmed": prewarmed, "the agent alone, raw": raw},
    )
    report.at_most(
        "a new session's first update: behind the agent's own start",
        ours.median - raw.median,
        30,
        "ms",
    )
    report.at_most("create a session with a prewarmed agent", answers.median, 20, "ms")


def measure_open_sessions(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """Memory of an open session without an agent, and a restart with all of them."""
    count = 1000 if quick else 10_000
    settings = {"MAX_SESSIONS": "20000", "MAX_SESSIONS_PER_APP": "20000", "MAX_LIVE_AGENTS": "1"}
    room = folder / "open"
    server = Server(room, environ, AGENT, **settings)
    with contextlib.closing(server), contextlib.closing(Clawdforge(server)) as busy:
        busy.turn("hi", 1)
        before = read_memory(find_house(server.pid))
        took = _create(server, count)
        each = (read_memory(find_house(server.pid)) - before) / count
    report.at_most(f"memory of an open session without an agent, of {count:,}", each, 30, "KB")
    print(f"{count:,} sessions were created at {count / took:,.0f} a second\n")
    restarts = Samples()
    for _ in range(3):
        with contextlib.closing(Server(room, environ, AGENT, **settings)) as server:
            restarts.add(server.start_secs)
            with contextlib.closing(Clawdforge(server)) as one:
                one.turn("hi", 1)
    report.compare(f"Restart with {count:,} open sessions", "s", {"clawdforge": restarts}, digits=2)
    report.at_most(f"restart to ready with {count:,} open sessions", restarts.median, 2, "s")


def _create(server: Server, count: int) -> float:
    began = time.perf_counter()
    line = http.client.HTTPConnection(urlsplit(server.url).netloc)
    with contextlib.closing(line):
        for _ in range(count):
            line.request("POST", "/sessions", "{}", server.headers)
            with line.getresponse() as answer:
                answer.read()
                assert answer.status == 200, answer.status
    return time.perf_counter() - began


def measure_growth(folder: Path, report: Report, *, quick: bool) -> None:
    """What an entry costs in a log of a thousand, and of five million."""
    most = 500_000 if quick else 5_000_000
    path = folder / "growth.db"
    few, many = asyncio.run(_grow(path, most))
    path.unlink()
    report.compare(
        f"An entry's cost, in a log of up to {most:,}",
        "µs",
        {"clawdforge, long log": many, "clawdforge, short log": few},
        digits=2,
    )
    report.at_most(
        f"an entry's cost in a log of {most:,}, of that in a short one",
        100 * many.median / few.median,
        110,
        "%",
    )


async def _grow(path: Path, most: int) -> tuple[Samples, Samples]:
    """Microseconds an entry, while a log is short and when it is long, taken in turns."""
    store = await Database.open(path)
    writer = DatabaseWriter(store, Metrics())
    writer.start()
    logs = EventLogs(writer, Queries(store))
    fields = event_fields(UPDATE)

    async def append(log: SessionLog, count: int) -> float:
        began = time.perf_counter()
        for start in range(0, count, 500):
            for _ in range(start, min(count, start + 500)):
                log.append("event", 1, fields)
            await asyncio.sleep(0)
        await writer.flush()
        return (time.perf_counter() - began) / count * 1e6

    try:
        long = logs.open(1, 0)
        while long.last < most:
            await append(long, CHUNK)
        few, many = Samples(), Samples()
        for number in range(12):
            # In the same file: how long the others' logs are must not matter either.
            few.add(await append(logs.open(2 + number, 0), CHUNK))
            many.add(await append(long, CHUNK))
            assert len(await logs.open(1, long.head).read(most // 2)) > 0
        return few, many
    finally:
        await writer.stop()
        await store.close()
