"""Ending the processes that agents leave behind, also if some of them cannot be ended."""

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

TAG = process_tree.env_tag(process_tree.AGENT_VARIABLE, "of-this-test")
kill = os.kill


@pytest.fixture
def start() -> Iterator[Callable[[], int]]:
    """Starts processes that do not end by themselves."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one() -> int:
        name, _, value = TAG.decode().partition("=")
        program = [sys.executable, "-ISc", "import time; time.sleep(100)"]
        started.append(subprocess.Popen(program, env={name: value}))
        return started[-1].pid

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def refuse(monkeypatch: pytest.MonkeyPatch, foreign: int) -> None:
    """Refuse all signals to *foreign*, as if it were another user's process."""

    def refused(pid: int, number: int) -> None:
        if pid == foreign:
            raise PermissionError(1, "Operation not permitted")
        kill(pid, number)

    def refused_by_descriptor(descriptor: int, number: int) -> None:
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii")
        refused(int(info.partition("Pid:")[2].split()[0]), number)

    monkeypatch.setattr(os, "kill", refused)
    monkeypatch.setattr(signal, "pidfd_send_signal", refused_by_descriptor)


def test_unkillable_process_does_not_prevent_ending_the_others(
    start: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, foreign, last = start(), start(), start()
    refuse(monkeypatch, foreign)
    assert process_tree.end_tagged(TAG) == 2
    assert [is_running(pid) for pid in (first, foreign, last)] == [False, True, False]
    assert str(foreign) in caplog.text


def test_process_that_does_not_die_is_logged_and_abandoned(
    start: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process behaves like one that hangs in the kernel."""
    stuck = start()
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda descriptor, number: None)
    assert process_tree.end_tagged(TAG, timeout=0.05) == 0
    assert is_running(stuck)
    assert str(stuck) in caplog.text


def test_process_cannot_lower_its_limits_to_the_tag_of_another_agent(
    start: Callable[[], int],
) -> None:
    tags = [process_tree.tag_process(start(), number) for number in (1, 2, 500_000)]
    for one, other in itertools.permutations(tags, 2):
        assert one is not None
        assert other is not None
        assert any(have < want for have, want in zip(one, other, strict=True))


def test_supervisor_ends_all_children_but_those_of_another_user(
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
        while (forks := int.from_bytes(count[:4], "little")) < 20_000:
            count[:4] = (forks + 1).to_bytes(4, "little")
            if os.fork():
                os._exit(0)
        open(sys.argv[1], "w").close()
        os._exit(0)
"""


def test_supervisor_ends_processes_that_fork_continuously(
    tmp_path: Path,
) -> None:
    """Each of the forty processes lives for less time than a search of /proc takes."""
    survived = tmp_path / "survived"
    lifeline, ours = os.pipe()
    try:
        argv = [sys.executable, "-IS", supervise.__file__, str(lifeline), "0"]
        host = [sys.executable, "-ISc", SWARM, str(survived)]
        subprocess.run([*argv, *host], pass_fds=(lifeline,), check=True, timeout=60)
    finally:
        os.close(lifeline)
        os.close(ours)
    assert not survived.exists()


TRACED = """
import ctypes, os, signal, sys, time
to_host, of_orphan = os.pipe()
if os.fork() == 0:  # its child is an orphan, which the supervisor inherits
    if os.fork() == 0:
        while os.getppid() != int(sys.argv[1]):
            time.sleep(0.001)
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
        os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
os.close(of_orphan)
os.wait()
assert os.read(to_host, 1) == b"", "the orphan still runs"
print("the host runs on")
"""


def test_supervisor_survives_an_orphan_that_asks_to_be_traced() -> None:
    """The kernel reports each of its stops to the supervisor as it reports an end."""
    lifeline, ours = os.pipe()
    code = f"import os, sys; sys.argv = ['', str(os.getppid())]\n{TRACED}"
    try:
        argv = [sys.executable, "-IS", supervise.__file__, str(lifeline), "0"]
        done = subprocess.run(
            [*argv, sys.executable, "-ISc", code],
            pass_fds=(lifeline,),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(lifeline)
        os.close(ours)
    assert (done.stdout, done.stderr) == ("the host runs on\n", "")


HOST = """
import ctypes, os, signal, sys
adopt = ctypes.CDLL(None).prctl
adopt(36, 1, 0, 0, 0)
children = []
for _ in range(2):
    children.append(os.fork())
    if not children[-1]:
        os.execv(sys.executable, [sys.executable, "-ISc", "import time; time.sleep(1000)"])
print(*children, flush=True)
os.read(0, 1)
for child in children:
    os.kill(child, signal.SIGKILL)
"""


def test_child_of_the_host_with_the_tag_of_an_ended_agent_is_ended() -> None:
    """An agent without a sandbox can start a process that does not descend from itself."""
    host = subprocess.Popen(
        [sys.executable, "-ISc", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    left, starting = map(int, host.stdout.readline().split())
    tagged: list[process_tree.RlimitTag] = []
    living = process_tree.LivingAgents()
    tag = process_tree.tag_process(left, 7, tagged.append)
    assert tagged == [tag]
    try:
        living.add(tag, TAG)
        assert process_tree.end_strays(os.getpid(), host.pid, living) == 0
        living.remove(tag, TAG)
        assert process_tree.end_strays(os.getpid(), host.pid, living) == 1
        assert [is_running(pid) for pid in (left, starting)] == [False, True]
    finally:
        host.communicate()
    # A host that has ended has no children; its supervisor ends them.
    assert process_tree.end_strays(os.getpid(), host.pid, living) == 0
