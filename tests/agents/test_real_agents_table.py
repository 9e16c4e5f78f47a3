"""The abilities of each real agent, as the table of ``docs/howto/agents.md`` says.

The tests find out by use. If the table is wrong, they print its line; with
``CLAWDFORGE_TEST_WRITE_DOCS=1`` they write it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import struct
import zlib
from pathlib import Path

import pytest

from server.agents import reported_settings

from ..conftest import Serve
from ..support.anthropic_stand_in import Hang, Json, StandIn, Text, ToolUse
from ..support.harness import ROOT, Client, LocalServer
from .test_real_agents_ask import AGENTS, Real, api, machine, real
from .test_real_agents_mcp import SECRET, STDIO

pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]
__all__ = ["api", "machine", "real"]

PAGE = ROOT / "docs" / "howto" / "agents.md"


def png() -> bytes:
    """A red square. Some agents decode an image before they send it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return b"%b%b%b" % (
            struct.pack(">I", len(data)),
            kind + data,
            struct.pack(">I", zlib.crc32(kind + data)),
        )

    head = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff\0\0" * 16) * 16)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PIXELS = base64.b64encode(png()).decode()
MCP_SECS = 60
SYSTEM = "Speak like the pirate of 1718."


async def turn(client: Client, session: str, prompt: object) -> Json:
    status, reply = await client.turn(session, prompt)
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    return reply


async def accepts_image(client: Client, session: str, api: StandIn) -> bool:
    """Whether the agent passes an image of a prompt to the model, as it is or in another form."""
    image = {"type": "image", "mimeType": "image/png", "data": PIXELS}
    before = len(api.requests)
    status, _ = await client.turn(session, [{"type": "text", "text": "Look."}, image])
    requests = json.dumps(api.requests[before:])
    kinds = ("base64", "image_url", "inlineData", "input_image")
    return status == 200 and (PIXELS in requests or any(f'"{kind}"' in requests for kind in kinds))


async def cancels(client: Client, session: str, api: StandIn) -> bool:
    """Cancel a turn whose model hangs. Return whether the agent can be steered meanwhile.

    Another test steers those that can; a prompt for any other must wait in the queue.
    """
    api.plan(Hang(None))
    api.asked.clear()
    socket = await client.connect(session)
    hanging = asyncio.create_task(client.turn(session, "Hang."))
    await api.asked.wait()
    can_steer = (await client.state(session))["steering"] is True
    if not can_steer:
        await socket.send("prompt", prompt="To the left.", steer=True)
        accepted = await socket.until("accepted")
        assert (accepted["steered"], accepted["queued"]) == (False, True)
        await socket.send("cancel", turn_index=accepted["turn_index"])
        assert (await socket.until("turn_end"))["withdrawn"] is True
        assert "To the left." not in json.dumps(api.requests)
    assert (await client.post(f"/sessions/{session}/cancel"))[0] == 200
    status, reply = await hanging
    assert (status, reply["stop_reason"]) == (200, "cancelled"), reply
    return can_steer


def answer_to(request: Json) -> Json:
    """The first choice in each field of a question."""
    content = {}
    for name, field in request["requestedSchema"]["properties"].items():
        if choices := field.get("oneOf"):
            content[name] = choices[0]["const"]
        elif choices := field.get("enum"):
            content[name] = choices[0]
    return {"action": "accept", "content": content}


async def asks_user(client: Client, session: str, api: StandIn, real: Real) -> str:
    """Return the way in which the agent asks its user: ``form``, ``permission`` or ``no``."""
    has_called = asyncio.Event()

    def answer(body: Json) -> Text | ToolUse:
        is_new = not has_called.is_set() and "Ask me." in json.dumps(body)
        if not is_new:
            return Text("Done.")
        has_called.set()
        return real.question

    api.always(answer)
    before = len(api.requests)
    asking = asyncio.create_task(client.turn(session, "Ask me."))
    cell = "no"
    while not asking.done():
        await asyncio.wait({asking}, timeout=0.05)
        state = await client.state(session)
        for pending in state["pending_elicitations"]:
            cell, url = "form", f"/sessions/{session}/elicitations/{pending['request_id']}"
            await client.post(url, answer_to(pending["request"]))
        for pending in state["pending_permissions"]:
            cell, url = "permission", f"/sessions/{session}/permissions/{pending['request_id']}"
            (allow, *_) = pending["request"]["options"]
            await client.post(url, {"option_id": allow["optionId"]})
    status, reply = await asking
    api.always(Text("Done."))
    assert status == 200, reply
    if cell == "form":  # the model gets the answer
        assert json.dumps(api.requests[before:]).count("SQLite") > 1
    if cell == "no":  # the model gets the refusal of the agent
        assert len(api.requests) > before + 1
        assert real.question.name in json.dumps(api.requests[-1])
    return cell


