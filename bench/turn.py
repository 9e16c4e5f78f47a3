"""Measure a turn: how soon its first update comes, how fast the rest, what a session costs.

``make bench``, or ``make bench ARGS="--quick --rivals"``. Every figure stands next to its rivals',
measured in turns with them in the same minutes, with the same agent (``agent.mjs``), which does as
good as nothing. The table is Markdown; ``docs/performance.md`` has one, and says what it shows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Samples, find_house, print_table, read_memory
from targets import (
    ROOT,
    AcpxPrompt,
    BenchError,
    Clawdforge,
    HostAlone,
    RawPipe,
    Server,
    StdioToWs,
    Target,
    agent_argv,
)

from server.agents.acpx import ACPX_VERSION
from server.agents.processes import kill_marked

BURST = 20_000
PAUSE_SECS = 0.3
LIMIT_SECS = 240
HIBERNATE_SECS = 15
"""Longer than the last round of turns in all sessions takes, so that none sleeps before it ends."""
CALM_SECS = 20
"""In which Node, left alone, gives back the memory that its start took for a moment."""
SAMPLES = ("median", "quartiles", "range", "n")


class Plan:
    """How much is measured; the whole takes under three minutes, the quick one under one."""

    def __init__(self, *, quick: bool) -> None:
        self.rounds = 2 if quick else 6
        self.paused_turns = 4 if quick else 5
        self.prompt_turns = 8 if quick else 12
        self.bursts = 3 if quick else 7
        self.slow_bursts = 2 if quick else 5
        self.sessions = 25 if quick else 100


class Goals:
    """What was to be reached, and whether it was."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str]] = []

    def at_least(self, what: str, value: float, goal: float, unit: str) -> None:
        self._add(what, f"{value:.1f}{unit}", f">= {goal:g}{unit}", value >= goal)

    def at_most(self, what: str, value: float, goal: float, unit: str) -> None:
        self._add(what, f"{value:.2f}{unit}", f"<= {goal:g}{unit}", value <= goal)

    def _add(self, what: str, value: str, goal: str, reached: bool) -> None:
        self._rows.append((what, value, goal, "yes" if reached else "NO"))

    def print(self) -> None:
        print_table(("goal", "measured", "wanted", "reached"), self._rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/turn.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples, under a minute")
    parser.add_argument("--rivals", action="store_true", help="install and measure stdio-to-ws too")
    parser.add_argument(
        "--only", choices=("latency", "burst", "memory"), help="one of the three parts"
    )
    options = parser.parse_args()
    plan = Plan(quick=options.quick)
    goals = Goals()
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)
    signal.alarm(LIMIT_SECS)
    print(f"{_machine()}; every turn checked: all updates came, once and in order\n", flush=True)
    try:
        with _folder() as (folder, environ):
            if options.only != "memory":
                with contextlib.ExitStack() as stack:
                    targets = _start(stack, folder, environ, rivals=options.rivals)
                    if options.only != "burst":
                        measure_latency(targets, plan, goals)
                    if options.only != "latency":
                        measure_bursts(targets, plan, goals)
            if options.only in (None, "memory"):
                measure_memory(folder, environ, plan, goals)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    goals.print()
    print(f"{time.monotonic() - began:.0f} s")
    return 0


