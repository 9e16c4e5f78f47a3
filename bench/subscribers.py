"""Many sockets: fan-out to subscribers of one session, replay, and idle sockets."""

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

from measure import ROOT, Samples, read_memory
from report import Report
from targets import (
    AGENT,
    PIECE_BYTES,
    BenchError,
    Clawdforge,
    Server,
    check_updates,
    parse_frames,
    upgrade_request,
)

FRAMES = 2_000_000
"""The frames of one fan-out: subscribers times updates."""
TICKS = re.compile(rb'"text":"(\d+) "')
CONNECT_BATCH = 1000
TAIL_BYTES = 256
"""The length of the end of each stream, in which the end marker is searched."""


class Subscribers:
    """Many sockets at one address, read by one loop that only searches for an end marker.

    Args:
        greeting: bytes that each socket must receive before more sockets connect; None to connect
            without waiting.
    """

    def __init__(
        self, url: str, count: int, headers: Mapping[str, str], greeting: bytes | None = b""
    ) -> None:
        parts = urlsplit(url)
        request = upgrade_request(parts, headers)
        self.sockets: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        for start in range(0, count, CONNECT_BATCH):
            some = []
            for _ in range(min(CONNECT_BATCH, count - start)):
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
        """Also read the socket of *driver*."""
        line = socket.socket(fileno=os.dup(driver.socket.fileno()))
        line.setblocking(False)
        self._selector.register(line, selectors.EVENT_READ, len(self.sockets))
        self.sockets.append(line)

    def read_until(self, end: bytes) -> tuple[float, list[int], bytes]:
        """Read until each socket has received *end*.

        Returns:
            The time of the last end marker, the number of bytes of each socket, and all bytes of
            the first socket.
        """
        counts = [0] * len(self.sockets)
        tails = [b""] * len(self.sockets)
        data = bytearray()
        left = set(range(len(self.sockets)))
        while left:
            ready = self._selector.select(30)
            if not ready:
                raise BenchError(f"{len(left)} subscribers did not receive the end")
            for key, _ in ready:
                number = key.data
                piece = self.sockets[number].recv(PIECE_BYTES)
                if not piece:
                    raise BenchError("a subscriber was disconnected")
                counts[number] += len(piece)
                if number == 0:
                    data += piece
                tails[number] = (tails[number] + piece)[-TAIL_BYTES:]
                if end in tails[number] and piece.endswith(b"}"):
                    left.discard(number)
        return time.perf_counter(), counts, bytes(data)

    def read_delays(self, end: bytes) -> Samples:
        """Milliseconds from the time in the text of each update to its arrival."""
        delays = Samples()
        left = set(range(len(self.sockets)))
        while left:
            for key, _ in self._selector.select(30):
                piece = self.sockets[key.data].recv(PIECE_BYTES)
                now = time.monotonic_ns()
                for sent_at in TICKS.findall(piece):
                    delays.add((now - int(sent_at)) / 1e6)
                if end in piece:
                    left.discard(key.data)
        return delays

    def close(self) -> None:
        self._selector.close()
        for line in self.sockets:
            line.close()


class BareAiohttp:
    """(e) bare aiohttp, which sends the same payloads to all of its sockets."""

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
        self._stdin.write(b"".join(payload + b"\n" for payload in payloads) + b"\n")
        self._stdin.flush()

    def close(self) -> None:
        with self._process:
            self._process.kill()


def measure_fan_out(server: Server, folder: Path, report: Report, *, quick: bool) -> None:
    """Frames per second to all subscribers of a session, compared with bare aiohttp."""
    bare = BareAiohttp(folder)
    with contextlib.closing(bare):
        for count in (100, 1000):
            updates = FRAMES // count // (4 if quick else 1)
            rates = {"clawdforge": Samples(), bare.name: Samples()}
            driver = Clawdforge(server)
            ours = Subscribers(_address(server, driver), count - 1, server.headers, b'"ready"')
            theirs = Subscribers(bare.url, count, {})
            with contextlib.closing(ours), contextlib.closing(theirs), contextlib.closing(driver):
                ours.join(driver)
                for number in range(3 if quick else 5):
                    began = time.perf_counter()
                    driver.send_prompt(f"burst {updates}")
                    ended, counts, data = ours.read_until(b'"turn_end"')
                    if len(set(counts[:-1])) > 1:  # the driver also receives `accepted`
                        raise BenchError("the subscribers received different bytes")
                    frames = [frame for frame in parse_frames(data) if "seq" in frame]
                    check_updates((frame["event"] for frame in frames if "event" in frame), updates)
                    if number:  # in the first round, the agent prepares its updates
                        rates["clawdforge"].add(updates * count / (ended - began))
                    payloads = [
                        json.dumps(frame, separators=(",", ":")).encode() for frame in frames
                    ]
                    began = time.perf_counter()
                    bare.send(payloads)
                    ended, _, _ = theirs.read_until(b'"turn_end"')
                    if number:
                        rates[bare.name].add(len(payloads) * count / (ended - began))
            report.compare(f"{count:,} subscribers of one session", "frames/s", rates)
            own, other = (samples.median for samples in rates.values())
            report.at_least(
                f"fan-out to {count:,} subscribers, of bare aiohttp", 100 * own / other, 70, "%"
            )


