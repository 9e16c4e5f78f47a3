"""Clients prompt through three nodes while faults happen; then the history is checked.

The short form takes a minute and is part of ``make slow``; ``make chaos`` runs the long one.
``CLAWDFORGE_FAULTS_SECS`` and ``CLAWDFORGE_FAULTS_SEED`` change the length and repeat the dice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..cluster.nodes import LEASE_SECS, NodeCluster, running_nodes
from ..support.harness import Json, Socket, eventually, script
from ..support.postgres import running_postgres
from .conftest import Scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

SECS = float(os.environ.get("CLAWDFORGE_FAULTS_SECS", "0"))
SEED = int(os.environ.get("CLAWDFORGE_FAULTS_SEED", "0")) or random.randrange(1, 1 << 30)
SESSIONS = 6
SETTINGS = {"DRAIN_SECS": "5", "AGENT_IDLE_SECS": "0.5", "SWEEP_INTERVAL_SECS": "0.5"}
"""Idle sessions move between the nodes all the time."""
STATEMENTS = {
    "messages": "DELETE FROM commands",
    "backends": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE 'clawdforge%'",
    "queries": "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE 'clawdforge%'",
    "locks": "BEGIN; LOCK TABLE nodes, sessions, commands IN EXCLUSIVE MODE;"
    " SELECT pg_sleep(1); COMMIT",
}
"""Statements that an operator, or another program, may execute."""
FAULTS = ("kill", "pause", "freeze", "cut", "drain", "engine", "slow", *STATEMENTS)
FAILED = (aiohttp.ClientError, AssertionError, TimeoutError, OSError)
OUTAGE_SECS = 120
"""Within this time a node accepts requests again, whatever the faults."""
RETRY_SECS = 0.2


class History:
    """The prompts that clients sent, and the entries that they saw.

    Attributes:
        accepted: the ids of accepted prompts, by session.
        seen: each entry that a socket received, by session and position.
    """

    def __init__(self) -> None:
        self.accepted: dict[str, set[str]] = {}
        self.seen: dict[tuple[str, int], Any] = {}
        self.faults: Counter[str] = Counter()
        self.anomalies: list[str] = []

    def see(self, session_id: str, entry: dict[str, Any]) -> None:
        known = self.seen.setdefault((session_id, entry["seq"]), entry)
        if known != entry:
            self.anomalies.append(f"entry {entry['seq']} of {session_id} has changed")


async def prompt(
    cluster: NodeCluster, history: History, session_id: str, dice: random.Random
) -> None:
    """Send prompts to one session, each with an id and until it is accepted, through any node."""
    for number in itertools.count(1):
        steps = script({"repeat": {"times": dice.randint(3, 20), "steps": [{"say": "{i} "}]}})
        prompt_id = f"p{number}"
        send = partial(send_prompt, cluster, dice, session_id, prompt_id, steps)
        status, reply = await eventually("a response", send, OUTAGE_SECS, pause=RETRY_SECS)
        if "turn_index" not in reply:
            history.anomalies.append(f"{session_id} {prompt_id}: {status} {reply}")
            return
        history.accepted.setdefault(session_id, set()).add(prompt_id)


async def send_prompt(
    cluster: NodeCluster, dice: random.Random, session_id: str, prompt_id: str, steps: str
) -> tuple[int, Json] | None:
    """The response of one node; None if the prompt must be sent again."""
    client = dice.choice(cluster.nodes).client
    with contextlib.suppress(*FAILED):
        async with asyncio.timeout(20):
            status, reply = await client.post(
                f"/sessions/{session_id}/turn",
                {"prompt": steps},
                headers={"Idempotency-Key": prompt_id},
            )
        if "turn_index" in reply or (status < 500 and status != 429):
            return status, reply
    return None


async def follow(
    cluster: NodeCluster, history: History, session_id: str, dice: random.Random
) -> None:
    """Follow one session through any node, and check that no entry is omitted or repeated."""
    position = 0

    async def connect() -> Socket | None:
        client = dice.choice(cluster.nodes).client
        with contextlib.suppress(*FAILED):
            async with asyncio.timeout(10):
                return await client.connect(session_id, after=position)
        return None

    while True:
        socket = await eventually("a socket", connect, OUTAGE_SECS, pause=RETRY_SECS)
        retry_ms = 0
        with contextlib.suppress(*FAILED):
            while True:
                async with asyncio.timeout(10):
                    frame = await socket.next()
                if frame is None:
                    break
                retry_ms = frame.get("retry_after_ms") or 0  # of a `bye`
                if "seq" in frame:
                    if frame["seq"] != position + 1:
                        history.anomalies.append(
                            f"{session_id}: {frame['seq']} came after {position}"
                        )
                    position = frame["seq"]
                    history.see(session_id, frame)
        await asyncio.sleep(retry_ms / 1000)


async def inject(cluster: NodeCluster, history: History, dice: random.Random) -> None:
    """Cause one fault, and end it."""
    node = dice.choice(cluster.nodes)
    kind = dice.choice(FAULTS)
    history.faults[kind] += 1
    match kind:
        case "kill":
            with contextlib.suppress(ProcessLookupError):
                await node.server.kill()
            await asyncio.sleep(dice.uniform(0, 1.5 * LEASE_SECS))
        case "pause":
            with contextlib.suppress(ProcessLookupError):
                node.pause()
                await asyncio.sleep(dice.uniform(0, 1.5 * LEASE_SECS))
                node.resume()
        case "freeze":
            node.proxy.freeze()
            await asyncio.sleep(dice.uniform(0, 1.5 * LEASE_SECS))
            node.proxy.thaw()
        case "cut":
            node.proxy.cut()
        case "drain":
            status = await node.server.stop()
            if status not in (0, 1):
                history.anomalies.append(f"a node that drained exited with {status}")
        case "engine":
            cluster.postgres.stop(signal.SIGQUIT)
            await asyncio.sleep(dice.uniform(0, 0.5 * LEASE_SECS))
            cluster.postgres.start(fsync="off")
        case "slow":
            node.proxy.delay_secs = dice.uniform(0, 0.3)
            await asyncio.sleep(dice.uniform(0, LEASE_SECS))
            node.proxy.delay_secs = 0
        case "messages" | "backends" | "queries" | "locks":
            await asyncio.to_thread(cluster.sql, STATEMENTS[kind])
    await restart(cluster)


async def restart(cluster: NodeCluster) -> None:
    """Start the nodes again that have ended, also those that are about to end."""
    for node in cluster.nodes:
        while node.server.process.returncode is not None or node.state() == "gone":
            await asyncio.wait_for(node.server.process.wait(), 60)
            # It does not start if the database answers too late; a service manager tries again.
            with contextlib.suppress(AssertionError):
                await node.start()


async def settled_log(cluster: NodeCluster, session_id: str) -> list[dict[str, Any]]:
    """The log of a session, after all its turns have ended."""
    found: list[dict[str, Any]] = []

    async def is_settled() -> bool:
        await restart(cluster)
        with contextlib.suppress(*FAILED):
            client = cluster.nodes[0].client
            status, state = await client.get(f"/sessions/{session_id}")
            if status == 200 and state["state"] == "idle" and not state["queued"]:
                found[:] = await client.events(session_id)
                return True
        return False

    await eventually("the session to be idle", is_settled, 60)
    return found


def check(log: list[dict[str, Any]], session_id: str, history: History) -> None:
    """Check the log of one session against the history."""
    wrong = history.anomalies.append
    if [entry["seq"] for entry in log] != list(range(1, len(log) + 1)):
        wrong(f"the log of {session_id} has a gap or a repeat")
    for (seen_in, seq), entry in history.seen.items():
        if seen_in == session_id and (seq > len(log) or log[seq - 1] != entry):
            wrong(f"entry {seq} of {session_id} was seen and is not in the log")
    starts = [entry for entry in log if entry["type"] == "turn_start"]
    ends = Counter(entry["turn_index"] for entry in log if entry["type"] == "turn_end")
    if any(ends[entry["turn_index"]] != 1 for entry in starts) or len(ends) != len(starts):
        wrong(f"a turn of {session_id} has not one start and one end")
    ids = Counter(entry["id"] for entry in starts)
    if any(count > 1 for count in ids.values()):
        wrong(f"a prompt of {session_id} ran twice")
    for prompt_id in history.accepted.get(session_id, set()) - ids.keys():
        wrong(f"{prompt_id} of {session_id} was accepted and has no turn")


async def test_faults_of_a_cluster(chaos: Scenario, tmp_path: Path) -> None:
    """Every accepted prompt runs once, and every entry that was seen stays, on any node"""
    secs = SECS or chaos.size(60.0, 600.0)
    dice = random.Random(SEED)
    history = History()
    with running_postgres(fsync="off") as postgres:
        async with running_nodes(postgres, tmp_path, 3, **SETTINGS) as cluster:
            ids = [await dice.choice(cluster.nodes).client.create() for _ in range(SESSIONS)]
            clients = [
                asyncio.create_task(work(cluster, history, one, random.Random(SEED + number)))
                for number, one in enumerate(ids)
                for work in (prompt, follow)
            ]
            end = asyncio.get_running_loop().time() + secs
            while asyncio.get_running_loop().time() < end:
                await asyncio.sleep(dice.uniform(0.5, 3))
                await inject(cluster, history, dice)
            await restart(cluster)
            for task in clients:
                task.cancel()
            results = await asyncio.gather(*clients, return_exceptions=True)
            history.anomalies += [repr(one) for one in results if isinstance(one, Exception)]
            for session_id in ids:
                log = await settled_log(cluster, session_id)
                check(log, session_id, history)
                (tmp_path / f"{session_id}.json").write_text(json.dumps(log))
    accepted = sum(map(len, history.accepted.values()))
    chaos.record(
        faults=sum(history.faults.values()),
        prompts=accepted,
        entries=len(history.seen),
        anomalies=len(history.anomalies),
    )
    print(f"seed {SEED}: {dict(history.faults)}, {accepted} prompts, {len(history.seen)} entries")  # noqa: T201
    assert not history.anomalies, f"seed {SEED}, {tmp_path}: {history.anomalies[:20]}"
    assert accepted
