"""ACP connections on nodes that do not have the session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..support.acp_client import AcpClient, ResponseError, connect
from ..support.harness import Client, script
from ..support.postgres import Postgres
from .nodes import NodeCluster, running_nodes

pytestmark = pytest.mark.slow

SETTINGS = {"SWEEP_INTERVAL_SECS": "0.2"}

LARGE = 300_000
"""Bytes of a message, more than one piece between nodes."""
CANCELLED = r"{\"permission\": {\"outcome\": \"cancelled\"}}"
"""In a message that the mock agent sends only if it reads the outcome before the cancel."""


async def converse(client: Client, session_id: str) -> AcpClient:
    """Use a session in all the ways that an editor does."""
    acp = await connect(client, initialize={"protocolVersion": 1, "clientCapabilities": {}})
    about = {"sessionId": session_id, "cwd": "/", "mcpServers": []}
    await acp.call("session/load", **about)
    prompt = await acp.start_prompt(session_id, script({"permission": True}, {"chunk": LARGE}))
    for _ in range(2):
        await acp.allow()
        assert (await acp.response_to(prompt))["stopReason"] == "end_turn"
        prompt = await acp.start_prompt(session_id, script({"permission": True}))
    await acp.until(method="session/request_permission")
    await acp.notify("session/cancel", sessionId=session_id)
    assert (await acp.response_to(prompt))["stopReason"] == "cancelled"
    prompt = await acp.start_prompt(session_id, script({"say": "working"}, {"hang": True}))
    await acp.until_text("working")
    await acp.notify("$/cancel_request", requestId=prompt)
    assert (await acp.response_to(prompt))["stopReason"] == "cancelled"
    with pytest.raises(ResponseError):
        await acp.call("session/set_mode", sessionId=session_id, modeId="none")
    await acp.call("session/resume", **about)
    await acp.call("session/close", sessionId=session_id)
    with pytest.raises(ResponseError):
        await acp.prompt(session_id, "too late")
    return acp


async def test_messages_are_the_same_on_every_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    seen = []
    for node in (one, two):
        session_id = await one.client.create(permission="ask")
        await one.client.until_live(session_id)
        acp = await converse(node.client, session_id)
        assert cluster.owner_of(session_id) in ("node-1", "")
        frames = [
            frame.replace(session_id, "SESSION") for frame in acp.frames if CANCELLED not in frame
        ]
        seen.append([re.sub(r'call-[0-9a-f]+|"updatedAt":"[^"]*"', "", one) for one in frames])
    assert seen[0] == seen[1]


async def test_one_connection_uses_sessions_of_all_nodes(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    acp = await connect(two.client)
    ids = [await node.client.create(permission="ask") for node in (one, two)]
    for session_id in ids:
        await acp.call("session/resume", sessionId=session_id, cwd="/", mcpServers=[])
    prompts = [await acp.start_prompt(one_id, script({"permission": True})) for one_id in ids]
    assert sorted([(await acp.allow())["id"] for _ in ids]) == [1, 2]
    for prompt in prompts:
        assert (await acp.response_to(prompt))["stopReason"] == "end_turn"
    assert [cluster.owner_of(one_id) for one_id in ids] == ["node-1", "node-2"]
    fork = await acp.call("session/fork", sessionId=ids[0], cwd="/", mcpServers=[])
    assert (await acp.prompt(fork["sessionId"], "in the fork"))["stopReason"] == "end_turn"
    assert cluster.owner_of(fork["sessionId"]) == "node-1"


async def test_connection_closes_with_the_node_of_its_session(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    acp = await connect(two.client)
    await acp.call("session/load", sessionId=session_id, cwd="/", mcpServers=[])
    await acp.start_prompt(session_id, script({"say": "working"}, {"hang": True}))
    await acp.until_text("working")
    await one.server.kill()
    assert await acp.until_closed() == 1012
    await cluster.until_owned(session_id, "node-2", "")
    acp = await connect(two.client)
    await acp.call("session/load", sessionId=session_id, cwd="/", mcpServers=[])
    assert (await acp.prompt(session_id, "and now"))["stopReason"] == "end_turn"


async def test_other_apps_session_looks_missing_on_every_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    await cluster.new_app()
    codes = []
    for node in (one, two):
        acp = await connect(node.client)
        for missing in (session_id, "00000000-0000-4000-8000-000000000000"):
            with pytest.raises(ResponseError) as caught:
                await acp.call("session/load", sessionId=missing, cwd="/", mcpServers=[])
            codes.append((caught.value.code, str(caught.value), caught.value.data))
    assert len({repr(code) for code in codes}) == 1


async def test_new_session_of_a_full_node_begins_on_another_one(
    postgres: Postgres, tmp_path: Path
) -> None:
    async with running_nodes(postgres, tmp_path, 2, MAX_LIVE_AGENTS="2") as cluster:
        one, _ = cluster.nodes
        while cluster.owner_of(await one.client.create()) != "node-2":
            pass
        acp = await connect(one.client)
        session_id = await acp.new_session()
        assert cluster.owner_of(session_id) == "node-2"
        assert (await acp.prompt(session_id, "hello"))["stopReason"] == "end_turn"
