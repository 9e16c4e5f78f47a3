"""Hostile lines on an agent's stdout reach neither other sessions nor the server's stability."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ..conftest import Serve
from ..support.harness import Client, script


def update(session: str, text: str = "forged") -> str:
    content = {"type": "text", "text": text}
    params = {
        "sessionId": session,
        "update": {"sessionUpdate": "agent_message_chunk", "content": content},
    }
    return json.dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})


LINES: dict[str, Callable[[str], str]] = {
    "update of another session": update,
    "request of another session": lambda other: json.dumps(
        {
            "jsonrpc": "2.0",
            "id": "x",
            "method": "session/request_permission",
            "params": {"sessionId": other, "options": [], "toolCall": {"toolCallId": "1"}},
        }
    ),
    "response to a request of nobody": lambda _: '{"jsonrpc":"2.0","id":99999,"result":{}}',
    "response with the id of another request": lambda _: '{"jsonrpc":"2.0","id":0,"result":null}',
    "very deep array": lambda _: "[" * 100_000,
    "very deep object": lambda _: '{"a":' * 50_000 + "1" + "}" * 50_000,
    "deep update": lambda other: update(other)[:-1] + ',"x":' + "[" * 9_000 + "]" * 9_000 + "}",
    "huge number": lambda _: '{"jsonrpc":"2.0","id":' + "9" * 5_000 + ',"result":{}}',
    "huge exponent": lambda _: '{"jsonrpc":"2.0","id":1e999999,"method":"a"}',
    "huge name of a method": lambda _: json.dumps({"jsonrpc": "2.0", "method": "m" * 200_000}),
    "no values of JSON": lambda _: '{"jsonrpc":"2.0","id":NaN,"result":Infinity}',
    "key of the prototype": lambda _: '{"jsonrpc":"2.0","method":"x","__proto__":{"a":1}}',
    "same key twice": lambda _: '{"jsonrpc":"2.0","method":"a","method":"b","id":1,"id":2}',
    "zero bytes": lambda _: '{"jsonrpc":"2.0","method":"a\\u0000"}\0\0\0',
    "unpaired surrogate": lambda other: update(other, "\ud800"),
    "byte order mark": lambda _: "\ufeff{}",
    "separators of lines": lambda _: "\u2028\u2029\x85\x0b\x0c",
    "only a number": lambda _: "7",
    "many empty lines": lambda _: "\n" * 20_000,
    "handover of the launcher": lambda _: '{"clawdforge":{"handover":true}}',
    "escape sequences": lambda _: "\x1b]0;title\x07\x1b[2J\x9b31m",
}


@pytest.mark.parametrize("backend", ["host", pytest.param("cli", marks=pytest.mark.slow)])
async def test_hostile_lines_concern_only_their_own_session(serve: Serve, backend: str) -> None:
    server = await serve(agent_backend=backend)
    client: Client = await server.client("hostile")
    victim = await server.client("victim")
    session, other = await client.create(), await victim.create()
    assert (await victim.turn(other, "hello"))[0] == 200
    before = await victim.events(other)
    for name, line in LINES.items():
        status, reply = await client.turn(session, script({"raw": line(other)}, {"say": "end"}))
        assert status in (200, 502), (name, reply)
        assert await victim.events(other) == before, name
    assert (await client.turn(session, "hello"))[0] == 200
    assert (await victim.turn(other, "hello"))[0] == 200
