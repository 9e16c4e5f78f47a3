"""Many sockets: what one session costs with a thousand viewers, and what sockets cost that wait."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from measure import Samples, read_memory
from report import Report
from targets import (
    AGENT,
    PIECE_BYTES,
    ROOT,
    BenchError,
    Clawdforge,
    Server,
    check_updates,
    parse_frames,
    upgrade_request,
)

FRAMES = 2_000_000
"""Of one fan-out: so many viewers times so many updates."""
TICKS = re.compile(rb'"text":"(\d+) "')
AT_ONCE = 1000
TAIL_BYTES = 256


class Crowd:
    """Many sockets at one address, read by one loop that only looks for the end.

    Args:
        greeting: what each is sent before the next come; None if nobody is to be waited for.
    """

    def __init__(
        self, url: str, count: int, headers: Mapping[str, str], greeting: bytes | None = b""
    ) -> None:
        parts = urlsplit(url)
        request = upgrade_request(parts, headers)
        self.sockets: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        for start in range(0, count, AT_ONCE):
            some = []
            for _ in range(min(AT_ONCE, count - start)):
                line = socket.create_connection((parts.hostname, parts.port), timeout=30)
                line.sendall(request)
                some.append(line)
            for line in some:
                answer = b""
                while greeting is not None and not (b"\r\n\r\n" in answer and greeting in answer):
                    if not (piece := line.recv(4096)):
                        raise BenchError(f"no WebSocket at {url}: {answer[:200]!r}")
                    answer += piece
                line.setblocking(False)
                self._selector.register(line, selectors.EVENT_READ, len(self.sockets))
                self.sockets.append(line)

    def join(self, driver: Clawdforge) -> None:
        """Read *driver*'s socket along, as one more."""
        line = socket.socket(fileno=os.dup(driver.socket.fileno()))
        line.setblocking(False)
        self._selector.register(line, selectors.EVENT_READ, len(self.sockets))
        self.sockets.append(line)

    def take(self, end: bytes) -> tuple[float, list[int], bytes]:
        """Read until each has *end*.

        Returns:
            The time of the last one's, each one's bytes, and all of the first one's.
        """
        counts = [0] * len(self.sockets)
        tails = [b""] * len(self.sockets)
        kept = bytearray()
        left = set(range(len(self.sockets)))
        while left:
            ready = self._selector.select(30)
            if not ready:
                raise BenchError(f"{len(left)} viewers do not come to an end")
            for key, _ in ready:
                number = key.data
                piece = self.sockets[number].recv(PIECE_BYTES)
                if not piece:
                    raise BenchError("a viewer was dropped")
                counts[number] += len(piece)
                if number == 0:
                    kept += piece
                tails[number] = (tails[number] + piece)[-TAIL_BYTES:]
                if end in tails[number] and piece.endswith(b"}"):
                    left.discard(number)
        return time.perf_counter(), counts, bytes(kept)

    def listen(self, end: bytes) -> Samples:
        """Milliseconds from each update's time, which its text tells, to its arrival."""
        delays = Samples()
        left = set(range(len(self.sockets)))
        while left:
            for key, _ in self._selector.select(30):
                piece = self.sockets[key.data].recv(PIECE_BYTES)
                now = time.monotonic_ns()
                for told in TICKS.findall(piece):
                    delays.add((now - int(told)) / 1e6)
                if end in piece:
                    left.discard(key.data)
        return delays

    def close(self) -> None:
        self._selector.close()
        for line in self.sockets:
            line.close()


class BareAiohttp:
    """(e) bare aiohttp, which sends ready-made payloads to all its sockets."""

    name = "bare aiohttp"

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "bench" / "bare.py")],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self.url = self._process.stdout.readline().decode().strip()

    def send(self, payloads: Sequence[bytes]) -> None:
        self._stdin.write(b"".join(one + b"\n" for one in payloads) + b"\n")
        self._stdin.flush()

    def close(self) -> None:
        with self._process:
            self._process.kill()


