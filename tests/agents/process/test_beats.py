"""The switch in a supervisor: the agents of a node run only while its beats arrive."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.agents.process import supervise
from server.agents.process.beats import Beats

from ...support.harness import descendants, eventually, is_running

AGENT = """
import os, subprocess, sys, time
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(60)"],
                     start_new_session=True)
print("ready", flush=True)
time.sleep(60)
"""

Start = Callable[[float], tuple["subprocess.Popen[bytes]", Beats]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a supervisor whose agent has a child in a session of its own."""
    with contextlib.ExitStack() as stack:

        def start_supervisor(freeze_secs: float) -> tuple[subprocess.Popen[bytes], Beats]:
            beats = Beats()
            beats.freeze_secs = freeze_secs
            theirs, ours = os.pipe()
            beats.add(ours)
            beats.send(supervise.now() + 600)  # a slow machine takes long to start the agent
            argv = [sys.executable, "-IS", supervise.__file__, str(theirs), beats.argument]
            supervisor = subprocess.Popen(
                [*argv, sys.executable, "-ISc", AGENT, "with a child"],
                pass_fds=(theirs,),
                stdout=subprocess.PIPE,
            )
            os.close(theirs)
            assert supervisor.stdout is not None
            stdout = supervisor.stdout

            def end() -> None:
                beats.close(ours)
                supervisor.wait(10)
                stdout.close()

            stack.callback(end)
            assert stdout.readline() == b"ready\n"
            beats.send(supervise.now())
            return supervisor, beats

        yield start_supervisor


def states_below(supervisor: subprocess.Popen[bytes]) -> set[str]:
    """The states of all descendants, as the kernel names them: T is stopped."""
    stats = [Path(f"/proc/{pid}/stat").read_bytes() for pid in descendants(supervisor.pid)]
    assert len(stats) >= 2
    return {stat.rpartition(b")")[2].split()[0].decode() for stat in stats}


async def test_agents_stop_without_a_beat_and_continue_at_the_next_one(start: Start) -> None:
    supervisor, beats = start(0.3)
    await eventually("all agents to stop", lambda: states_below(supervisor) == {"T"})
    beats.send(supervise.now() + 60)
    await eventually("all agents to continue", lambda: "T" not in states_below(supervisor))


async def test_late_beat_lets_no_agent_continue(start: Start) -> None:
    supervisor, beats = start(0.3)
    await eventually("all agents to stop", lambda: states_below(supervisor) == {"T"})
    beats.send(supervise.now() - 0.3)
    beats.send(supervise.now() - 0.3)
    assert states_below(supervisor) == {"T"}


async def test_stopped_agents_end_with_the_server(start: Start) -> None:
    supervisor, beats = start(0.3)
    await eventually("all agents to stop", lambda: states_below(supervisor) == {"T"})
    agents = descendants(supervisor.pid)
    replacement = os.open(os.devnull, os.O_WRONLY)
    for lifeline in tuple(beats._lifelines):
        os.dup2(replacement, lifeline)  # as the kernel closes it when the server is killed
    os.close(replacement)
    await eventually("all agents to end", lambda: not any(map(is_running, agents)))


def test_supervisor_of_a_single_server_needs_no_beats(start: Start) -> None:
    supervisor, _ = start(0)
    assert "T" not in states_below(supervisor)
    assert supervise.FreezeSwitch(0, 0).timeout() is None