def _stop(number: int, _: Any) -> None:
    sys.exit(f"bench: stopped by {signal.Signals(number).name}")


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()},"
        f" acpx {ACPX_VERSION}, {os.getloadavg()[0]:.1f} processes busy already"
    )


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A folder for all that is written, and an environment; both end with everything in them."""
    with tempfile.TemporaryDirectory(prefix="clawdforge-bench-") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        # acpx keeps its state in HOME; and who has this HOME was started from here.
        environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
        try:
            yield folder, environ
        finally:
            kill_marked(f"HOME={home}".encode())


def _start(
    stack: contextlib.ExitStack, folder: Path, environ: Mapping[str, str], *, rivals: bool
) -> list[Target]:
    """Start every target, each with an agent of its own, and warm them up."""
    argv = agent_argv(BURST)

    def room(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    def own(target: Any) -> Any:
        stack.callback(target.close)
        return target

    server = own(Server(folder / "server", environ, argv))
    targets: list[Target] = [
        own(Clawdforge(server)),
        own(RawPipe(argv, room("raw"))),
        own(HostAlone(argv, room("host"), environ)),
        own(AcpxPrompt(argv, room("acpx"), environ)),
    ]
    if rivals:
        targets.append(own(StdioToWs(argv, room("stdio-to-ws"), environ)))
    for target in targets:
        for _ in range(3):
            target.turn("hi", 1)
        target.settle()
    return targets


def measure_latency(targets: Sequence[Target], plan: Plan, goals: Goals) -> None:
    """From the prompt to the first update, in milliseconds."""
    ours, _, host, prompt, *_ = targets
    paused = {target: Samples() for target in targets}
    at_once = {target: Samples() for target in targets}
    for _ in range(plan.rounds):
        for target in targets:
            slow = target is prompt
            for _ in range(1 if slow else plan.paused_turns):
                target.settle()
                time.sleep(PAUSE_SECS)
                paused[target].add(target.turn("hi", 1).first * 1000)
            for _ in range(1 if slow else plan.prompt_turns):
                at_once[target].add(target.turn("hi", 1).first * 1000)
            target.settle()
    for title, samples in (
        (f"first update, after a pause of {PAUSE_SECS:g} s (ms)", paused),
        ("first update, right after the last turn's end (ms)", at_once),
    ):
        base = samples[ours].median
        print_table(
            (title, *SAMPLES, "of clawdforge's"),
            (
                [target.name, *taken.cells(2), _ratio(taken.median / base)]
                for target, taken in samples.items()
            ),
        )
    for title, samples in (("after a pause", paused), ("right after a turn", at_once)):
        base = samples[ours].median
        goals.at_least(
            f"first update, {title}: faster than `acpx prompt`",
            samples[prompt].median / base,
            30,
            " times",
        )
        goals.at_most(
            f"first update, {title}: behind the host", base - samples[host].median, 3, " ms"
        )


def measure_bursts(targets: Sequence[Target], plan: Plan, goals: Goals) -> None:
    """Updates a second, from the prompt until all of them are there."""
    ours, _, _, prompt, *_ = targets
    rates = {target: Samples() for target in targets}
    bare = Samples()
    after = {target: Samples() for target in targets}
    for number in range(plan.bursts):
        for target in targets:
            if target is prompt and number >= plan.slow_bursts:
                continue
            time.sleep(PAUSE_SECS)
            turn = target.turn("burst", BURST)
            rates[target].add(BURST / turn.total)
            if target is prompt:
                bare.add(BURST / (turn.total - turn.first))
            else:
                after[target].add(target.turn("hi", 1).first * 1000)
            target.settle()
    base = rates[ours].median
    rows = [
        [target.name, *taken.cells(0), _ratio(taken.median / base)]
        for target, taken in rates.items()
    ]
    rows.append(
        [f"{prompt.name}, from its first update on", *bare.cells(0), _ratio(bare.median / base)]
    )
    print_table((f"a burst of {BURST:,} updates (updates/s)", *SAMPLES, "of clawdforge's"), rows)
    base_after = after[ours].median
    print_table(
        ("first update, right after such a burst (ms)", *SAMPLES, "of clawdforge's"),
        (
            [target.name, *taken.cells(2), _ratio(taken.median / base_after)]
            for target, taken in after.items()
            if target is not prompt
        ),
    )
    goals.at_least(
        "a burst: faster than `acpx prompt`, its start not counted", base / bare.median, 2, " times"
    )


def _ratio(value: float) -> str:
    return f"{value:.0f} x" if value >= 10 else f"{value:.2f} x"


def measure_memory(folder: Path, environ: Mapping[str, str], plan: Plan, goals: Goals) -> None:
    """The server's and the host's memory with many open sessions, which have all had a turn."""
    # A small agent: what agents share with the server's or the host's programs would be
    # counted in part as theirs, and a hundred Nodes need more memory than there may be.
    argv = [sys.executable, "-I", "-S", str(ROOT / "tests" / "agents" / "mock_agent.py")]
    server = Server(
        folder / "memory",
        environ,
        argv,
        MAX_LIVE_AGENTS=str(plan.sessions),
        AGENT_IDLE_SECS=str(HIBERNATE_SECS),
        SWEEP_INTERVAL_SECS="0.5",
    )
    with contextlib.closing(server):
        house = find_house(server.pid)
        if len(house) != 3:
            raise BenchError(f"server, supervisor and host were expected, not {house}")
        # The strict way: not against a fresh server, whose host is still full of its start.
        first = server.create()
        server.call("POST", f"/sessions/{first}/turn", {"prompt": "hi"})
        server.call("DELETE", f"/sessions/{first}")
        time.sleep(CALM_SECS)
        empty = read_memory(house)
        sessions = [server.create() for _ in range(plan.sessions)]
        for session in sessions:
            server.call("POST", f"/sessions/{session}/turn", {"prompt": "hi"})
        states = _agent_states(server)
        if states != {"live"}:
            raise BenchError(f"every agent was to be live, but they are {states}")
        live = read_memory(house)
        while _agent_states(server) != {"hibernated"}:
            time.sleep(1)
        asleep = read_memory(house)
    rows = [["no session", f"{empty.total:.1f}", f"{empty.own:.1f}", "-"]]
    for what, memory in (("live agents", live), ("hibernated agents", asleep)):
        each = (memory.own - empty.own) / plan.sessions
        totals = (f"{memory.total:.1f}", f"{memory.own:.1f}")
        rows.append([f"{plan.sessions} sessions, {what}", *totals, f"{each:.2f}"])
        goals.at_most(f"memory of a session, {what}", each, 1, " MB")
    print_table(("memory of server and host (MB)", "PSS", "without files", "a session"), rows)


def _agent_states(server: Server) -> set[str]:
    return {one["agent_state"] for one in server.call("GET", "/sessions")["sessions"]}


if __name__ == "__main__":
    sys.exit(main())
