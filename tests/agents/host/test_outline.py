"""Outlines of large prompts for acpx; the agent receives the whole prompt."""

from __future__ import annotations

import json

from server.agents.host.acpx_requests import with_blocks, with_preface
from server.agents.host.outline import KEPT_CHARS, LARGE_BYTES, outline

from ...support.harness import Client, Json

PICTURE = {"type": "image", "mimeType": "image/png", "data": "QUJD" * 40_000}


def blocks_of(text: str) -> list[Json]:
    return [PICTURE, {"type": "text", "text": text}]


def test_small_prompt_has_no_outline() -> None:
    blocks = json.dumps([{"type": "text", "text": "x" * 1000}]).encode()
    assert outline(blocks) is blocks


def blocks_of_every_kind(size: int) -> list[Json]:
    """A command, a picture and a resource; the last two contain the given number of characters."""
    resource = {"uri": "file:///a", "text": "é" * size}
    picture = {"type": "image", "mimeType": "image/png", "data": "A" * size}
    text = {"type": "text", "text": "/command with words"}
    return [text, picture, {"type": "resource", "resource": resource}]


def test_only_long_strings_of_a_large_prompt_are_truncated() -> None:
    cut = json.loads(outline(json.dumps(blocks_of_every_kind(LARGE_BYTES)).encode()))
    assert cut == blocks_of_every_kind(KEPT_CHARS)


def test_unpaired_surrogate_is_kept() -> None:
    blocks = rb'[{"type":"text","text":"\ud83d%b"}]' % (b"x" * LARGE_BYTES)
    assert json.loads(outline(blocks))[0]["text"] == "\ud83d" + "x" * (KEPT_CHARS - 1)


def test_only_the_blocks_of_a_prompt_are_replaced() -> None:
    message: Json = {"jsonrpc": "2.0", "method": "session/prompt", "id": 7}
    each: list[Json] = [{"sessionId": "s", "prompt": ["cut"], "_meta": {"a": 1}}, {"prompt": []}]
    for params in each:
        line = with_blocks({**message, "params": params}, with_preface(b'[{"n":1}]', "first"))
        whole = [{"type": "text", "text": "first"}, {"n": 1}]
        assert json.loads(line) == {**message, "params": {**params, "prompt": whole}}


async def test_agent_gets_a_large_prompt_whole(client: Client) -> None:
    session = await client.create()
    text = json.dumps({"steps": [{"echo": True}, {"say": "long" * 40_000}]})
    sent = blocks_of(text)
    status, reply = await client.turn(session, sent)
    assert status == 200, reply
    chunks = [event["params"]["update"]["content"]["text"] for event in reply["events"][:-1]]
    assert [json.loads(chunks[0]), chunks[1]] == [sent, "long" * 40_000]


async def test_agent_gets_a_large_prompt_whole_after_its_system_prompt(client: Client) -> None:
    session = await client.create(system="be brief")  # the mock takes none: it comes first
    status, reply = await client.turn(session, blocks_of(json.dumps({"echo": True})))
    assert status == 200, reply
    received = json.loads(reply["events"][0]["params"]["update"]["content"]["text"])
    assert "be brief" in received[0]["text"]
    assert received[1:] == blocks_of(json.dumps({"echo": True}))
