"""Measure clawdforge next to its rivals.

``make bench``, or ``make bench ARGS="--quick"``. Every figure stands next to its rivals', taken in
turns with them in the same minutes, with the same agent (``agent.mjs``), which does as good as
nothing. ``--write`` puts what was found into docs/explanation/performance.md and its chart.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import crowd
import house
import turns
from report import Report
from targets import AGENT, RIVALS, ROOT, BenchError, Server

from server.agents.catalog import ACPX_VERSION
from server.agents.process.process_tree import end_tagged, env_tag

LIMIT_SECS = {True: 180, False: 600}
PARTS = ("latency", "bursts", "viewers", "sockets", "replay", "house", "growth")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/main.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples, less time")
    parser.add_argument(
        "--write", action="store_true", help="update docs/explanation/performance.md"
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (repeatable)")
    options = parser.parse_args()
    if not RIVALS.is_dir():
        print("bench: the rivals are not installed: `make bench` does it", file=sys.stderr)
        return 1
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)
    signal.alarm(LIMIT_SECS[options.quick])
    report = Report(_machine())
    print(f"{report.machine}\n", flush=True)
    try:
        with _folder() as (folder, environ):
            run(report, folder, environ, options.only or PARTS, quick=options.quick)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.goal_table(), f"\n\n{time.monotonic() - began:.0f} s")
    if options.write:
        docs = ROOT / "docs"
        report.write(docs / "explanation" / "performance.md", docs / "images" / "performance.svg")
    return 0


def run(
    report: Report, folder: Path, environ: Mapping[str, str], parts: Any, *, quick: bool
) -> None:
    """Measure *parts*, one after another; only what is compared runs at the same time."""
    if "house" in parts:
        house.measure_start(folder, environ, report, quick=quick)
        house.measure_creation(folder, environ, report, quick=quick)
        house.measure_open_sessions(folder, environ, report, quick=quick)
    if "growth" in parts:
        house.measure_growth(folder, report, quick=quick)
    with contextlib.ExitStack() as stack:
        server = Server(
            folder / "server",
            environ,
            AGENT,
            MAX_SOCKETS_PER_SESSION="20000",
            MAX_LIVE_AGENTS="100",
            HEARTBEAT_SECS="3600",  # viewers are compared by their bytes
        )
        stack.callback(server.close)
        if {"latency", "bursts"} & set(parts):
            with contextlib.ExitStack() as rivals:
                targets = turns.start(rivals, server, folder, environ)
                if "latency" in parts:
                    turns.measure_latency(targets, report, quick=quick)
                if "bursts" in parts:
                    turns.measure_bursts(targets, report, quick=quick)
                    turns.measure_together(server, targets.bridge, report, quick=quick)
                    turns.measure_neighbour(server, report, quick=quick)
        if "viewers" in parts:
            crowd.measure_fan_out(server, folder, report, quick=quick)
            crowd.measure_delivery(server, report, quick=quick)
            crowd.measure_slices(folder, environ, report)
        if "replay" in parts:
            crowd.measure_replay(server, folder, environ, report, quick=quick)
        if "sockets" in parts:
            crowd.measure_idle_sockets(server, report, quick=quick)


def _stop(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: what was begun is taken down in peace
    sys.exit(f"bench: stopped by {signal.Signals(number).name}")


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()},"
        f" acpx {ACPX_VERSION}; {os.getloadavg()[0]:.1f} processes were busy before it began."
    )


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A folder for all that is written, and an environment; both end with everything in them."""
    with tempfile.TemporaryDirectory(prefix="clawdforge-bench-") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        # acpx keeps its state in HOME; and who has this HOME was started from here.
        environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
        try:
            yield folder, environ
        finally:
            end_tagged(env_tag("HOME", str(home)))


if __name__ == "__main__":
    sys.exit(main())
