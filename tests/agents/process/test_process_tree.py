"""Ending what agents leave, where not everything can be ended."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.agents.process import process_tree, supervise

from ...support.harness import is_running

MARK = "AGENT_SESSION=the-tests-own"
kill = os.kill


@pytest.fixture
def start() -> Iterator[Callable[[], int]]:
    """Start processes that want to stay."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one() -> int:
        name, _, value = MARK.partition("=")
        program = [sys.executable, "-ISc", "import time; time.sleep(100)"]
        started.append(subprocess.Popen(program, env={name: value}))
        return started[-1].pid

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def refuse(monkeypatch: pytest.MonkeyPatch, foreign: int) -> None:
    """Let *foreign* be as another user's process: no signal reaches it."""

    def refused(pid: int, number: int) -> None:
        if pid == foreign:
            raise PermissionError(1, "Operation not permitted")
        kill(pid, number)

    def refused_by_descriptor(descriptor: int, number: int) -> None:
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii")
        refused(int(info.partition("Pid:")[2].split()[0]), number)

    monkeypatch.setattr(os, "kill", refused)
    monkeypatch.setattr(signal, "pidfd_send_signal", refused_by_descriptor)


def test_what_cannot_be_killed_does_not_keep_the_rest(
    start: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, foreign, last = start(), start(), start()
    refuse(monkeypatch, foreign)
    assert process_tree.kill_marked(MARK.encode()) == 2
    assert [is_running(pid) for pid in (first, foreign, last)] == [False, True, False]
    assert str(foreign) in caplog.text


def test_what_does_not_die_is_not_waited_for(
    start: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that hangs in the kernel."""
    stuck = start()
    monkeypatch.setattr(process_tree, "DEATH_SECS", 0.05)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda descriptor, number: None)
    assert process_tree.kill_marked(MARK.encode()) == 0
    assert is_running(stuck)
    assert str(stuck) in caplog.text


def test_no_tag_can_be_lowered_to_another(start: Callable[[], int]) -> None:
    """A process may lower its limits, and not raise them."""
    tags = [process_tree.tag(start(), number) for number in (1, 2, 500_000)]
    for one, other in itertools.permutations(tags, 2):
        assert one is not None
        assert other is not None
        assert any(have < want for have, want in zip(one, other, strict=True))


def test_the_supervisor_ends_all_but_what_it_may_not(
    start: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, foreign, last = start(), start(), start()
    refuse(monkeypatch, foreign)
    monkeypatch.setattr(
        supervise, "children", lambda: list(filter(is_running, (first, foreign, last)))
    )
    supervise.kill_all()
    assert [is_running(pid) for pid in (first, foreign, last)] == [False, True, False]
    kill(foreign, signal.SIGKILL)


SWARM = """
import mmap, os, sys
count = mmap.mmap(-1, 8)
for _ in range(40):
    if os.fork() == 0:
        while (so_far := int.from_bytes(count[:4], "little")) < 20_000:
            count[:4] = (so_far + 1).to_bytes(4, "little")
            if os.fork():
                os._exit(0)
        open(sys.argv[1], "w").close()
        os._exit(0)
"""


def test_the_supervisor_ends_processes_that_start_themselves_again_all_the_time(
    tmp_path: Path,
) -> None:
    """Forty of them; each generation lives for less than a look through /proc takes."""
    outlived = tmp_path / "outlived"
    lifeline, ours = os.pipe()
    try:
        argv = [sys.executable, "-IS", supervise.__file__, str(lifeline)]
        host = [sys.executable, "-ISc", SWARM, str(outlived)]
        subprocess.run([*argv, *host], pass_fds=(lifeline,), check=True, timeout=60)
    finally:
        os.close(lifeline)
        os.close(ours)
    assert not outlived.exists()
