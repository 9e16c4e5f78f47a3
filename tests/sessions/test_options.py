"""The options of sessions: accepted, checked, stored, shown without secrets, and changed."""

from __future__ import annotations

from typing import Any

import pytest

from server.mcp_servers import presets

from ..conftest import Serve
from ..support.harness import Client, failure

SECRET = "hunter2-hunter2"
PRESETS = '{"files": {"command": "x"}, "web": {"command": "y"}}'
SERVERS: list[Any] = [
    {
        "name": "files",
        "command": "/bin/mcp-files",
        "args": ["--token", SECRET],
        "env": [{"name": "KEY", "value": SECRET}],
    },
    {
        "name": "web",
        "type": "http",
        "url": f"https://mcp.example/?key={SECRET}",
        "headers": [{"name": "Authorization", "value": SECRET}],
    },
]
OPTIONS: dict[str, Any] = {
    "ask_timeout_secs": 60,
    "mcp_servers": SERVERS,
    "env": {"API_KEY": SECRET, "A": SECRET},
}
SHOWN = {
    "ask_timeout_secs": 60,
    "mcp_servers": [
        {"name": "files", "type": "stdio", "env": ["KEY"]},
        {"name": "web", "type": "http", "headers": ["Authorization"]},
    ],
    "allowed_tools": None,
    "max_turns": None,
    "env": ["A", "API_KEY"],
    "additional_directories": [],
}


def shown(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in SHOWN}


async def test_options_are_shown_without_secrets(client: Client) -> None:
    status, reply = await client.post("/sessions", {"agent": "mock", **OPTIONS})
    assert status == 200
    assert shown(reply) == SHOWN == shown(await client.state(reply["session_id"]))
    assert SECRET not in str(reply)


async def test_session_without_options_shows_defaults(client: Client) -> None:
    state = await client.state(await client.create())
    assert (state["ask_timeout_secs"], state["mcp_servers"], state["env"]) == (300, [], [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ask_timeout_secs", 9),
        ("ask_timeout_secs", 604_801),
        ("env", {"CLAWDFORGE_ADMIN_TOKEN": "x"}),
        ("env", {"LD_PRELOAD": "x"}),
        ("env", {"a b": "x"}),
        ("env", {"A": "nul\0"}),
        ("env", {"A": 1}),
        ("max_turns", 0),
        ("allowed_tools", [""]),
        ("mcp_servers", [{"name": "x"}]),
        ("mcp_servers", [{"name": "x", "type": "http"}]),
        ("mcp_servers", [{"name": "x", "type": "http", "url": "ftp://x"}]),
        ("mcp_servers", [{"name": "x", "type": "http", "url": "http://x", "command": "x"}]),
        ("mcp_servers", [{"name": "x", "type": "other", "url": "http://x"}]),
        ("mcp_servers", [{"name": "x", "command": "x", "env": {"A": SECRET}}]),
        ("mcp_servers", [{"name": "x", "command": "x"}, {"name": "x", "command": "y"}]),
        (
            "mcp_servers",
            [
                {
                    "name": "x",
                    "type": "http",
                    "url": "http://x",
                    "headers": [{"name": "A", "value": f"{SECRET}\r\nB: c"}],
                }
            ],
        ),
        ("mcp_servers", ["unknown"]),
    ],
)
async def test_invalid_option_is_refused_without_its_value(
    client: Client, field: str, value: Any
) -> None:
    reply = await client.post("/sessions", {"agent": "mock", field: value})
    message = failure(reply, 400, "bad_request")
    assert field in message
    assert SECRET not in message


async def test_unknown_preset_is_refused_with_known_presets(serve: Serve) -> None:
    server = await serve(mcp_servers=presets(PRESETS))
    client = await server.client()
    reply = await client.post("/sessions", {"agent": "mock", "mcp_servers": ["other"]})
    message = failure(reply, 400, "bad_request")
    assert "files, web" in message


async def test_options_beyond_their_limits_are_refused(serve: Serve) -> None:
    server = await serve(max_options_bytes=1000, max_mcp_servers=1)
    client = await server.client()
    body = {"agent": "mock", "env": {"A": "x" * 1000}}
    failure(await client.post("/sessions", body), 413, "payload_too_large")
    body = {"agent": "mock", "mcp_servers": SERVERS}
    failure(await client.post("/sessions", body), 400, "bad_request")


async def test_patch_changes_all_fields_or_none(client: Client) -> None:
    session = await client.create()
    path = f"/sessions/{session}"
    change = {"permission": "ask", "ask_timeout_secs": 20, "meta": {"a": 1}}
    status, reply = await client.call("PATCH", path, change)
    assert (status, reply["permission"], reply["ask_timeout_secs"]) == (200, "ask", 20)
    assert reply["meta"] == {"a": 1}
    huge = {"permission": "deny-all", "meta": {"a": "x" * 70_000}}
    failure(await client.call("PATCH", path, huge), 413, "payload_too_large")
    assert (await client.state(session))["permission"] == "ask"
    status, reply = await client.call("PATCH", path, {"ask_timeout_secs": None})
    assert (status, reply["ask_timeout_secs"], reply["permission"]) == (200, 300, "ask")
    failure(await client.call("PATCH", path, {"permission": None}), 400, "bad_request")


async def test_closed_session_keeps_its_permission(client: Client) -> None:
    session = await client.create()
    await client.delete(f"/sessions/{session}")
    path = f"/sessions/{session}"
    failure(await client.call("PATCH", path, {"permission": "ask"}), 410, "session_closed")
    assert (await client.call("PATCH", path, {"meta": {"a": 1}}))[0] == 200
