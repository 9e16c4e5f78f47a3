"""Attempts to escape from the sandbox fail at every level, except those that the docs name."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.agent_commands import AgentCommand
from server.data_dir import DataDir
from server.sandbox import attempts
from server.sandbox.levels import Mechanism, find_mechanism
from server.sandbox.trial import targets_of, try_escapes

from ..conftest import Serve
from ..support.harness import MOCK, eventually
from ..support.sandboxes import LEVELS, as_user, mechanism, plain_environ, system_python

CORPUS = Path(__file__).with_name("corpus.py")
CORPUS_NAMES = runpy.run_path(str(CORPUS))
KNOWN, PERHAPS = CORPUS_NAMES["OPEN"], CORPUS_NAMES["PERHAPS"]
each_level = pytest.mark.parametrize("level", LEVELS)


def escapes(found: Mechanism, script: Path = CORPUS) -> list[str]:
    """The attempts that succeed."""
    results = try_escapes(found, plain_environ(), script, system_python())
    perhaps = PERHAPS.get(found.level, ())
    return sorted(name for name, why in results.items() if why is None and name not in perhaps)


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The targets of the attempts, made before the server starts and removed after its end."""
    data = DataDir(tmp_path / "victim")
    with targets_of(data, tmp_path / "operator", os.environ, sys.executable) as found:
        own = {"own_home": str(data.homes / "own"), "own_upload": found["upload"]}
        yield {**found, **own, "socket_names": ["clawdforge", "acpx"]}


@each_level
def test_attempts_to_escape_fail(level: str) -> None:
    assert escapes(mechanism(level)) == sorted(KNOWN[level])


@each_level
def test_attempts_to_escape_of_an_ordinary_user_fail(level: str) -> None:
    mechanism(level)
    found = as_user(lambda: escapes(find_mechanism(level, plain_environ())))
    assert found == sorted(KNOWN[level])


def test_attempts_to_escape_fail_under_restrictions_of_a_container() -> None:
    """No capabilities, no new privileges, and what Docker's default filter refuses."""
    mechanism("landlock")

    def try_auto() -> list[object]:
        found = find_mechanism("auto", plain_environ())
        return [found.level, escapes(found)]

    level, found = as_user(try_auto, like_container=True)
    assert (level, found) == ("landlock", sorted(KNOWN["landlock"]))


def test_attempts_succeed_without_a_sandbox() -> None:
    """Otherwise an attempt could fail because of a mistake in it."""
    off = Mechanism("off", is_chosen=True, abi=0)
    found = as_user(lambda: escapes(off, Path(attempts.__file__)))
    # A machine may forbid namespaces to ordinary users.
    assert len(found) >= 25


@pytest.mark.parametrize(
    ("backend", "level"),
    [
        ("host", "landlock"),
        pytest.param("host", "bwrap", marks=pytest.mark.slow),
        pytest.param("cli", "landlock", marks=pytest.mark.slow),
        pytest.param("cli", "bwrap", marks=pytest.mark.slow),
    ],
)
async def test_agent_of_a_session_cannot_escape(
    targets: dict[str, Any], serve: Serve, level: str, backend: str
) -> None:
    """The attempts are made by a program that then becomes the session's agent."""
    mechanism(level)
    argv = [sys.executable, "-I", "-S", str(CORPUS), json.dumps(targets)]
    argv += ["--then", sys.executable, "-I", "-S", str(MOCK)]
    server = await serve(
        agents={"attacker": AgentCommand(tuple(argv))},
        default_agent="attacker",
        agent_backend=backend,
        sandbox=level,
        sandbox_write=(),
    )
    client = await server.client()
    session = await client.create("attacker")
    assert (await client.turn(session, "hello"))[0] == 200
    state = await client.state(session)
    results = json.loads(Path(state["cwd"], "results.json").read_text())
    escaped = {name for name, reason in results.items() if reason is None}
    assert escaped <= KNOWN[level] | PERHAPS.get(level, set())
    assert state["sandbox"] == level


@pytest.mark.slow
@each_level
async def test_prewarmed_agent_is_in_the_sandbox(serve: Serve, level: str) -> None:
    mechanism(level)
    server = await serve(prewarmed_agents=1, sandbox=level)
    pool = server.services.sessions.prewarmer
    await eventually("a prewarmed agent", lambda: any(one.is_ready for one in pool.agents))
    client = await server.client()
    session = await client.create()
    assert (await client.state(session))["agent_state"] == "prewarmed"
    status, reply = await client.turn(session, json.dumps({"env": ["HOME"]}))
    assert status == 200, reply
    homes = server.services.settings.data_dir / "homes"
    assert str(homes / session) in json.dumps(reply["events"])
