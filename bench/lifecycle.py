"""The start of the server, new sessions, open sessions, and a long log."""

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

from measure import Samples, read_memory, server_processes
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
    """The time from the start of the server until it is ready, with an empty data folder."""
    starts = Samples()
    for number in range(3 if quick else 8):
        own_folder = folder / f"start-{number}"
        with contextlib.closing(Server(own_folder, environ, AGENT)) as server:
            starts.add(server.start_secs * 1000)
        shutil.rmtree(own_folder)
    report.compare("Server start to ready, empty", "ms", {"clawdforge": starts})
    report.at_most("server start to ready, empty", starts.median, 500, "ms")


def measure_creation(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """The time from the request for a session to the first update of its first prompt."""
    rounds = 5 if quick else 12
    raw, ours, prewarmed, creations = Samples(), Samples(), Samples(), Samples()
    own_folder = folder / "creating"
    own_folder.mkdir()
    plain = Server(own_folder / "plain", environ, AGENT, MAX_LIVE_AGENTS="100")
    warm = Server(own_folder / "warm", environ, AGENT, MAX_LIVE_AGENTS="100", PREWARMED_AGENTS="2")
    with contextlib.closing(plain), contextlib.closing(warm):
        for number in range(rounds + 1):
            started_at = time.perf_counter()
            with contextlib.closing(RawPipe(AGENT, own_folder)) as pipe:
                pipe.turn("hi", 1)
                took = [time.perf_counter() - started_at]
            created_secs = 0.0
            for server in (plain, warm):
                time.sleep(0.6)  # meanwhile the next agent is prewarmed
                started_at = time.perf_counter()
                created = Clawdforge(server)
                created_secs = time.perf_counter() - started_at
                with contextlib.closing(created):
                    first = created.turn("hi", 1).first
                took.append(created_secs + first)
            if number:
                for samples, secs in zip((raw, ours, prewarmed), took, strict=True):
                    samples.add(secs * 1000)
                creations.add(created_secs * 1000)
    report.compare(
        "A new session, to its first update",
        "ms",
        {"clawdforge": ours, "clawdforge, prewarmed": prewarmed, "the agent alone, raw": raw},
    )
    report.at_most(
        "a new session's first update, minus the agent's own start",
        ours.median - raw.median,
        30,
        "ms",
    )
    report.at_most("create a session with a prewarmed agent", creations.median, 20, "ms")


SANDBOX_GOALS_MS = {"landlock": 10, "bwrap": 25}
"""The time that a level may add to the first answer of a new session."""


def measure_sandbox(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """The first answer of a new session at each level of the sandbox, compared to none."""
    rounds = 5 if quick else 15
    samples = {level: Samples() for level in ("off", *SANDBOX_GOALS_MS)}
    with contextlib.ExitStack() as stack:
        servers = {}
        for level in samples:
            if level == "bwrap" and shutil.which("bwrap") is None:
                continue
            servers[level] = stack.enter_context(
                contextlib.closing(Server(folder / level, environ, AGENT, SANDBOX=level))
            )
        for number in range(rounds + 1):  # one after the other, so that all have the same noise
            for level, server in servers.items():
                started_at = time.perf_counter()
                with contextlib.closing(Clawdforge(server)) as session:
                    session.turn("hi", 1)
                    secs = time.perf_counter() - started_at
                if number:
                    samples[level].add(secs * 1000)
    found = {level: samples[level] for level in servers}
    report.compare("First answer of a new session, by sandbox", "ms", found)
    plain = samples["off"].median
    for level in servers:
        if goal := SANDBOX_GOALS_MS.get(level):
            added = samples[level].median - plain
            report.at_most(f"first answer, added by the sandbox {level}", added, goal, "ms")


def measure_open_sessions(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """The memory of an open session without an agent, and a restart with many of them."""
    count = 1000 if quick else 10_000
    settings = {"MAX_SESSIONS": "20000", "MAX_SESSIONS_PER_APP": "20000", "MAX_LIVE_AGENTS": "1"}
    own_folder = folder / "open"
    server = Server(own_folder, environ, AGENT, **settings)
    with contextlib.closing(server), contextlib.closing(Clawdforge(server)) as busy:
        busy.turn("hi", 1)
        before = read_memory(server_processes(server.pid))
        took = _create(server, count)
        each = (read_memory(server_processes(server.pid)) - before) / count
    report.at_most(f"memory of an open session without an agent, of {count:,}", each, 30, "KB")
    print(f"{count:,} sessions were created, {count / took:,.0f} per second\n")
    restarts = Samples()
    for _ in range(3):
        with contextlib.closing(Server(own_folder, environ, AGENT, **settings)) as server:
            restarts.add(server.start_secs)
            with contextlib.closing(Clawdforge(server)) as session:
                session.turn("hi", 1)
    report.compare(f"Restart with {count:,} open sessions", "s", {"clawdforge": restarts}, digits=2)
    report.at_most(f"restart to ready with {count:,} open sessions", restarts.median, 2, "s")


def _create(server: Server, count: int) -> float:
    started_at = time.perf_counter()
    line = http.client.HTTPConnection(urlsplit(server.url).netloc)
    with contextlib.closing(line):
        for _ in range(count):
            line.request("POST", "/sessions", "{}", server.headers)
            with line.getresponse() as response:
                response.read()
                assert response.status == 200, response.status
    return time.perf_counter() - started_at


def measure_growth(folder: Path, report: Report, *, quick: bool) -> None:
    """The time to append an entry to a log of a thousand entries, and of five million."""
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
    """Microseconds per entry of a short and a long log, measured alternately."""
    store = await Database.open(path)
    writer = DatabaseWriter(store, Metrics())
    writer.start()
    logs = EventLogs(writer, Queries(store))
    fields = event_fields(UPDATE)

    async def append(log: SessionLog, count: int) -> float:
        started_at = time.perf_counter()
        for start in range(0, count, 500):
            for _ in range(start, min(count, start + 500)):
                log.append("event", 1, fields)
            await asyncio.sleep(0)
        await writer.flush()
        return (time.perf_counter() - started_at) / count * 1e6

    try:
        long = logs.open(1, 0)
        while long.last < most:
            await append(long, CHUNK)
        few, many = Samples(), Samples()
        for number in range(12):
            # In the same file, because the length of other logs must not matter either.
            few.add(await append(logs.open(2 + number, 0), CHUNK))
            many.add(await append(long, CHUNK))
            assert len(await logs.open(1, long.head).read(most // 2)) > 0
        return few, many
    finally:
        await writer.stop()
        await store.close()
