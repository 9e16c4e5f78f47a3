"""A process that ends what a killed program has left: its processes and its temporary folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
END_SECS = 10.0


def _started_at(pid: int) -> str | None:
    """The start time of a process, which tells it from a later one; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


class Guardian:
    """Names processes and folders to the guardian's process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def add_process(self, pid: int) -> None:
        self._tell(f"process {pid} {_started_at(pid)}")

    def add_folder(self, folder: Path) -> None:
        self._tell(f"folder {folder}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


@contextlib.contextmanager
def guarded() -> Iterator[Guardian]:
    """A block whose processes and folders are removed even if this process is killed in it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.guardian"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    guardian = Guardian(process)
    try:
        yield guardian
        guardian._tell("done")
    finally:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def _end_all(processes: list[tuple[int, str]]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid, started_at in processes:
            if _started_at(pid) == started_at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline = time.monotonic() + END_SECS
        while time.monotonic() < deadline:
            if all(_started_at(pid) != started_at for pid, started_at in processes):
                return
            time.sleep(0.05)


def main() -> None:
    """Wait for the end of the parent, and remove what it has left."""
    processes: list[tuple[int, str]] = []
    folders: list[str] = []
    for line in sys.stdin:
        kind, _, about = line.rstrip("\n").partition(" ")
        if kind == "done":
            return
        if kind == "process":
            pid, _, started_at = about.partition(" ")
            processes.append((int(pid), started_at))
        else:
            folders.append(about)
    # The nodes before PostgreSQL, which was started first: they drain while they reach it.
    for process in reversed(processes):
        _end_all([process])
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