def measure_fan_out(server: Server, folder: Path, report: Report, *, quick: bool) -> None:
    """Frames a second to all viewers of one session, against the same bytes from bare aiohttp."""
    bare = BareAiohttp(folder)
    with contextlib.closing(bare):
        for viewers in (100, 1000):
            updates = FRAMES // viewers // (4 if quick else 1)
            rates = {"clawdforge": Samples(), bare.name: Samples()}
            driver = Clawdforge(server)
            crowd = Crowd(_address(server, driver), viewers - 1, server.headers, b'"ready"')
            theirs = Crowd(bare.url, viewers, {})
            with contextlib.closing(crowd), contextlib.closing(theirs), contextlib.closing(driver):
                crowd.join(driver)
                for number in range(3 if quick else 5):
                    began = time.perf_counter()
                    driver.ask(f"burst {updates}")
                    ended, counts, data = crowd.take(b'"turn_end"')
                    if len(set(counts[:-1])) > 1:  # the last has an answer of its own
                        raise BenchError("the viewers did not all get the same")
                    frames = [one for one in parse_frames(data) if "seq" in one]
                    check_updates((one["event"] for one in frames if "event" in one), updates)
                    if number:  # the first has the agent write its updates beforehand
                        rates["clawdforge"].add(updates * viewers / (ended - began))
                    payloads = [json.dumps(one, separators=(",", ":")).encode() for one in frames]
                    began = time.perf_counter()
                    bare.send(payloads)
                    ended, _, _ = theirs.take(b'"turn_end"')
                    if number:
                        rates[bare.name].add(len(payloads) * viewers / (ended - began))
            report.compare(f"{viewers:,} viewers of one session", "frames/s", rates)
            ours, other = (samples.median for samples in rates.values())
            report.at_least(
                f"fan-out to {viewers:,} viewers, of bare aiohttp", 100 * ours / other, 70, "%"
            )


def _address(server: Server, driver: Clawdforge) -> str:
    return f"{server.url}/sessions/{driver.session_id}/ws"


def measure_delivery(server: Server, report: Report, *, quick: bool) -> None:
    """Delivery of 20 updates a second to 1,000 viewers, and of one socket's own beside it."""
    driver = Clawdforge(server)
    crowd = Crowd(_address(server, driver), 1000, server.headers, b'"ready"')
    with contextlib.closing(crowd), contextlib.closing(driver):
        ticks = 60 if quick else 200
        before = server.cpu_secs()
        driver.ask(f"tick {ticks}")
        delays = crowd.listen(b'"turn_end"')
        each = (server.cpu_secs() - before) / (ticks * len(crowd.sockets)) * 1e6
        print(f"a delivery took the server {each:.1f} µs of processor time\n")
        report.compare(
            "Delivery to 1,000 viewers at 20 updates/s", "ms", {"clawdforge": delays}, digits=1
        )
        report.at_most("delivery to 1,000 viewers at 20 updates/s, p99", delays.p99, 25, "ms")


def measure_slices(folder: Path, environ: Mapping[str, str], report: Report) -> None:
    """The longest that one callback keeps the event loop, with 1,000 viewers of a burst."""
    found = folder / "slices.json"
    server = Server(
        folder / "sliced",
        {**environ, "BENCH_SLICES": str(found)},
        AGENT,
        program=str(ROOT / "bench" / "slices.py"),
        MAX_SOCKETS_PER_SESSION="2000",
    )
    with contextlib.closing(server):
        driver = Clawdforge(server)
        crowd = Crowd(_address(server, driver), 1000, server.headers, b'"ready"')
        with contextlib.closing(crowd), contextlib.closing(driver):
            os.kill(server.pid, signal.SIGUSR1)
            for _ in range(2):
                driver.ask("burst 2000")
                crowd.take(b'"turn_end"')
    slices = json.loads(found.read_text("utf-8"))
    report.at_most(
        "the longest slice of the event loop beside 1,000 viewers of a burst",
        slices["longest_ms"],
        10,
        "ms",
    )
    print(f"the longest slices: {slices['slowest']}\n")


