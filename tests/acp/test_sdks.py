"""The official SDKs as unmodified clients of ``/acp``, and the programs in the docs."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from server.agents.catalog import find_node

from ..support.acp_client import acp_url, connect, validate
from ..support.acp_sdk import SdkClient, connect_sdk, script_blocks, text_block
from ..support.harness import ROOT, Client, run_program, script

PAGE = (ROOT / "docs" / "reference" / "acp.md").read_text("utf-8")
NODE = find_node()
ADDRESS = "ws://127.0.0.1:8800/acp"


def snippet(marker: str) -> str:
    """The fenced code after the comment ``<!-- marker -->``."""
    found = re.findall(
        rf"^<!-- {re.escape(marker)} -->\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1, f"the page has {len(found)} pieces named {marker!r}"
    return str(found[0])


async def output_of(*argv: str, **variables: str) -> str:
    """The output of a program that must succeed."""
    status, out, err = await run_program(*argv, **variables)
    assert status == 0, err
    return out


# Python.


async def test_python_sdk_completes_its_conversations(client: Client) -> None:
    from acp import RequestError  # slow: see `acp_sdk.py`

    me = SdkClient()
    agent, recorder = await connect_sdk(client, me)
    made = [await agent.new_session(cwd="/", mcp_servers=[]) for _ in range(2)]
    one, two = (session.session_id for session in made)
    answers = await asyncio.gather(
        agent.prompt(session_id=one, prompt=[text_block("first")]),
        agent.prompt(session_id=two, prompt=[text_block("second")]),
    )
    assert [answer.stop_reason for answer in answers] == ["end_turn", "end_turn"]
    assert me.texts == {one: "echo: first", two: "echo: second"}

    tool = {"sessionUpdate": "tool_call", "toolCallId": "t", "title": "edit", "kind": "edit"}
    asking = script_blocks({"update": tool}, {"permission": {"title": "edit"}})
    assert (await agent.prompt(session_id=one, prompt=asking)).stop_reason == "end_turn"
    assert me.asked == [(one, "edit")]
    assert [one.title for one in me.tools] == ["edit"]
    assert '"optionId": "allow_once"' in me.texts[one]

    hanging = asyncio.create_task(
        agent.prompt(session_id=two, prompt=script_blocks({"say": "begun"}, {"hang": True}))
    )
    await me.until_text(two, "begun")
    await agent.cancel(session_id=two)
    assert (await hanging).stop_reason == "cancelled"

    # Far more than its socket takes at once: it gets all of the text, and keeps its connection.
    assert (
        await agent.prompt(session_id=two, prompt=script_blocks({"chunk": 3_000_000}))
    ).stop_reason
    assert len(me.texts[two]) > 3_000_000
    assert 500_000 < max(recorder.sizes) <= 1 << 20

    listed = await agent.list_sessions()
    assert [session.session_id for session in listed.sessions] == [two, one]
    await agent.close_session(session_id=two)
    for failing, code in (
        (agent.prompt(session_id=two, prompt=[text_block("closed")]), -32002),
        (agent.load_session(cwd="/", session_id="none", mcp_servers=[]), -32002),
        (agent.new_session(cwd="relative", mcp_servers=[]), -32602),
        (agent.ext_method("no/such", {}), -32601),
    ):
        with pytest.raises(RequestError) as failure:
            await failing
        assert failure.value.code == code
    await agent.close()

    again = SdkClient()
    agent, _ = await connect_sdk(client, again)
    await agent.load_session(cwd="/", session_id=one, mcp_servers=[])
    assert again.texts[one] == me.texts[one]
    assert again.users[one].startswith("first")
    await agent.close_session(session_id=one)
    await agent.close()


async def test_sdk_bot_and_subscriber_share_a_conversation(client: Client) -> None:
    me = SdkClient()
    agent, _ = await connect_sdk(client, me)
    session = (await agent.new_session(cwd="/", mcp_servers=[])).session_id
    bot = await client.connect(session)
    subscriber = await connect(client)
    await subscriber.call("session/load", sessionId=session, cwd="/", mcpServers=[])

    await agent.prompt(session_id=session, prompt=[text_block("from the SDK")])
    await bot.turn("from the bot")
    assert await subscriber.prompt(session, "from the subscriber") == {"stopReason": "end_turn"}
    await me.until_text(session, "echo: from the subscriber")
    await bot.until_text("echo: from the subscriber")
    said = "echo: from the SDKecho: from the botecho: from the subscriber"
    assert [me.texts[session], bot.text(), subscriber.text()] == [said] * 3
    assert me.users[session] == "from the botfrom the subscriber"
    assert subscriber.text(kind="user_message_chunk") == "from the SDKfrom the bot"
    prompts = [entry["prompt"] for entry in bot.entries if entry["type"] == "turn_start"]
    assert [prompt[0]["text"] for prompt in prompts] == [
        "from the SDK",
        "from the bot",
        "from the subscriber",
    ]

    # The bot and the SDK's client get the same request; the first answer counts.
    end = await bot.turn(script({"permission": {"title": "together"}}))
    assert end["stop_reason"] == "end_turn"
    assert me.asked == [(session, "together")]
    await client.delete(f"/sessions/{session}")
    await agent.close()


# TypeScript.


async def test_typescript_sdk_completes_its_conversations(client: Client) -> None:
    out = await output_of(
        NODE,
        str(ROOT / "tests" / "js" / "acp_client.mjs"),
        URL=acp_url(client),
        TOKEN=str(client.token),
    )
    seen = json.loads(out)
    one, two = seen["sessions"]
    assert seen["initialized"]["protocolVersion"] == 1
    assert seen["stops"] == ["end_turn", "end_turn"]
    assert (seen["permitted"], seen["asked"]) == ({"stopReason": "end_turn"}, [one])
    assert seen["cancelled"] == {"stopReason": "cancelled"}
    assert set(seen["listed"]) == {one, two}
    assert seen["errors"] == [-32002, -32602, -32601]
    assert seen["aborted"] in ({"stopReason": "cancelled"}, -32800)
    assert seen["replayed"]["before"] == seen["replayed"]["after"]
    assert seen["replayed"]["after"].startswith("one")
    assert '"say": "one"' in seen["user"] or '"say":"one"' in seen["user"]
    for frame in map(json.loads, seen["frames"]):
        validate(frame, None)
    await client.delete(f"/sessions/{one}")


# The page.


@pytest.mark.parametrize("language", ["Python", "TypeScript"])
async def test_acp_clients_of_the_docs_run(client: Client, tmp_path: Path, language: str) -> None:
    source = snippet(f"the {language} client")
    assert source.count(ADDRESS) == 1
    program, name = (sys.executable, "me.py") if language == "Python" else (NODE, "me.mjs")
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")  # as npm would have put it
    (tmp_path / name).write_text(source.replace(ADDRESS, acp_url(client)), "utf-8")
    out = await output_of(program, str(tmp_path / name), TOKEN=str(client.token))
    assert out.split("\n") == ["echo: help", "end_turn", ""]


async def test_docs_install_the_tested_version() -> None:
    locked = json.loads((ROOT / "package-lock.json").read_text("utf-8"))["packages"]
    npm = dict(re.findall(r"(\S+)@(\S+)", snippet("install the TypeScript SDK")))
    for name, version in npm.items():
        assert f"{locked[f'node_modules/{name}']['version']}.".startswith(f"{version}.")
    (version,) = re.findall(r"==([\d.]+)", snippet("install the Python SDK"))
    pinned = (ROOT / "requirements-dev.txt").read_text("utf-8")
    assert f"\nagent-client-protocol=={version}\n" in pinned
