"""The server, with each slice of its event loop timed: what one callback takes before the next.

In processor time of its thread: what other programs take of the machine is not its doing. What a
start takes is not looked for: it begins with SIGUSR1. At the end the longest are written to the
file that ``BENCH_SLICES`` names.
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

from server.__main__ import main

KEPT = 5
slowest: list[tuple[float, str]] = []
collected: list[float] = []
run = asyncio.Handle._run


def timed(handle: Any) -> None:
    collected.clear()
    since = time.thread_time()
    run(handle)
    took = time.thread_time() - since
    if began and (len(slowest) < KEPT or took > slowest[0][0]):
        step = getattr(handle._callback, "__self__", handle._callback)
        name = step.get_name() if isinstance(step, asyncio.Task) else repr(handle._callback)[:80]
        if name == "Task-1":
            return  # the main task, which starts the server and stops it
        name += f" ({sum(collected) * 1000:.1f} ms of it to collect garbage)" if collected else ""
        (heapq.heappush if len(slowest) < KEPT else heapq.heappushpop)(slowest, (took, name))


def watch_collector(phase: str, _: Any) -> None:
    """Note what garbage collections take of a slice."""
    now = time.thread_time()
    if phase == "start":
        collected.append(-now)
    else:
        collected[-1] += now


def begin(*_: Any) -> None:
    global began
    began = True


began = False
signal.signal(signal.SIGUSR1, begin)
gc.callbacks.append(watch_collector)
asyncio.Handle._run = timed  # type: ignore[method-assign]
status = main()
slowest.sort(reverse=True)
found = {
    "longest_ms": slowest[0][0] * 1000,
    "slowest": [f"{name}: {took * 1000:.1f} ms" for took, name in slowest],
}
Path(os.environ["BENCH_SLICES"]).write_text(json.dumps(found), "utf-8")
sys.exit(status)