def _address(server: Server, driver: Clawdforge) -> str:
    return f"{server.url}/sessions/{driver.session_id}/ws"


def measure_delivery(server: Server, report: Report, *, quick: bool) -> None:
    """Delays of 20 updates per second to 1,000 subscribers."""
    driver = Clawdforge(server)
    subscribers = Subscribers(_address(server, driver), 1000, server.headers, b'"ready"')
    with contextlib.closing(subscribers), contextlib.closing(driver):
        ticks = 60 if quick else 200
        before = server.cpu_secs()
        driver.send_prompt(f"tick {ticks}")
        delays = subscribers.read_delays(b'"turn_end"')
        each = (server.cpu_secs() - before) / (ticks * len(subscribers.sockets)) * 1e6
        print(f"a delivery took {each:.1f} µs of the server's processor time\n")
        report.compare(
            "Delivery to 1,000 subscribers at 20 updates/s", "ms", {"clawdforge": delays}, digits=1
        )
        report.at_most("delivery to 1,000 subscribers at 20 updates/s, p99", delays.p99, 25, "ms")


def measure_slices(folder: Path, environ: Mapping[str, str], report: Report) -> None:
    """The longest callback in the event loop, during a burst to 1,000 subscribers."""
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
        subscribers = Subscribers(_address(server, driver), 1000, server.headers, b'"ready"')
        with contextlib.closing(subscribers), contextlib.closing(driver):
            os.kill(server.pid, signal.SIGUSR1)
            for _ in range(2):
                driver.send_prompt("burst 2000")
                subscribers.read_until(b'"turn_end"')
    slices = json.loads(found.read_text("utf-8"))
    report.at_most(
        "the longest slice of the event loop during a burst to 1,000 subscribers",
        slices["longest_ms"],
        10,
        "ms",
    )
    print(f"the longest slices: {slices['slowest']}\n")


def measure_idle_sockets(server: Server, report: Report, *, quick: bool) -> None:
    """Memory of an idle socket, and the latency of an active session beside many of them."""
    count, turns = (2000, 100) if quick else (10_000, 400)
    active, watched = Clawdforge(server), Clawdforge(server)
    with contextlib.closing(active), contextlib.closing(watched):
        active.turn("hi", 1)
        alone = Samples(active.turn("hi", 1).first * 1000 for _ in range(turns))
        before = read_memory([server.pid])
        subscribers = Subscribers(_address(server, watched), count, server.headers, b'"ready"')
        with contextlib.closing(subscribers):
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
        "first update beside idle sockets, p99, minus that alone",
        beside.p99 - alone.p99,
        4,
        "ms",
    )


def measure_replay(
    server: Server, folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """Replay of 10,000 entries to one subscriber, and to a hundred at once.

    A hundred replays occupy one of two cores. So the latency of a live session beside them is
    compared with its latency beside replays of another server.
    """
    with contextlib.ExitStack() as stack:
        other = Server(folder / "other", environ, AGENT, MAX_SOCKETS_PER_SESSION="20000")
        stack.callback(other.close)
        replayed, replayed_by_other, live = (
            Clawdforge(target) for target in (server, other, server)
        )
        for driver in (replayed, replayed_by_other, live):
            stack.callback(driver.close)
        for driver in (replayed, replayed_by_other):
            driver.turn("burst 10000", 10_000)
        replays, others = (
            stack.enter_context(contextlib.closing(Replays(target, driver)))
            for target, driver in ((server, replayed), (other, replayed_by_other))
        )
        single = Samples()
        for _ in range(5 if quick else 15):
            single.add(replays.run(1).result())
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
                    live.turn("hi", 1)  # until the server has noticed that the replays have ended
    report.compare(
        "Replay of 10,000 entries",
        "ms",
        {"clawdforge, to one subscriber": single, "clawdforge, to 100 at once": hundred},
    )
    report.at_most("replay of 10,000 entries to one subscriber", single.median, 150, "ms")
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
        "first update beside 100 replays, p99, minus that beside another server's",
        beside.p99 - beside_others.p99,
        4,
        "ms",
    )


class Replays:
    """Subscribers that replay all of *driver*'s session, in a process of their own."""

    def __init__(self, server: Server, driver: Clawdforge) -> None:
        self._url = f"{_address(server, driver)}?after=0"
        self._headers = server.headers
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def run(self, count: int) -> Future[float]:
        """The milliseconds until *count* new sockets have received all entries."""
        return self._process.submit(_replay, self._url, count, self._headers)

    def end(self) -> None:
        """Close the sockets."""
        self._process.submit(_end_replay).result()

    def close(self) -> None:
        self._process.shutdown()


_replayed: list[Subscribers] = []
"""The open sockets in the process of :class:`Replays`. Real clients also stay connected."""


def _replay(url: str, count: int, headers: Mapping[str, str]) -> float:
    began = time.perf_counter()
    subscribers = Subscribers(url, count, headers, greeting=None)
    _replayed.append(subscribers)
    ended, _, _ = subscribers.read_until(b'"turn_end"')
    return (ended - began) * 1000


def _end_replay() -> None:
    while _replayed:
        _replayed.pop().close()
