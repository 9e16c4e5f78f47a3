"""Signs that a limit of a sandbox has taken effect: what its processes use, and what they wrote.

The kernel reports nothing when it refuses memory or a new process, so the server measures the
processes of each session from time to time. The only sign of a short refusal is the message of the
program whose request was refused.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from .disk_usage import size_text
from .policy import SandboxLimits

LimitKind = Literal["processes", "memory", "file"]
NEAR = 0.95
"""The part of a limit at which it counts as reached: a program may end between two measurements."""

_MEMORY_WORDS = (
    "cannot allocate memory|enomem|memoryerror|heap out of memory|bad_alloc|out of memory"
)
# EAGAIN alone is not a sign: it also means that nothing can be read now.
_PROCESS_WORDS = (
    r"cannot fork|can't start new thread|spawn [^\n]{0,200}eagain"
    r"|(fork|thread|clone)[^\n]{0,80}resource temporarily unavailable"
)
WORDS: Mapping[LimitKind, re.Pattern[bytes]] = {
    "memory": re.compile(_MEMORY_WORDS.encode(), re.IGNORECASE),
    "processes": re.compile(_PROCESS_WORDS.encode(), re.IGNORECASE),
    "file": re.compile(rb"file too large|efbig|sigxfsz|file size limit exceeded", re.IGNORECASE),
}
"""The words that programs write to stderr if a limit refuses them something."""


class ProcessUse(msgspec.Struct):
    """The use of the processes of one session.

    Attributes:
        threads: of all processes.
        memory_bytes: of the largest process, as RLIMIT_DATA counts them.
    """

    threads: int = 0
    memory_bytes: int = 0


def use_by_session(variable: str, at_least: float = 0) -> tuple[dict[str, ProcessUse], int]:
    """Measure the processes of this user. Blocking: it reads /proc.

    Args:
        variable: of the environment, whose value begins with the key of a session.
        at_least: the sessions are not measured if all processes have fewer threads than this.

    Returns:
        The use of each session by its key, and the threads of all processes of this user.
    """
    processes, user = [], os.getuid()
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
                if os.stat(f"/proc/{name}").st_uid == user:  # noqa: PTH116
                    processes.append((name, *_use_of(name)))
    total = sum(threads for _, threads, _ in processes)
    uses: defaultdict[str, ProcessUse] = defaultdict(ProcessUse)
    for name, threads, memory_bytes in processes if total >= at_least else ():
        with contextlib.suppress(OSError):
            if (key := _session_of_process(name, variable)) is not None:
                use = uses[key]
                use.threads += threads
                use.memory_bytes = max(use.memory_bytes, memory_bytes)
    return dict(uses), total


def _use_of(pid: str) -> tuple[int, int]:
    """The threads of a process, and the bytes of its data."""
    threads = memory_bytes = 0
    with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"VmData:"):
                memory_bytes = int(line.split()[1]) << 10
            elif line.startswith(b"Threads:"):
                threads = int(line.split()[1])
    return threads, memory_bytes


def _session_of_process(pid: str, variable: str) -> str | None:
    start = f"{variable}=".encode()
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(start):
            return os.fsdecode(entry[len(start) :]).partition(":")[0]
    return None


def reached_limits(
    use: ProcessUse, all_threads: int, limits: SandboxLimits, *, per_session: bool
) -> Iterator[tuple[LimitKind, str]]:
    """The limits that the processes of a session have reached, each with a sentence for the user.

    Args:
        all_threads: of all processes of the server's user.
        per_session: whether the kernel counts the processes of each session.
    """
    of_session, of_all = limits.processes, limits.all_processes
    if per_session and of_session and use.threads >= NEAR * of_session:
        yield (
            "processes",
            (
                f"the session has reached its limit of {of_session} processes and threads:"
                " its programs cannot start others"
            ),
        )
    elif not per_session and of_all and use.threads and all_threads >= NEAR * of_all:
        yield (
            "processes",
            (
                f"all sessions together have reached their limit of {of_all} processes and threads:"
                " programs cannot start others"
            ),
        )
    if limits.memory_bytes and use.memory_bytes >= NEAR * limits.memory_bytes:
        yield (
            "memory",
            (
                "a process of the session has reached the limit of"
                f" {size_text(limits.memory_bytes)} of memory: it gets no more"
            ),
        )


def limits_named_in(
    text: bytes, limits: SandboxLimits, *, counts_processes: bool
) -> Iterator[tuple[LimitKind, str]]:
    """The limits that a program complains about, if they are set, each with a sentence."""
    texts: dict[LimitKind, str] = {}
    if limits.memory_bytes:
        texts["memory"] = (
            f"a program got no more memory: a process may have {size_text(limits.memory_bytes)}"
        )
    if limits.processes and counts_processes:
        texts["processes"] = (
            f"a program could not start another one: a session may have {limits.processes}"
            " processes and threads"
        )
    if limits.file_bytes:
        texts["file"] = (
            f"a program could not write more: a file may have {size_text(limits.file_bytes)}"
        )
    for kind, sentence in texts.items():
        if WORDS[kind].search(text):
            yield kind, sentence


def full_file_text(path: str, limits: SandboxLimits) -> str:
    """The sentence about a file that has exactly the largest size."""
    return (
        f"the file {path} has reached the limit of {size_text(limits.file_bytes)} for a file:"
        " a program could not write more"
    )
