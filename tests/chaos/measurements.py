"""Measurements of a server process, and of turns."""

from __future__ import annotations

import time
from pathlib import Path

from ..support.harness import Socket


def resident_kb(pid: int) -> int:
    """The resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


def open_files(pid: int) -> int:
    """The number of file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def thread_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def turn_times(socket: Socket, count: int) -> list[float]:
    """The durations of consecutive turns in milliseconds, sorted."""
    times = []
    for _ in range(count):
        started = time.monotonic()
        end = await socket.turn("ping")
        assert end["stop_reason"] == "end_turn", end
        times.append((time.monotonic() - started) * 1000)
    return sorted(times)


def p99(sorted_times: list[float]) -> float:
    return sorted_times[int(len(sorted_times) * 0.99)]