def measure_idle_sockets(server: Server, report: Report, *, quick: bool) -> None:
    """Memory of a socket that only listens, and whether an active session feels so many."""
    count, turns = (2000, 100) if quick else (10_000, 400)
    active, watched = Clawdforge(server), Clawdforge(server)
    with contextlib.closing(active), contextlib.closing(watched):
        active.turn("hi", 1)
        alone = Samples(active.turn("hi", 1).first * 1000 for _ in range(turns))
        before = read_memory([server.pid])
        crowd = Crowd(_address(server, watched), count, server.headers, b'"ready"')
        with contextlib.closing(crowd):
            each = (read_memory([server.pid]) - before) / count
            beside = Samples(active.turn("hi", 1).first * 1000 for _ in range(turns))
    report.at_most(f"memory of an idle socket, of {count:,}", each, 20, "KB")
    report.compare(
        f"First update beside {count:,} idle sockets",
        "ms",
        {"clawdforge, beside them": beside, "clawdforge, alone": alone},
        digits=2,
    )
    report.at_most(
        "first update beside idle sockets, p99: behind the one alone",
        beside.p99 - alone.p99,
        4,
        "ms",
    )


def measure_replay(
    server: Server, folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """10,000 stored entries to one viewer, and to a hundred at once.

    A hundred replays keep one of two cores busy, whose ever they are: so what a live session
    feels of them is compared with what it feels of those of another server.
    """
    with contextlib.ExitStack() as stack:
        other = Server(folder / "other", environ, AGENT, MAX_SOCKETS_PER_SESSION="20000")
        stack.callback(other.close)
        told, told_by_other, live = (Clawdforge(one) for one in (server, other, server))
        for driver in (told, told_by_other, live):
            stack.callback(driver.close)
        for driver in (told, told_by_other):
            driver.turn("burst 10000", 10_000)
        replays, others = (
            stack.enter_context(contextlib.closing(Replays(one, driver)))
            for one, driver in ((server, told), (other, told_by_other))
        )
        one = Samples()
        for _ in range(5 if quick else 15):
            one.add(replays.run(1).result())
            replays.end()
        live.turn("hi", 1)
        alone, beside, beside_others, hundred = Samples(), Samples(), Samples(), Samples()
        for _ in range(3 if quick else 15):
            for _ in range(30):
                alone.add(live.turn("hi", 1).first * 1000)
            for these, turns in ((replays, beside), (others, beside_others)):
                running = these.run(100)
                while not running.done():
                    turns.add(live.turn("hi", 1).first * 1000)
                if these is replays:
                    hundred.add(running.result())
                these.end()
                for _ in range(5):
                    live.turn("hi", 1)  # while they are seen to be gone
    report.compare(
        "Replay of 10,000 entries",
        "ms",
        {"clawdforge, to one viewer": one, "clawdforge, to 100 at once": hundred},
    )
    report.at_most("replay of 10,000 entries to one viewer", one.median, 150, "ms")
    report.compare(
        "First update beside 100 replays",
        "ms",
        {
            "clawdforge, beside them": beside,
            "clawdforge, beside another server's": beside_others,
            "clawdforge, alone": alone,
        },
        digits=1,
    )
    report.at_most(
        "first update beside 100 replays, p99: behind the one beside another server's",
        beside.p99 - beside_others.p99,
        4,
        "ms",
    )


class Replays:
    """Viewers that have missed all of *driver*'s session, in a process of their own."""

    def __init__(self, server: Server, driver: Clawdforge) -> None:
        self._url = f"{_address(server, driver)}?after=0"
        self._headers = server.headers
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def run(self, count: int) -> Future[float]:
        """The milliseconds until *count* new sockets have it all."""
        return self._process.submit(_replay, self._url, count, self._headers)

    def end(self) -> None:
        """Close them."""
        self._process.submit(_end_replay).result()

    def close(self) -> None:
        self._process.shutdown()


_replayed: list[Crowd] = []
"""In the process of :class:`Replays`: viewers stay when they have it all, as a user's do."""


def _replay(url: str, count: int, headers: Mapping[str, str]) -> float:
    began = time.perf_counter()
    crowd = Crowd(url, count, headers, greeting=None)
    _replayed.append(crowd)
    ended, _, _ = crowd.take(b'"turn_end"')
    return (ended - began) * 1000


def _end_replay() -> None:
    while _replayed:
        _replayed.pop().close()
