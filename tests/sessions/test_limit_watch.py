"""Limits of the sandbox that take effect: the session's log says it in words."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.agents.process.process_tree import AGENT_VARIABLE
from server.sandbox.limit_signs import ProcessUse, limits_named_in, reached_limits, use_by_session
from server.sandbox.policy import SandboxLimits
from server.sessions.disk_watch import DiskWatch
from server.sessions.limit_watch import LimitNotices
from server.sessions.tenure import TenureState

from ..conftest import Serve
from ..support.harness import Client, script
from ..support.sandboxes import mechanism

LIMITS = SandboxLimits(processes=100, all_processes=1000, memory_bytes=1 << 30, file_bytes=1 << 20)


@pytest.mark.parametrize(
    ("use", "total", "per_session", "kinds"),
    [
        (ProcessUse(94, 900 << 20), 999, True, []),
        (ProcessUse(95, 0), 95, True, ["processes"]),
        (ProcessUse(95, 0), 900, False, []),
        (ProcessUse(1, 0), 950, False, ["processes"]),
        (ProcessUse(), 950, False, []),
        (ProcessUse(1, 1000 << 20), 1, True, ["memory"]),
    ],
)
def test_limit_counts_as_reached_near_its_value(
    use: ProcessUse, total: int, per_session: bool, kinds: list[str]
) -> None:
    found = reached_limits(use, total, LIMITS, per_session=per_session)
    assert [kind for kind, _ in found] == kinds
    assert not [*reached_limits(use, total, SandboxLimits(), per_session=per_session)]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (b"FATAL ERROR: Reached heap limit - JavaScript heap out of memory", ["memory"]),
        (b"OSError: [Errno 12] Cannot allocate memory", ["memory"]),
        (b"sh: 1: Cannot fork", ["processes"]),
        (b"Error: spawn git EAGAIN", ["processes"]),
        (b"bash: fork: retry: Resource temporarily unavailable", ["processes"]),
        (b"read EAGAIN: Resource temporarily unavailable", []),
        (b"OSError: [Errno 27] File too large", ["file"]),
        (b"hello", []),
    ],
)
def test_words_of_a_program_name_its_limit(text: bytes, kinds: list[str]) -> None:
    found = limits_named_in(text, LIMITS, counts_processes=True)
    assert [kind for kind, _ in found] == kinds
    assert not [*limits_named_in(text, SandboxLimits(), counts_processes=True)]


def test_use_is_measured_by_session(monkeypatch: pytest.MonkeyPatch) -> None:
    found, total = use_by_session("PATH")
    assert total >= 1
    assert all(use.threads >= 1 for use in found.values())
    mine = os.environ["PATH"].partition(":")[0]
    assert found[mine].memory_bytes > 1 << 20
    assert use_by_session("PATH", at_least=total * 100)[0] == {}


async def notices(client: Client, session: str) -> dict[str, str]:
    events = await client.events(session)
    return {one["limit"]: one["text"] for one in events if one.get("notice") == "limit"}


def test_limit_is_reported_again_only_after_it_was_not_reached() -> None:
    logged: list[Any] = []
    log = SimpleNamespace(last=1, append=lambda *fields: logged.append(fields))
    turns = SimpleNamespace(current=SimpleNamespace(entry_turn_index=lambda: 1))
    tenure = SimpleNamespace(current=TenureState.OWNED)
    session: Any = SimpleNamespace(
        id="one", is_log_complete=False, log=log, turns=turns, tenure=tenure
    )
    limits = LimitNotices()
    for _ in range(3):
        limits.add(session, "memory", "too much")
    assert len(logged) == 1
    limits.forget(session, ["memory"])
    limits.add(session, "memory", "too much")
    assert len(logged) == 2


async def test_log_has_a_notice_after_a_limit_has_taken_effect(serve: Serve) -> None:
    mechanism("landlock")
    server = await serve(
        sandbox="landlock", sandbox_file_mb=1, sandbox_memory_mb=4096, sweep_interval_secs=3600
    )
    client = await server.client()
    session, other = await client.create(), await client.create()
    for one in (session, other):
        assert (await client.turn(one, script({"say": "hi"})))[0] == 200
    use, _ = await asyncio.to_thread(use_by_session, AGENT_VARIABLE)
    assert use[session].threads >= 1
    watch = DiskWatch(server.services.sessions)
    await watch.measure_all()
    await watch.limits.examine()
    assert await notices(client, session) == {}

    folder = Path((await client.state(session))["cwd"])
    (folder / "full").write_bytes(bytes(1 << 20))
    assert (await client.turn(session, script({"stderr": "MemoryError"})))[0] == 200
    async with asyncio.timeout(60):  # until the server has read the agent's stderr
        while (logged := await notices(client, session)).keys() != {"file", "memory"}:
            await watch.measure_all()
            await watch.limits.examine()
    assert "the file full has reached the limit of 1 MiB" in logged["file"]
    assert "a process may have 4 GiB" in logged["memory"]

    sandbox: Any = server.services.sessions.backend.sandbox
    sandbox.groups = SimpleNamespace(limits_processes=True)  # also those of root
    assert (await client.turn(session, script({"stderr": "sh: Cannot fork"})))[0] == 200
    async with asyncio.timeout(60):
        while "processes" not in (logged := await notices(client, session)):
            await watch.limits.examine()
    sandbox.groups = None
    assert "a session may have 256" in logged["processes"]
    assert await notices(client, other) == {}
