"""Turns: the latency of the first update, the rate of a burst, and the effect on neighbours."""

from __future__ import annotations

import contextlib
import selectors
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import Samples
from report import Report
from rivals import AcpxPrompt, SandboxAgent, StdioToWs
from targets import (
    AGENT,
    ANSWER,
    BenchError,
    Clawdforge,
    HostAlone,
    RawPipe,
    Server,
    Target,
)

BURST = 20_000
PAUSE_SECS = 0.3
TOGETHER = 10


class Targets(NamedTuple):
    """Clawdforge and its rivals, each with a warm agent of its own."""

    ours: Clawdforge
    raw: RawPipe
    host: HostAlone
    prompt: AcpxPrompt
    bridge: StdioToWs
    sandbox: SandboxAgent


def start(
    stack: contextlib.ExitStack, server: Server, folder: Path, environ: Mapping[str, str]
) -> Targets:
    """Start every target and warm it up."""

    def new_folder(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    def register(target: Any) -> Any:
        stack.callback(target.close)
        return target

    targets = Targets(
        register(Clawdforge(server)),
        register(RawPipe(AGENT, new_folder("raw"))),
        register(HostAlone(AGENT, new_folder("host"), environ)),
        register(AcpxPrompt(AGENT, new_folder("acpx"), environ)),
        register(StdioToWs(AGENT, new_folder("stdio-to-ws"), environ)),
        register(SandboxAgent(AGENT, new_folder("sandbox-agent"), environ)),
    )
    for target in targets:
        for _ in range(3):
            target.turn("hi", 1)
        if target is not targets.prompt:
            target.turn(f"burst {BURST}", BURST)
        target.settle()
    targets.sandbox.lost = 0
    return targets


def measure_latency(targets: Targets, report: Report, *, quick: bool) -> None:
    """The time from the prompt to the first update."""
    paused: dict[Target, Samples] = {target: Samples() for target in targets}
    at_once: dict[Target, Samples] = {target: Samples() for target in targets}
    for _ in range(3 if quick else 12):
        for target in targets:
            slow = target is targets.prompt
            for _ in range(1 if slow else 3 if quick else 6):
                target.settle()
                time.sleep(PAUSE_SECS)
                paused[target].add(target.turn("hi", 1).first * 1000)
            for _ in range(1 if slow else 10 if quick else 20):
                at_once[target].add(target.turn("hi", 1).first * 1000)
            target.settle()
    for title, samples in (("after a pause", paused), ("right after a turn", at_once)):
        report.compare(f"First update, {title}", "ms", _by_name(samples), digits=2)
        ours, host = samples[targets.ours], samples[targets.host]
        report.at_most(
            f"first update, {title}, median, minus the host's", ours.median - host.median, 1, "ms"
        )
        report.at_most(
            f"first update, {title}, p99, minus the host's", ours.p99 - host.p99, 4, "ms"
        )
        report.at_most(f"first update, {title}, median", ours.median, 10, "ms")
        report.at_least(
            f"first update, {title}: faster than `acpx prompt`",
            samples[targets.prompt].median / ours.median,
            40,
            "times",
        )


def measure_bursts(targets: Targets, report: Report, *, quick: bool) -> None:
    """Updates per second, from the prompt until all of them have arrived."""
    rates: dict[Target, Samples] = {target: Samples() for target in targets}
    first = Samples()
    after: dict[Target, Samples] = {target: Samples() for target in targets}
    rounds = 4 if quick else 11
    for number in range(rounds):
        for target in targets:
            if target is targets.prompt and number >= rounds // 3:
                continue  # each turn takes seconds
            time.sleep(PAUSE_SECS)
            rates[target].add(BURST / target.turn(f"burst {BURST}", BURST).total)
            if target is not targets.prompt:
                after[target].add(target.turn("hi", 1).first * 1000)
            if target is targets.ours:
                for _ in range(3):
                    first.add(target.turn("hi", 1).first * 1000)
            target.settle()
    report.compare(f"A burst of {BURST:,}, all delivered", "updates/s", _by_name(rates))
    base = rates[targets.ours].median
    for rival, goal in ((targets.bridge, 3), (targets.prompt, 6)):
        report.at_least(
            f"a burst: faster than {rival.name}", base / rates[rival].median, goal, "times"
        )
    del after[targets.prompt]
    report.compare("First update, right after a burst", "ms", _by_name(after), digits=2)
    report.at_most(
        "first update right after a burst, minus that after a small turn",
        after[targets.ours].median - first.median,
        1,
        "ms",
    )
    if targets.sandbox.lost:
        share = targets.sandbox.lost / (BURST * rounds)
        print(f"{targets.sandbox.name} lost {share:.1%} of its updates\n")


def _by_name(samples: Mapping[Target, Samples]) -> dict[str, Samples]:
    return {target.name: values for target, values in samples.items()}


def measure_neighbour(server: Server, report: Report, *, quick: bool) -> None:
    """The first update in a session while another agent writes at full speed."""
    loud, quiet = Clawdforge(server), Clawdforge(server)
    with contextlib.closing(loud), contextlib.closing(quiet):
        count = BURST * (10 if quick else 20)
        loud.turn(f"burst {count}", count)
        quiet.turn("hi", 1)
        alone = Samples(quiet.turn("hi", 1).first * 1000 for _ in range(20))
        beside = Samples()
        for _ in range(2 if quick else 4):
            reader = threading.Thread(target=loud.run_unchecked, args=(f"burst {count}",))
            reader.start()
            while reader.is_alive():
                beside.add(quiet.turn("hi", 1).first * 1000)
            reader.join()
    report.compare(
        f"A neighbour's first update beside a burst of {count:,}",
        "ms",
        {"clawdforge, beside": beside, "clawdforge, alone": alone},
        digits=1,
    )
    report.at_most("a neighbour's first update beside a burst", beside.median, 15, "ms")


def measure_together(server: Server, bridge: StdioToWs, report: Report, *, quick: bool) -> None:
    """Ten sessions at once, with one reader."""
    ours = [Clawdforge(server) for _ in range(TOGETHER)]
    theirs = [bridge.connect() for _ in range(TOGETHER)]
    with contextlib.ExitStack() as stack:
        for agent in ours:
            stack.callback(agent.close)
        for bridged in theirs:
            stack.callback(bridged.socket.close)
        ways = (
            (
                "clawdforge",
                [session.socket for session in ours],
                [session.send_prompt for session in ours],
                b'"turn_end"',
            ),
            (
                bridge.name,
                [agent.socket for agent in theirs],
                [agent.send_prompt for agent in theirs],
                ANSWER,
            ),
        )
        rates = {name: Samples() for name, *_ in ways}
        for number in range(4 if quick else 10):
            for name, sockets, senders, end in ways:
                time.sleep(PAUSE_SECS)
                secs = _prompt_all(sockets, senders, end)
                if number:  # the first is a warm-up
                    rates[name].add(TOGETHER * BURST / secs)
    report.compare(f"{TOGETHER} sessions at once, total", "updates/s", rates)
    mine, other = (samples.median for samples in rates.values())
    report.at_least(f"ten sessions at once: faster than {bridge.name}", mine / other, 2, "times")


def _prompt_all(sockets: Sequence[Any], senders: Sequence[Any], end: bytes) -> float:
    """Send all prompts. Returns the seconds until all turns have ended."""
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for line in sockets:
            selector.register(line.fileno(), selectors.EVENT_READ, [line, b""])
        for send in senders:
            send(f"burst {BURST}")
        left = len(sockets)
        while left:
            ready = selector.select(30)
            if not ready:
                raise BenchError("some turns did not end")
            for key, _ in ready:
                line, tail = key.data
                tail = key.data[1] = (tail + line.read())[-256:]
                if end in tail and tail.endswith((b"}", b"}\n")):
                    selector.unregister(key.fd)
                    left -= 1
    return time.perf_counter() - began