async def change_settings(client: Client, session: str, real: Real) -> bool:
    """Change the mode, and the model if the agent offers any. Return whether it does."""
    socket = await client.connect(session)
    await socket.send("set_mode", mode=real.other_mode)
    await socket.send("set_model", model=real.model or "another")
    if real.model is None:
        assert (await socket.until("error"))["code"] in ("bad_request", "not_supported")
    await turn(client, session, "Go on.")
    await socket.close()
    return real.model is not None


async def check_settings(
    server: LocalServer, client: Client, session: str, api: StandIn, real: Real
) -> None:
    """Check that the agent says it is in the other mode and model, and uses that model."""
    await turn(client, session, "Go on.")
    state = await client.state(session)
    reported = server.services.sessions.cached[session].agent.reported
    assert state["mode"] == reported_settings.current_value(reported, "mode") == real.other_mode
    if real.model is not None:
        assert real.requested in api.requests[-1]["model"]
        assert state["model"] == real.model


async def calls_deferred_tool(client: Client, session: str, api: StandIn, real: Real) -> bool:
    """Whether the agent calls the tool of a session's MCP server that it does not define."""
    assert real.calls is not None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MCP_SECS
    while True:  # some agents connect to the server after their first turn
        api.plan(*real.calls("mcp__local__weigh", {"text": "feather"}))
        before = len(api.requests)
        reply = await turn(client, session, "Weigh a feather.")
        assert SECRET not in str(reply)
        if "stdio weighed 7" in json.dumps(api.requests[before:]):
            return True
        if loop.time() > deadline:
            return False


async def name_of_tool(client: Client, session: str, api: StandIn) -> str | None:
    """The agent's name of the tool of a session's MCP server; None if it does not offer it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MCP_SECS
    while True:  # some agents connect to the server after their first turn
        await turn(client, session, "Hello.")
        said = json.dumps(api.requests[-1]).replace("\\n", " ")
        if (name := re.search(r"\w*_weigh\b", said)) is not None:
            return name[0]
        if loop.time() > deadline:
            return None


async def calls_mcp_tool(client: Client, session: str, api: StandIn, real: Real) -> bool:
    """Whether the agent offers the tool of a session's MCP server to the model, and calls it."""
    if real.calls is not None:
        return await calls_deferred_tool(client, session, api, real)
    name = await name_of_tool(client, session, api)
    if name is None:
        return False
    if "ToolSearch" in json.dumps(api.requests[-1]):  # which loads the definitions of tools
        api.plan(ToolUse("ToolSearch", {"query": f"select:{name}"}))
    api.plan(ToolUse(name, {"text": "feather"}))
    reply = await turn(client, session, "Weigh a feather.")
    assert SECRET not in str(reply)
    return "stdio weighed 7" in json.dumps(api.requests[-1])


async def test_table_shows_what_the_agent_can_do(
    serve: Serve, machine: Path, real: Real, api: StandIn
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    session = await client.create(real.name, permission="ask", system=SYSTEM)
    api.always(Text("Done."))
    await turn(client, session, "Hello.")
    has_system = SYSTEM in json.dumps(api.requests[-1])
    mode = (await client.state(session))["mode"]
    has_image = await accepts_image(client, session, api)
    can_steer = await cancels(client, session, api)
    await turn(client, session, "Go on.")
    can_fork = server.services.sessions.cached[session].agent.reported.capabilities
    forks = (can_fork.get("sessionCapabilities") or {}).get("fork") is not None

    options = {} if real.asks_with is None else {"config_options": real.asks_with}
    other_asking = await client.create(real.name, permission="ask", elicitation="ask", **options)
    other = await client.create(real.name, permission="approve-all", mode=mode, mcp_servers=[STDIO])
    has_mcp = await calls_mcp_tool(client, other, api, real)
    asking = await asks_user(client, other_asking, api, real)

    # Another test sets the model.
    abilities = (has_image, has_system, has_mcp, can_steer, forks, real.model is not None)
    cells = ["yes" if able else "no" for able in abilities]
    cells.insert(3, asking)
    name = next(name for name, one in AGENTS.items() if one is real)
    check_row(name, f"| {name} | {' | '.join(cells)} | {f'`{mode}`' if mode else 'no mode'} |")


async def test_mode_and_model_are_kept_over_a_restart(
    serve: Serve, machine: Path, real: Real, api: StandIn
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    session = await client.create(real.name, permission="ask")
    api.always(Text("Done."))
    await turn(client, session, "Hello.")
    await change_settings(client, session, real)
    await check_settings(server, client, session, api, real)
    await server.stop()
    server = await serve(default_agent=None)
    client = Client(server.url, client.token, client.http)
    await check_settings(server, client, session, api, real)


def check_row(name: str, row: str) -> None:
    """Check the row of an agent in the docs, or write it."""
    page = PAGE.read_text("utf-8")
    found = re.search(rf"^\| {re.escape(name)} \| (?:yes|no|\?) \|.*$", page, re.MULTILINE)
    assert found is not None, f"add this line to the table: {row}"
    if os.environ.get("CLAWDFORGE_TEST_WRITE_DOCS") == "1":
        PAGE.write_text(page.replace(found[0], row), "utf-8")
    else:
        assert found[0] == row
