"""The mock agents, and their scripts; see ``tests/stand_ins/mock_agent/``."""

from __future__ import annotations

import json
import sys
from typing import Any

from server.agent_commands import AgentCommand

from .client import Client, Json, Socket, texts_of
from .processes import ROOT

MOCK = ROOT / "tests" / "stand_ins" / "start" / "mock_agent.py"


def mock_agent(*flags: str, **environ: str) -> AgentCommand:
    """The scriptable mock agent, started with *flags*."""
    return AgentCommand((sys.executable, "-I", "-S", str(MOCK), *flags), environ)


MOCKS: dict[str, AgentCommand] = {
    "mock": mock_agent(),
    "mock-steers": mock_agent("--steering"),
    "mock-resume": mock_agent("--resume"),
    "mock-fork": mock_agent("--fork"),
    "mock-fail-fork": mock_agent("--fork", "--fail-fork"),
    "mock-modes": mock_agent("--modes"),
    "mock-no-load": mock_agent("--no-load"),
    "mock-fail-load": mock_agent("--fail-load", "--commands"),
    "mock-fail-new": mock_agent("--fail-new"),
    "mock-dies": mock_agent("--die-at-start"),
    "mock-silent": mock_agent("--silent"),
    "mock-stubborn": mock_agent("--ignore-eof", "--ignore-sigterm"),
    "missing": AgentCommand(("no-such-program-anywhere", "--acp")),
}


def script(*steps: Json) -> str:
    """A prompt that the mock agent executes; see the table of steps in its docstring."""
    return json.dumps({"steps": list(steps)})


async def run_step(client: Client, session: str, step: Json) -> Any:
    """The mock's JSON output for a step such as ``{"report": true}``."""
    status, reply = await client.turn(session, script(step))
    assert status == 200, reply
    return json.loads(texts_of(reply["events"]))


BUSY = script({"say": "on it"}, {"wait_for": "cancel"})
"""The prompt of a turn that runs until it is cancelled."""


async def busy_socket(client: Client, session: str) -> Socket:
    """A socket of a session whose turn has begun, and runs until it is cancelled."""
    socket = await client.connect(session)
    await socket.send("prompt", prompt=BUSY)
    await socket.until_text("on it")
    return socket
