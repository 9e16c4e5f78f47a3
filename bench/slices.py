"""Runs the server, and measures the duration of each callback in its event loop.

Durations are processor time of the thread, so that other programs do not affect them. The
measurement begins with SIGUSR1, and so excludes the start. At the end, the longest callbacks are
written to the file in ``BENCH_SLICES``.
"""

import asyncio
import gc
import heapq
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from server.command_line import main

REPORTED = 5
slowest: list[tuple[float, str]] = []
collected: list[float] = []
run = asyncio.Handle._run


def timed(handle: Any) -> None:
    collected.clear()
    started_at = time.thread_time()
    run(handle)
    took = time.thread_time() - started_at
    if is_measuring and (len(slowest) < REPORTED or took > slowest[0][0]):
        step = getattr(handle._callback, "__self__", handle._callback)
        name = step.get_name() if isinstance(step, asyncio.Task) else repr(handle._callback)[:80]
        if name == "Task-1":
            return  # the main task, which starts and stops the server
        name += f" ({sum(collected) * 1000:.1f} ms of garbage collection)" if collected else ""
        (heapq.heappush if len(slowest) < REPORTED else heapq.heappushpop)(slowest, (took, name))


def watch_collector(phase: str, _: Any) -> None:
    """Record the duration of garbage collections within a callback."""
    now = time.thread_time()
    if phase == "start":
        collected.append(-now)
    else:
        collected[-1] += now


def begin_measurement(*_: Any) -> None:
    global is_measuring
    is_measuring = True


is_measuring = False
signal.signal(signal.SIGUSR1, begin_measurement)
gc.callbacks.append(watch_collector)
asyncio.Handle._run = timed  # type: ignore[assignment, method-assign]
status = main()
slowest.sort(reverse=True)
found = {
    "longest_ms": slowest[0][0] * 1000,
    "slowest": [f"{name}: {took * 1000:.1f} ms" for took, name in slowest],
}
Path(os.environ["BENCH_SLICES"]).write_text(json.dumps(found), "utf-8")
sys.exit(status)
