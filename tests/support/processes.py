"""Processes: runs programs, and reads the process table."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .waiting import TIMEOUT_SECS

ROOT = Path(__file__).parents[2]
"""The root of the repository."""


async def run_program(*argv: str, **variables: str) -> tuple[int | None, str, str]:
    """Run a program. Returns its exit status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 2 * TIMEOUT_SECS)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        pytest.fail(f"{argv[0]} took too long; its output: {out!r} {err!r}")
    return process.returncode, out.decode(), err.decode()


def is_running(pid: int) -> bool:
    """Whether the process has not ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def descendants(pid: int) -> list[int]:
    """All descendants of the process, without zombies."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    parents[int(entry.name)] = int(fields[1])

    def ancestors(child: int) -> Iterator[int]:
        while child in parents:
            child = parents[child]
            yield child

    return [child for child in parents if pid in ancestors(child)]


def descendants_of_agents(pid: int) -> set[int]:
    """The descendants of a server without its own helpers, which live as long as it does."""
    return {one for one in descendants(pid) if not _is_helper(one)}


def _is_helper(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"/snapshotter.py" in command or b"/spawn.py" in command


def environ_of(pid: int) -> Mapping[str, str]:
    """The environment with which the process was started."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (entry.decode(errors="replace").partition("=") for entry in raw if entry)
    return {name: value for name, _, value in pairs}


def processes_of(program: str) -> list[int]:
    """The descendants of this process that run *program*."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        names = [Path(os.fsdecode(argument)).name for argument in argv]
        # Only the first name: the supervisor's argv ends with the argv of the host.
        if program in [name for name in names if name.endswith((".py", ".mjs"))][:1]:
            found.append(pid)
    # A child has its parent's argv until it calls exec.
    forked = {child for pid in found for child in descendants(pid)}
    return [pid for pid in found if pid not in forked]
