"""Samples with their spread, tables, and the memory of processes."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # every part imports this module before the server's


class Samples:
    """Samples of one quantity. The median is the result, and the spread is its reliability."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.values = list(values)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The 99th percentile, by nearest rank."""
        return sorted(self.values)[min(len(self.values) - 1, int(len(self.values) * 0.99))]

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def cells(self, digits: int) -> list[str]:
        """Median, quartiles, range and count, for a table's row."""
        low, high = self.quartiles
        ends = f"{min(self.values):,.{digits}f} .. {max(self.values):,.{digits}f}"
        quartiles = f"{low:,.{digits}f} .. {high:,.{digits}f}"
        return [f"{self.median:,.{digits}f}", quartiles, ends, str(len(self.values))]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table. All columns except the first contain numbers."""
    rows = list(rows)
    widths = [max(2, *map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return " | ".join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in others)])

    return "\n".join(f"| {line(cells)} |" for cells in (head, rule, *rows))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(table(head, rows), end="\n\n", flush=True)


def read_memory(pids: Iterable[int]) -> float:
    """The memory of processes in KB, without pages of files.

    Shared pages count proportionally (PSS). The share of a file's pages depends on which other
    processes run the same program, so these pages are excluded.
    """
    sums = Counter[str]()
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name.startswith("Pss"):
                sums[name] += int(value.split()[0])
    return sums["Pss"] - sums["Pss_File"]


def server_processes(pid: int) -> list[int]:
    """The server *pid*, its host and the host's supervisor, without agents."""
    parts = ("supervise.py", "host.mjs")
    below = [child for child in descendants(pid) if _command_line(child).endswith(parts)]
    return [pid, *below]


def processor_ms(pids: Iterable[int]) -> float:
    """The processor time that all threads of these processes have used."""
    spent = 0
    for pid in pids:
        for schedule in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                spent += int(schedule.read_text(encoding="ascii").split()[0])
    return spent / 1e6


def descendants(pid: int) -> Iterator[int]:
    """The processes below a process."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield int(child)
                yield from descendants(int(child))


def _command_line(pid: int) -> str:
    """The script that a process runs, from its arguments."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return ""
    return next((argument for argument in arguments if argument.endswith((".py", ".mjs"))), "")
