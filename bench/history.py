"""Forks of long sessions, snapshots of large folders, the search, and a socket for many."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from measure import Samples, read_memory
from report import Report
from targets import AGENT, Clawdforge, Server, Socket, text_frame

from server.config import Settings
from server.search.documents import Document
from server.search.index import SearchIndex
from server.workspace.snapshots import Snapshots

FILES = 10_000
FILES_PER_FOLDER = 100
CHANGED = 5
WORDS = 30_000
WORDS_PER_TEXT = 12
FOLLOWED = 1000
SOCKETS = 4


def measure_fork(folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool) -> None:
    """Forks of a session of 100,000 entries, at its head and at an earlier turn."""
    rounds = 5 if quick else 15
    head, earlier = Samples(), Samples()
    server = Server(folder / "forks", environ, AGENT)
    with contextlib.closing(server), contextlib.closing(Clawdforge(server)) as session:
        for _ in range(2):
            session.turn("burst 50000", 50_000)
        path = f"/sessions/{session.session_id}/fork"
        for number in range(rounds + 1):
            for samples, body in ((head, {}), (earlier, {"turn_index": 1})):
                started_at = time.perf_counter()
                fork = server.call("POST", path, body)
                took = (time.perf_counter() - started_at) * 1000
                server.call("DELETE", f"/sessions/{fork['session_id']}?purge=true")
                if number:
                    samples.add(took)
    report.compare(
        "Fork of a session of 100,000 entries",
        "ms",
        {"clawdforge, at the head": head, "clawdforge, at an earlier turn": earlier},
        digits=1,
    )
    report.at_most("fork of a session of 100,000 entries", head.median, 300, "ms")


def measure_snapshots(folder: Path, report: Report, *, quick: bool) -> None:
    """The snapshots of a folder with 10,000 files at the start and at the end of a turn."""
    start, end = asyncio.run(_take_snapshots(folder / "snapshots", 5 if quick else 15))
    report.compare(
        f"Snapshot of {FILES:,} files",
        "ms",
        {"clawdforge, nothing changed": start, f"clawdforge, {CHANGED} files changed": end},
        digits=1,
    )
    report.at_most(f"snapshot of {FILES:,} files at the start of a turn", start.median, 100, "ms")
    report.at_most(f"snapshot of {FILES:,} files at the end of a turn", end.median, 100, "ms")


async def _take_snapshots(folder: Path, rounds: int) -> tuple[Samples, Samples]:
    settings = Settings(data_dir=folder)
    cwd = folder / "workspaces" / "session"
    files = [cwd / f"{n // FILES_PER_FOLDER}" / f"{n}.txt" for n in range(FILES)]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"file {number}\n" * 20)
    snapshots = Snapshots(settings)

    async def no_folder(_: str) -> None:
        return None

    await snapshots.start(no_folder)
    session = snapshots.of("session", "app", str(cwd))
    turn = 0

    async def take() -> float:
        nonlocal turn
        turn += 1
        started_at = time.perf_counter()
        task = session.before_turn(turn)
        assert task is not None, "git is missing"
        await task
        return (time.perf_counter() - started_at) * 1000

    dice = random.Random(1)
    start, end = Samples(), Samples()
    try:
        await take()
        for _ in range(rounds):
            for file in dice.sample(files, CHANGED):
                file.write_text(f"changed {turn}\n")
            end.add(await take())
            start.add(await take())
    finally:
        await snapshots.stop()
        shutil.rmtree(folder)
    return start, end


def measure_search(folder: Path, report: Report, *, quick: bool) -> None:
    """Searches in a million texts of two apps: for rare words, frequent ones, and two at once."""
    count = 100_000 if quick else 1_000_000
    found = asyncio.run(_search(folder / "search.sqlite3", count, 10 if quick else 40))
    report.compare(
        f"Search in {count:,} entries",
        "ms",
        {f"clawdforge, {name}": samples for name, samples in found.items()},
        digits=1,
    )
    slowest = max(samples.median for samples in found.values())
    report.at_most(f"search in {count:,} entries, the slowest kind", slowest, 200, "ms")


async def _search(path: Path, count: int, rounds: int) -> dict[str, Samples]:
    dice = random.Random(1)
    # As in a language: the nth word is n times as rare as the first one.
    words = [_word(dice) for _ in range(WORDS)]
    weights = [1 / (number + 1) for number in range(WORDS)]
    index = await SearchIndex.open(path)
    try:
        for start in range(0, count, 1000):
            texts = dice.choices(words, weights, k=1000 * WORDS_PER_TEXT)
            documents = [
                Document(
                    n + 1,
                    1_700_000_000_000 + start + n,
                    1,
                    " ".join(texts[n * WORDS_PER_TEXT : (n + 1) * WORDS_PER_TEXT]),
                )
                for n in range(1000)
            ]
            number = start // 1000
            app_name = f"app-{number % 2}"
            await index.add(app_name, number + 1, f"session-{number}", documents, seq=1000)
        queries: dict[str, Callable[[], str]] = {
            "a frequent word": lambda: dice.choice(words[:20]),
            "a rare word": lambda: dice.choice(words[10_000:]),
            "two words": lambda: " ".join(dice.sample(words[:200], 2)),
            "the beginning of a word": lambda: dice.choice(words[:200])[: dice.randint(2, 5)],
            "a word that is missing": lambda: f"missing{dice.randrange(1000)}",
        }
        found = {name: Samples() for name in queries}
        for _ in range(rounds):
            for name, query in queries.items():
                text = query()
                started_at = time.perf_counter()
                await index.find("app-0", text, 20)
                found[name].add((time.perf_counter() - started_at) * 1000)
        return found
    finally:
        await index.close()


def _word(dice: random.Random) -> str:
    """A word of one to four syllables."""
    syllables = range(dice.choice((1, 2, 2, 3, 3, 4)))
    return "".join(dice.choice("bcdfghklmnprstvz") + dice.choice("aeiou") for _ in syllables)


def measure_followed_sessions(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """The memory of a socket that follows a thousand sessions."""
    settings = {
        "MAX_SESSIONS": "5000",
        "MAX_SESSIONS_PER_APP": "5000",
        "MAX_LIVE_AGENTS": "1",
        "MAX_COMMANDS_PER_SEC": "100000",
    }
    server = Server(folder / "followed", environ, AGENT, **settings)
    with contextlib.closing(server), contextlib.ExitStack() as stack:
        ids = [server.create() for _ in range(FOLLOWED)]
        # The first socket loads the sessions, which stay in memory as long as they are followed.
        _follow(server, ids, stack)
        before = read_memory([server.pid])
        for _ in range(SOCKETS):
            _follow(server, ids, stack)
        each = (read_memory([server.pid]) - before) / SOCKETS
    report.at_most(f"memory of a socket that follows {FOLLOWED:,} sessions", each, 1024, "KB")


def _follow(server: Server, ids: list[str], stack: contextlib.ExitStack) -> None:
    """Open a socket that follows sessions, and wait until it does."""
    socket = Socket(f"{server.url}/ws?fields=state", server.headers)
    stack.callback(socket.close)
    for session_id in ids:
        socket.send(text_frame({"type": "subscribe", "session_id": session_id, "after": 0}))
    socket.send(text_frame({"type": "ping", "id": "end"}))
    data = b""
    while b'"pong"' not in data:
        data = data[-64:] + socket.read()
