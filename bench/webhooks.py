"""The effect of webhooks on turns: 1,000 deliveries a second are queued, and sent as allowed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from measure import ROOT, Samples
from report import Report
from targets import AGENT, BenchError, Clawdforge, Server

TURNS = 25
"""Turns between two changes of the load. Few, so that other load on the machine affects both."""
ROUNDS = 20
PASSES = 5
"""Each pass has a ratio of the 99th percentiles; the median of the passes is the result."""
QUICK_ROUNDS, QUICK_PASSES = 12, 3
SESSIONS = 20
RECEIVER = """
import socketserver

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            size = 0
            while line.strip():
                if line.lower().startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
                line = self.rfile.readline()
            self.rfile.read(size)
            self.wfile.write(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")

socketserver.ThreadingTCPServer.daemon_threads = True
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""


def measure_webhooks(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """The duration of a turn, with and without webhooks that are being queued and sent."""
    flag = folder / "alerts"
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE)
        )
        stack.callback(receiver.kill)
        assert receiver.stdout is not None
        port = int(receiver.stdout.readline())
        server = Server(
            folder / "webhooks",
            {**environ, "BENCH_ALERTS": str(flag)},
            AGENT,
            program=str(ROOT / "bench" / "alerts.py"),
            WEBHOOK_HOSTS="127.0.0.1",
            MAX_WEBHOOK_DELIVERIES_PER_APP="1000000",
            MAX_WEBHOOK_BYTES_PER_APP=str(1 << 40),
        )
        stack.callback(server.close)
        hook = {"url": f"http://127.0.0.1:{port}/", "events": ["turn_ended"]}
        server.call("PUT", "/webhook", hook)
        for _ in range(SESSIONS):
            server.create()
        ours = Clawdforge(server)
        stack.callback(ours.close)
        for _ in range(20):
            ours.turn("hi", 1)
        alone, queueing, ratios = Samples(), Samples(), Samples()

        def run_pass() -> None:
            pairs: tuple[tuple[Samples, bool], ...] = (Samples(), False), (Samples(), True)
            for number in range(QUICK_ROUNDS if quick else ROUNDS):
                for samples, is_queueing in pairs if number % 2 else pairs[::-1]:
                    if is_queueing:
                        flag.touch()
                    ours.turn("hi", 1)  # with the load of before, in part
                    for _ in range(TURNS):
                        samples.add(ours.turn("hi", 1).total * 1000)
                    flag.unlink(missing_ok=True)
            (without, _), (during, _) = pairs
            ratios.add(during.p99 / without.p99)
            alone.values += without.values
            queueing.values += during.values

        for _ in range(QUICK_PASSES if quick else PASSES):
            run_pass()
        queued = server.call("GET", "/webhook")
        if not queued["pending"] or queued["dropped"] or queued["failing_since"]:
            raise BenchError(f"the webhooks were not queued and sent: {queued}")
    report.compare(
        "A turn while 1,000 webhooks a second are queued, and 100 sent",
        "ms",
        {"clawdforge": queueing, "clawdforge, no webhooks": alone},
        digits=2,
    )
    print("p99 with webhooks, by pass:", *(f"{ratio:.2f}" for ratio in ratios.values))
    report.at_most("p99 of a turn while webhooks are queued", ratios.median, 1.1, "times")
