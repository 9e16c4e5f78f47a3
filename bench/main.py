"""Measure clawdforge and its rivals.

``make bench``, or ``make bench ARGS="--quick"``. Clawdforge and its rivals are measured alternately
within the same minutes, with the same agent (``agent.mjs``), which does almost nothing. ``--write``
updates the figures in docs/explanation/performance.md and its chart.
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

import accounting
import cluster
import history
import interaction
import lifecycle
import proxies
import subscribers
import turns
import webhooks
from measure import ROOT
from report import Report
from targets import AGENT, RIVALS, BenchError, Server

from server.agents.catalog import ACPX_VERSION
from server.agents.process.process_tree import end_tagged, env_tag

LIMIT_SECS = {True: 400, False: 1600}
PARTS = (
    *("latency", "bursts", "subscribers", "sockets", "replay", "webhooks", "accounting"),
    *("lifecycle", "growth", "history", "interaction", "cluster"),
)
WITH_RIVALS = {"latency", "bursts"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/main.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="take fewer samples, which takes less time"
    )
    parser.add_argument(
        "--write", action="store_true", help="update docs/explanation/performance.md"
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="measure only this part; may be repeated"
    )
    options = parser.parse_args()
    parts = options.only or PARTS
    if WITH_RIVALS & set(parts) and not RIVALS.is_dir():
        print("bench: the rivals are not installed: run `make bench`", file=sys.stderr)
        return 1
    sys.setswitchinterval(0.0002)  # or a thread that reads delays the one that measures by 5 ms
    started_at = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)
    signal.alarm(LIMIT_SECS[options.quick])
    report = Report(_machine())
    print(f"{report.machine}\n", flush=True)
    try:
        with _folder() as (folder, environ):
            measure(report, folder, environ, parts, quick=options.quick)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.goal_table(), f"\n\n{time.monotonic() - started_at:.0f} s")
    if options.write:
        docs = ROOT / "docs"
        report.write(docs / "explanation" / "performance.md", docs / "images" / "performance.svg")
    return 0


def measure(
    report: Report, folder: Path, environ: Mapping[str, str], parts: Any, *, quick: bool
) -> None:
    """Measure *parts*, one after the other. Only compared targets run at the same time."""
    if "lifecycle" in parts:
        lifecycle.measure_start(folder, environ, report, quick=quick)
        lifecycle.measure_creation(folder, environ, report, quick=quick)
        lifecycle.measure_sandbox(folder, environ, report, quick=quick)
        proxies.measure_key_proxy(report, quick=quick)
        lifecycle.measure_open_sessions(folder, environ, report, quick=quick)
    if "growth" in parts:
        lifecycle.measure_growth(folder, report, quick=quick)
    if "history" in parts:
        history.measure_fork(folder, environ, report, quick=quick)
        history.measure_snapshots(folder, report, quick=quick)
        history.measure_search(folder, report, quick=quick)
        history.measure_followed_sessions(folder, environ, report, quick=quick)
    if "accounting" in parts:
        accounting.measure_accounting(report, quick=quick)
    if "cluster" in parts:
        cluster.measure_cluster(folder, environ, report, quick=quick)
    if "webhooks" in parts:
        webhooks.measure_webhooks(folder, environ, report, quick=quick)
    with contextlib.ExitStack() as stack:
        server = Server(
            folder / "server",
            environ,
            AGENT,
            MAX_SOCKETS_PER_SESSION="20000",
            MAX_COMMANDS_PER_SEC="100000",
            MAX_LIVE_AGENTS="100",
        )
        stack.callback(server.close)
        if WITH_RIVALS & set(parts):
            with contextlib.ExitStack() as rivals:
                targets = turns.start(rivals, server, folder, environ)
                if "latency" in parts:
                    turns.measure_latency(targets, report, quick=quick)
                if "bursts" in parts:
                    turns.measure_bursts(targets, report, quick=quick)
                    turns.measure_together(server, targets.bridge, report, quick=quick)
                    turns.measure_neighbour(server, report, quick=quick)
        if "interaction" in parts:
            interaction.measure_interaction(server, report, quick=quick)
        if "subscribers" in parts:
            subscribers.measure_fan_out(server, folder, report, quick=quick)
            subscribers.measure_delivery(server, report, quick=quick)
            subscribers.measure_slices(folder, environ, report)
        if "replay" in parts:
            subscribers.measure_replay(server, folder, environ, report, quick=quick)
        if "sockets" in parts:
            subscribers.measure_idle_sockets(server, report, quick=quick)


def _stop(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
    sys.exit(f"bench: stopped by {signal.Signals(number).name}")


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()},"
        f" acpx {ACPX_VERSION}; {os.getloadavg()[0]:.1f} processes were busy at the start."
    )


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A temporary folder and an environment. At the end, all processes with it are killed."""
    with tempfile.TemporaryDirectory(prefix="clawdforge-bench-") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        # acpx stores its state in HOME, which also identifies the processes started here.
        environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
        try:
            yield folder, environ
        finally:
            end_tagged(env_tag("HOME", str(home)))


if __name__ == "__main__":
    sys.exit(main())
