"""The conversations of real agents: forked after a hibernation, and those of subagents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..conftest import Serve
from ..support.anthropic_stand_in import Json, StandIn, Text, ToolUse
from .test_real_agents_ask import AGENTS, Real, api, hibernate, machine

pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]
__all__ = ["api", "machine"]

FORKING = ("claude-0.76", "claude-newest", "codex", "opencode")
REFUSED = {
    ("claude-0.76", True),  # it forks in the folder of the source only
    ("claude-0.76", False),
    ("codex", False),  # it stores the path of its home with each conversation
}
"""The forks that the agents refuse though they offer them, and whether the source is live."""


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "hibernated"])
@pytest.mark.parametrize("real", [AGENTS[name] for name in FORKING], ids=FORKING)
async def test_fork_at_the_head_has_the_conversation(
    serve: Serve, machine: Path, real: Real, api: StandIn, is_live: bool
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    api.always(Text("Understood."))
    session = await client.create(real.name)
    status, reply = await client.turn(session, "My name is Ada.")
    assert status == 200, reply
    if not is_live:
        await hibernate(server, session)
    status, fork = await client.post(f"/sessions/{session}/fork", {})
    assert status == 200, fork
    status, reply = await client.turn(fork["session_id"], "Who am I?")
    assert status == 200, reply
    starts = [e for e in await client.events(fork["session_id"]) if e["type"] == "turn_start"]
    name = next(name for name, one in AGENTS.items() if one is real)
    context = "told" if (name, is_live) in REFUSED else "kept"
    assert [start["context"] for start in starts] == ["new", context]
    assert json.dumps(api.requests[-1]).count("My name is Ada.") == 1
    status, reply = await client.turn(session, "Go on.")
    assert status == 200, reply
    assert "Who am I?" not in json.dumps(api.requests[-1])


def of_subagent(body: Json) -> Text | ToolUse:
    """The replies of the model: to the agent, then to its subagent, then to the agent again."""
    said = json.dumps(body["messages"])
    is_done = "tool_result" in said
    if "Look around." in json.dumps(body["messages"][0]):
        look = ToolUse("Bash", {"command": "echo garden", "description": "Look"})
        return Text("I see a garden.") if is_done else look
    if is_done:
        return Text("A garden, it says.")
    prompt = {"description": "Look", "prompt": "Look around.", "subagent_type": "general-purpose"}
    return ToolUse("Agent", prompt)


@pytest.mark.parametrize("capabilities", [[], ["plan", "subagents"]], ids=["in-session", "own"])
@pytest.mark.parametrize("real", [AGENTS["claude-newest"]], ids=["claude"])
async def test_updates_of_a_subagent_are_marked(
    serve: Serve, machine: Path, real: Real, api: StandIn, capabilities: list[str]
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    session = await client.create(real.name, mode="default", client_capabilities=capabilities)
    api.always(of_subagent)
    status, reply = await client.turn(session, "Ask someone to look.")
    assert status == 200, reply
    events = [entry for entry in await client.events(session) if entry["type"] == "event"]
    own = [entry for entry in events if "subagent" not in entry]
    assert "I see a garden." not in texts(own)
    assert "A garden, it says." in texts(own)
    marked = [entry for entry in events if "subagent" in entry]
    key = "session_id" if capabilities else "tool_call_id"
    assert marked
    assert all(key in entry["subagent"] for entry in marked)


def texts(events: list[Json]) -> str:
    found = ""
    for entry in events:
        update = entry["event"].get("params", {}).get("update", {})
        if update.get("sessionUpdate") == "agent_message_chunk":
            found += update["content"].get("text", "")
    return found
