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
from pathlib import Path

import pytest

from ..conftest import Serve
from ..support.anthropic_stand_in import Hang, Json, StandIn, Text, ToolUse
from ..support.harness import ROOT, Client
from .test_real_agents_ask import AGENTS, Real, api, machine, real, until_asked
from .test_real_agents_mcp import SECRET, STDIO

pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]
__all__ = ["api", "machine", "real"]

PAGE = ROOT / "docs" / "howto" / "agents.md"
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
        "08d763f8cfc0000000030001d8e5b5cf0000000049454e44ae426082"
    )
).decode()
MCP_SECS = 15
SYSTEM = "Speak like the pirate of 1718."


async def turn(client: Client, session: str, prompt: object) -> Json:
    status, reply = await client.turn(session, prompt)
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    return reply


async def accepts_image(client: Client, session: str, api: StandIn) -> bool:
    """Whether the agent passes an image of a prompt to the model, as it is or in another form."""
    image = {"type": "image", "mimeType": "image/png", "data": PIXEL}
    status, _ = await client.turn(session, [{"type": "text", "text": "Look."}, image])
    request = json.dumps(api.requests[-1])
    kinds = ("base64", "image_url", "inlineData", "input_image")
    return status == 200 and (PIXEL in request or any(f'"{kind}"' in request for kind in kinds))


async def rejects_tool(client: Client, session: str, api: StandIn, real: Real) -> None:
    """Check that a tool which the user rejects does nothing, and that the turn ends."""
    path = Path((await client.state(session))["cwd"]) / "rejected"
    api.always(Text("Done."))
    api.plan(real.writes(path))
    asking = asyncio.create_task(client.turn(session, "Write it."))
    asked = await until_asked(client, session, asking)
    options = {option["kind"]: option["optionId"] for option in asked[0]["request"]["options"]}
    url = f"/sessions/{session}/permissions/{asked[0]['request_id']}"
    assert (await client.post(url, {"option_id": options["reject_once"]}))[0] == 200
    status, reply = await asking
    assert status == 200, reply
    assert not path.exists()


async def cancels(client: Client, session: str, api: StandIn) -> bool:
    """Cancel a turn whose model hangs. Return whether the agent could be steered meanwhile."""
    api.plan(Hang(None))
    api.asked.clear()
    hanging = asyncio.create_task(client.turn(session, "Hang."))
    await api.asked.wait()
    can_steer = (await client.state(session))["steering"] is True
    assert (await client.post(f"/sessions/{session}/cancel"))[0] == 200
    status, reply = await hanging
    assert (status, reply["stop_reason"]) == (200, "cancelled"), reply
    return can_steer


async def calls_mcp_tool(client: Client, session: str, api: StandIn) -> bool:
    """Whether the agent offers the tool of a session's MCP server to the model, and calls it."""

    loop = asyncio.get_running_loop()
    deadline, name = loop.time() + MCP_SECS, None
    while name is None:  # some agents connect to the server after their first turn
        await turn(client, session, "Hello.")
        said = json.dumps(api.requests[-1]).replace("\\n", " ")
        name = re.search(r"\w*_weigh\b", said)
        if name is None and loop.time() > deadline:
            return False
    if "ToolSearch" in json.dumps(api.requests[-1]):  # which loads the definitions of tools
        api.plan(ToolUse("ToolSearch", {"query": f"select:{name[0]}"}))
    api.plan(ToolUse(name[0], {"text": "feather"}))
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
    await rejects_tool(client, session, api, real)
    has_image = await accepts_image(client, session, api)
    can_steer = await cancels(client, session, api)
    await turn(client, session, "Go on.")
    can_fork = server.services.sessions.cached[session].agent.reported.capabilities
    forks = (can_fork.get("sessionCapabilities") or {}).get("fork") is not None

    other = await client.create(real.name, permission="approve-all", mode=mode, mcp_servers=[STDIO])
    has_mcp = await calls_mcp_tool(client, other, api)

    # The mode is kept over a restart.
    await server.stop()
    server = await serve(default_agent=None)
    client = Client(server.url, client.token, (await server.client("other")).http)
    await turn(client, session, "Go on.")
    assert (await client.state(session))["mode"] == mode

    abilities = (has_image, has_system, has_mcp, can_steer, forks)
    cells = ["yes" if able else "no" for able in abilities]
    name = next(name for name, one in AGENTS.items() if one is real)
    check_row(name, f"| {name} | {' | '.join(cells)} | {f'`{mode}`' if mode else 'no mode'} |")


def check_row(name: str, row: str) -> None:
    """Check the row of an agent in the docs, or write it."""
    page = PAGE.read_text("utf-8")
    found = re.search(rf"^\| {re.escape(name)} \| (?:yes|no|\?) \|.*$", page, re.MULTILINE)
    assert found is not None, f"add this line to the table: {row}"
    if os.environ.get("CLAWDFORGE_TEST_WRITE_DOCS") == "1":
        PAGE.write_text(page.replace(found[0], row), "utf-8")
    else:
        assert found[0] == row
