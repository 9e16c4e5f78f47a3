"""Measurements of a server process, and of turns."""

from __future__ import annotations

import contextlib
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


def connections_of(pid: int) -> set[str]:
    """The descriptors of a process for sockets of the network, by inode, also of closed ones.

    Other descriptors come and go by themselves: of agents, of the processes that take snapshots, of
    database connections at their first use.
    """
    local = {line.split()[6] for line in Path("/proc/net/unix").read_text("utf-8").splitlines()[1:]}
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            kind, _, inode = str(file.readlink()).partition(":")
            if kind == "socket":
                found.add(inode.strip("[]"))
    return found - local


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
