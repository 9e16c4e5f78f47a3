"""Sessions over REST: create, read, prompt, cancel, close, isolation of apps, refusals."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from multidict import CIMultiDict

from ..conftest import Serve, Spawn
from ..support.harness import (
    MOCKS,
    ROOT,
    Client,
    Json,
    LocalServer,
    eventually,
    failure,
    hold_commits,
    mock_agent,
    new_client,
    script,
    texts_of,
)

NOBODY = "00000000-0000-4000-8000-000000000000"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def run_held(client: Client, session: str, *steps: Json, **body: Any) -> tuple[int, Json]:
    """A turn that ends when :func:`release` is called for its session."""
    return await client.turn(session, script({"gate": "go"}, *steps), **body)


async def release(client: Client, session: str) -> None:
    (Path((await client.state(session))["cwd"]) / "go").touch()


async def wait_running(client: Client, session: str) -> None:
    async def is_running() -> bool:
        return bool((await client.state(session))["state"] == "running")

    await eventually("the turn to run", is_running)


async def wait_head(client: Client, session: str, kind: str) -> Json:
    """Wait for a log entry of that type."""

    async def found() -> Json | None:
        entries = await client.events(session)
        return next((entry for entry in entries if entry["type"] == kind), None)

    entry: Json = await eventually(f"{kind} on the log", found)
    return entry


async def post_large(client: Client, path: str, body: Json) -> tuple[int, Json]:
    """A body of more than 1 MiB, which aiohttp wants as a file."""
    return await client.call("POST", path, data=io.BytesIO(json.dumps(body).encode()))


# Creating.


async def test_create_needs_bearer_token(server: LocalServer) -> None:
    anonymous = server.anonymous()
    failure(await anonymous.post("/sessions", {"agent": "mock"}), 401, "unauthorized")
    assert server.services.sessions.quotas.open_sessions == 0


async def test_create_returns_session(client: Client) -> None:
    status, reply = await client.post("/sessions", {"agent": "mock"})
    assert status == 200
    assert reply["ok"] is True
    assert len(reply["session_id"]) >= 16
    assert reply["agent"] == "mock"
    assert reply["model"] is None
    assert isinstance(reply["created_at"], int)


async def test_create_without_body_uses_default_agent(client: Client) -> None:
    status, reply = await client.call("POST", "/sessions")
    assert (status, reply["agent"]) == (200, "mock")


async def test_new_session_is_idle_without_turns(client: Client) -> None:
    session = await client.create()
    state = await client.state(session)
    assert state["session_id"] == session
    assert state["state"] == "idle"
    assert state["permission"] == "approve-all"
    assert state["turn_count"] == 0
    assert state["pending_permissions"] == []
    assert {state["last_turn_at"], state["closed_at"], state["close_reason"]} == {None}


async def test_create_does_not_wait_for_agent(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create("mock-silent")  # its agent never answers
    assert (await client.state(session))["state"] == "idle"


async def test_session_is_listed_only_after_creation(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stored, go_on = hold_commits(server, patch)
        creating = asyncio.create_task(client.create())
        await stored.wait()  # the database has it, and the server does not know yet
        _, beside = await client.get("/sessions")
        go_on.set()
        session = await creating
    assert beside["sessions"] == []
    assert (await client.turn(session, "hello"))[0] == 200
    _, behind = await client.get("/sessions")
    assert [one["session_id"] for one in behind["sessions"]] == [session]


async def test_meta_is_stored_unchanged(client: Client) -> None:
    meta = {"user": "Zoë", "nested": {"list": [1, 2.5, None, True]}, "": "empty"}
    status, reply = await client.post("/sessions", {"agent": "mock", "meta": meta})
    assert (status, reply["meta"]) == (200, meta)
    assert (await client.state(reply["session_id"]))["meta"] == meta


async def test_patch_merges_meta_and_null_removes_key(client: Client) -> None:
    session = await client.create(meta={"title": "old", "pinned": True})
    path = f"/sessions/{session}"
    status, reply = await client.call("PATCH", path, {"meta": {"title": "new", "pinned": None}})
    assert (status, reply["meta"]) == (200, {"title": "new"})
    assert (await client.state(session))["meta"] == {"title": "new"}
    failure(await client.call("PATCH", path, {}), 400, "bad_request")


async def test_concurrent_meta_changes_are_all_kept(client: Client) -> None:
    session = await client.create()
    path = f"/sessions/{session}"
    changes = [client.call("PATCH", path, {"meta": {name: 1}}) for name in "abcdef"]
    assert {status for status, _ in await asyncio.gather(*changes)} == {200}
    assert (await client.state(session))["meta"] == dict.fromkeys("abcdef", 1)


async def test_unknown_agent_is_refused_with_known_agents(client: Client) -> None:
    message = failure(await client.post("/sessions", {"agent": "nope"}), 400, "bad_request")
    _, agents = await client.get("/agents")
    for agent in agents["agents"]:
        assert agent["name"] in message


async def test_missing_agent_is_refused_with_its_name(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is installed there
    client = await (await serve()).client()
    answer = await client.post("/sessions", {"agent": "missing"})
    assert "no-such-program-anywhere" in failure(answer, 502, "agent_unavailable")
    answer = await client.post("/sessions", {"agent": "gemini"})
    assert "npm install -g @google/gemini-cli" in failure(answer, 502, "agent_unavailable")
    answer = await client.post("/sessions", {"agent": "cursor"})
    assert "put the command 'cursor-agent'" in failure(answer, 502, "agent_unavailable")
    answer = await client.post("/sessions", {"agent": "fast-agent"})
    assert "CLAWDFORGE_AGENTS" in failure(answer, 502, "agent_unavailable")
    answer = await client.post("/sessions", {"agent": "codex"})
    assert "npm install -g @agentclientprotocol/codex-acp@2" in failure(
        answer, 502, "agent_unavailable"
    )


async def test_agent_list_reports_installation(client: Client) -> None:
    status, reply = await client.get("/agents")
    assert status == 200
    agents = {agent["name"]: agent for agent in reply["agents"]}
    for agent in (agents["mock"], agents["demo"]):
        agent.pop("auth_methods", None)  # known once the agent was started
    assert agents["mock"] == {"name": "mock", "installed": True, "default": True}
    assert agents["demo"] == {"name": "demo", "installed": True, "default": False}
    assert agents["missing"]["installed"] is False
    assert agents["missing"]["install"]
    # The table in the docs has all of acpx's, with what installs them.
    page = (ROOT / "docs" / "howto" / "agents.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([a-z-]+)` \| (.+?) \|", page, re.MULTILINE))
    assert told.keys() - {"demo"} == agents.keys() - MOCKS.keys() - {"demo"}
    for name, install in told.items():
        if install.startswith("`npm") and not agents[name]["installed"]:
            assert agents[name]["install"].partition(" and ")[0] in install


# The working directory.


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


async def test_sessions_get_new_folders_without_workspace_roots(client: Client) -> None:
    folders = {(await client.state(await client.create()))["cwd"] for _ in range(2)}
    assert len(folders) == 2
    assert all(is_empty_folder(Path(folder)) for folder in folders)
    failure(await client.post("/sessions", {"cwd": "/"}), 400, "bad_request")


async def test_cwd_in_workspace_root_is_accepted(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "link").symlink_to(root / "inside")
    client = await (await serve(workspace_roots=(root,))).client()
    for cwd in (root, root / "inside"):
        session = await client.create(cwd=str(cwd))
        assert (await client.state(session))["cwd"] == str(cwd.resolve())
    session = await client.create(cwd=str(root / "link"))
    assert (await client.state(session))["cwd"] == str(root / "inside")
    _, reply = await client.turn(session, script({"report": True}))
    assert json.loads(texts_of(reply["events"]))["cwd"] == str(root / "inside")


async def test_cwd_outside_workspace_roots_is_refused(serve: Serve, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-beside"
    root.mkdir()
    outside.mkdir()
    (root / "file").touch()
    (root / "escape").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    client = await (await serve(workspace_roots=(root,))).client()
    for cwd in (
        f"{outside}",
        f"{root}/..",
        f"{root}/../root-beside",
        f"{root}/escape",
        f"{root}/escape/../..",
        f"{root}/loop",
        f"{root}/file",
        f"{root}/missing",
        f"{root}/{'x' * 300}",
        f"{root}/nul\0",
        "/",
        ".",
        "root",
        "",
        "~",
        "x" * 5000,
    ):
        answer = await client.post("/sessions", {"agent": "mock", "cwd": cwd})
        failure(answer, 400, "bad_request")


# Fields of create.


async def test_invalid_fields_of_create_are_named(client: Client) -> None:
    for field, value in (
        ("agent", ""),
        ("agent", 1),
        ("model", ""),
        ("model", ["x"]),
        ("model", "x" * 1025),
        ("system", 1),
        ("meta", []),
        ("meta", "text"),
        ("permission", "yes"),
        ("permission", 1),
        ("cwd", 1),
    ):
        answer = await client.post("/sessions", {"agent": "mock", field: value})
        assert field in failure(answer, 400, "bad_request"), field
    answer = await post_large(client, "/sessions", {"system": "x" * ((1 << 20) + 1)})
    assert "system" in failure(answer, 400, "bad_request")


async def test_system_prompt_reaches_agent(serve: Serve) -> None:
    agents = {**MOCKS, "mock-system": mock_agent("--system-echo")}
    client = await (await serve(agents=agents)).client()
    session = await client.create("mock-system", system="Be brief.")
    _, reply = await client.turn(session, "hello")
    assert "Be brief." in texts_of(reply["events"])
    assert (await client.state(session))["system"] == "Be brief."


async def test_model_reaches_agent(client: Client) -> None:
    session = await client.create("mock-modes", model="mock-large")
    _, reply = await client.turn(session, script({"report": True}))
    report = json.loads(texts_of(reply["events"]))
    assert report["session"]["config"]["model"] == "mock-large"
    assert (await client.state(session))["model"] == "mock-large"


@pytest.mark.parametrize(
    ("permission", "kind", "chosen"),
    [
        ("approve-all", "edit", "allow_once"),
        ("approve-reads", "read", "allow_once"),
        ("approve-reads", "edit", "reject_once"),
        ("deny-all", "read", "reject_once"),
    ],
)
async def test_permission_policy_answers_agent(
    client: Client, permission: str, kind: str, chosen: str
) -> None:
    session = await client.create(permission=permission)
    _, reply = await client.turn(session, script({"permission": {"kind": kind}}))
    outcome = {"outcome": "selected", "optionId": chosen}
    assert json.loads(texts_of(reply["events"])) == {"permission": outcome}
    resolved = await wait_head(client, session, "permission_resolved")
    assert (resolved["outcome"], resolved["by"]) == (outcome, "policy")


# A turn.


async def test_turn_returns_its_raw_events(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(session, script({"say": "one "}, {"say": "two"}))
    assert status == 200
    assert reply["ok"] is True
    assert reply["session_id"] == session
    assert reply["turn_index"] == 1
    assert reply["stop_reason"] == "end_turn"
    assert isinstance(reply["duration_ms"], int)
    *updates, answer = reply["events"]
    assert {update["method"] for update in updates} == {"session/update"}
    assert texts_of(updates) == "one two"
    assert answer["jsonrpc"] == "2.0"
    assert answer["result"] == {"stopReason": "end_turn"}


async def test_state_counts_turns(client: Client) -> None:
    session = await client.create()
    for turn_index in (1, 2):
        _, reply = await client.turn(session, "hello")
        assert reply["turn_index"] == turn_index
    state = await client.state(session)
    assert (state["turn_count"], state["state"]) == (2, "idle")
    assert state["last_turn_at"] >= state["created_at"]
    assert state["head"] == (await client.events(session))[-1]["seq"]


async def test_state_shows_running_turn(client: Client) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_held(client, session))
        await wait_running(client, session)
        group.create_task(client.turn(session, "next", timeout_secs=5))

        async def queued() -> Any:
            return (await client.state(session))["queued"]

        (waiting,) = await eventually("the second prompt to queue", queued)
        assert waiting["turn_index"] == 2
        assert waiting["prompt"] == [{"type": "text", "text": "next"}]
        assert (await client.state(session))["turn_index"] == 1
        await release(client, session)


async def test_turns_of_session_run_in_order(client: Client) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(run_held(client, session, {"say": "0"}))]
        await wait_running(client, session)
        for number in (1, 2, 3):
            turns.append(group.create_task(client.turn(session, script({"say": str(number)}))))

            async def queued(count: int = number) -> bool:
                return len((await client.state(session))["queued"]) == count

            await eventually("the prompt to queue", queued)
        await release(client, session)
    replies = [turn.result()[1] for turn in turns]
    assert [reply["turn_index"] for reply in replies] == [1, 2, 3, 4]
    assert [texts_of(reply["events"]) for reply in replies] == ["0", "1", "2", "3"]


async def test_prompt_over_queue_limit_is_refused_and_others_continue(serve: Serve) -> None:
    client = await (await serve(max_queued_turns=1)).client()
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_held(client, session))
        await wait_running(client, session)
        second = group.create_task(client.turn(session, "second"))

        async def queued() -> Any:
            return (await client.state(session))["queued"]

        await eventually("the second prompt to queue", queued)
        failure(await client.turn(session, "third"), 429, "queue_full")
        await release(client, session)
    assert second.result()[1]["stop_reason"] == "end_turn"


async def test_stop_reason_of_agent_is_returned(client: Client) -> None:
    session = await client.create()
    for reason in ("max_tokens", "max_turn_requests", "refusal"):
        status, reply = await client.turn(session, script({"stop": reason}))
        assert (status, reply["stop_reason"]) == (200, reason)


async def test_unknown_updates_and_extensions_are_returned(client: Client) -> None:
    session = await client.create()
    update = {"sessionUpdate": "from_the_future", "field": [1, {"deep": "ü"}], "big": 1e300}
    extension = {"method": "_vendor/thing", "params": {"x": 1}}
    _, reply = await client.turn(session, script({"update": update}, {"notify": extension}))
    first, second, _ = reply["events"]
    assert first["params"]["update"] == update
    assert (second["method"], second["params"]) == ("_vendor/thing", {"x": 1})


async def test_garbage_from_agent_is_skipped(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(
        session,
        script(
            {"say": "before "},
            {"raw": "this is no JSON"},
            {"raw": ""},
            {"raw": "[1, 2]"},
            {"raw": '"text"'},
            {"raw": '{"half": '},
            {"raw": {"base64": "/////w=="}},
            {"bad_utf8": True},
            {"say": "after"},
        ),
    )
    assert (status, reply["stop_reason"]) == (200, "end_turn")
    assert texts_of(reply["events"]) == "before after"
    events = [e["event"] for e in await client.events(session) if e["type"] == "event"]
    assert all(event["jsonrpc"] == "2.0" for event in events)


# Prompts as content blocks.

BLOCKS: list[Json] = [
    {"type": "text", "text": "look", "annotations": {"audience": ["user"]}, "_meta": {"a": [1]}},
    {"type": "image", "data": "aGVsbG8=", "mimeType": "image/png", "uri": "file:///x.png"},
    {"type": "audio", "data": "aGVsbG8=", "mimeType": "audio/wav", "_meta": {"b": None}},
    {"type": "resource", "resource": {"uri": "file:///a", "text": "A", "mimeType": "text/plain"}},
    {"type": "resource", "resource": {"uri": "file:///b", "blob": "QQ==", "_meta": {"c": 1}}},
    {"type": "resource_link", "uri": "file:///c", "name": "c", "size": 3, "description": "ü"},
]


async def test_content_blocks_reach_agent_verbatim(serve: Serve, tmp_path: Path) -> None:
    record = tmp_path / "stdin.jsonl"
    mock = mock_agent()
    shell = ("/bin/sh", "-c", 'tee "$RECORD" | "$@"', "sh", *mock.argv)
    recorded = {"recorded": type(mock)(shell, {"RECORD": str(record)})}
    client = await (await serve(agents={**MOCKS, **recorded})).client()
    session = await client.create("recorded")
    status, _ = await client.turn(session, BLOCKS)
    assert status == 200
    messages = [json.loads(line) for line in record.read_bytes().splitlines()]
    (prompt,) = [m for m in messages if m.get("method") == "session/prompt"]
    assert prompt["params"]["prompt"] == BLOCKS
    assert (await wait_head(client, session, "turn_start"))["prompt"] == BLOCKS


async def test_each_kind_of_content_block_is_accepted(client: Client) -> None:
    session = await client.create()
    for block in BLOCKS:
        status, reply = await client.turn(session, [block])
        said = "look" if block["type"] == "text" else f"[{block['type']}]"
        assert (status, texts_of(reply["events"])) == (200, f"echo: {said}")


async def test_invalid_content_blocks_are_refused(client: Client) -> None:
    session = await client.create()
    link = {"type": "resource_link", "uri": "file:///c", "name": "c"}
    bad: Any
    for bad in (
        "",
        [],
        [{"type": "text", "text": ""}],
        ["text"],
        [None],
        [[]],
        [{}],
        [{"text": "no type"}],
        [{"type": 1, "text": "x"}],
        [{"type": "video", "data": "aGVsbG8="}],
        [{"type": "text"}],
        [{"type": "text", "text": 1}],
        [{"type": "image", "mimeType": "image/png"}],
        [{"type": "image", "data": "aGVsbG8="}],
        [{"type": "image", "data": "aGVsbG8=", "mimeType": "text/plain"}],
        [{"type": "image", "data": "not base64!", "mimeType": "image/png"}],
        [{"type": "image", "data": "", "mimeType": "image/png"}],
        [{"type": "audio", "data": "aGVsbG8=", "mimeType": "image/png"}],
        [{"type": "resource"}],
        [{"type": "resource", "resource": {"text": "no uri"}}],
        [{"type": "resource", "resource": {"uri": "file:///a"}}],
        [{"type": "resource", "resource": {"uri": "file:///a", "text": "A", "blob": "QQ=="}}],
        [{"type": "resource_link", "uri": "file:///c"}],
        [{"type": "resource_link", "name": "c"}],
        [link, {**link, "uri": None}],
    ):
        assert "prompt" in failure(await client.turn(session, bad), 400, "bad_request"), bad
    assert (await client.state(session))["turn_count"] == 0


async def test_prompt_of_several_megabytes_reaches_agent(client: Client) -> None:
    session = await client.create()
    picture = base64.b64encode(os.urandom(3 << 20)).decode()
    image = {"type": "image", "data": picture, "mimeType": "image/png"}
    status, reply = await post_large(client, f"/sessions/{session}/turn", {"prompt": [image]})
    assert (status, texts_of(reply["events"])) == (200, "echo: [image]")


# Bodies.


async def test_malformed_body_is_refused(client: Client) -> None:
    session = await client.create()
    routes = [
        ("POST", "/sessions", "agent"),
        ("POST", f"/sessions/{session}/turn", "prompt"),
        ("POST", f"/sessions/{session}/permissions/x", "option_id"),
        ("PATCH", f"/sessions/{session}", "meta"),
    ]
    for method, path, field in routes:
        for body in (
            b"nonsense",
            b"{",
            b'{"a":1}}',
            b"\xff\xfe{}",
            b'{"%s":"\xff"}' % field.encode(),
            b'{"%s":"\\ud800"}' % field.encode(),
            b'{"%s":NaN}' % field.encode(),
            b'{"%s":17}' % field.encode(),
            b"[]",
            b'[{"%s":"x"}]' % field.encode(),
            b'"text"',
            b"17",
            b"null",
            b"[" * 100_000,
            b'{"%s":' % field.encode() + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"%s":' % field.encode() + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        ):
            answer = await client.call(method, path, body)
            failure(answer, 400, "bad_request")
    for path in (f"/sessions/{session}/turn", f"/sessions/{session}/permissions/x"):
        failure(await client.call("POST", path, b""), 400, "bad_request")
        failure(await client.call("POST", path, b"{}"), 400, "bad_request")


async def test_deeply_nested_body_is_refused(client: Client) -> None:
    session = await client.create()
    for depth in (150, 195, 200, 250, 300, 600, 900, 1000, 1020):
        deep = b'{"a":' * depth + b"1" + b"}" * depth
        status, reply = await client.call("PATCH", f"/sessions/{session}", b'{"meta":%b}' % deep)
        assert status in (200, 400), (depth, reply)
        block = b'{"type":"text","text":"deep","_meta":%b}' % deep
        path = f"/sessions/{session}/turn"
        status, reply = await client.call("POST", path, b'{"prompt":[%b]}' % block)
        assert status in (200, 400), (depth, reply)
    status, _ = await client.get("/sessions")
    assert status == 200


async def test_too_large_body_is_refused(client: Client) -> None:
    session = await client.create()
    answer = await post_large(client, f"/sessions/{session}/turn", {"prompt": "x" * (16 << 20)})
    failure(answer, 413, "payload_too_large")
    assert (await client.state(session))["turn_count"] == 0


async def test_timeout_secs_is_checked(client: Client) -> None:
    session = await client.create()
    for bad in (0, -1, "5", 86401, [1]):
        answer = await client.turn(session, "x", timeout_secs=bad)
        assert "timeout_secs" in failure(answer, 400, "bad_request")


# Idempotency-Key.


async def turn_with_key(client: Client, session: str, prompt: str, key: str) -> tuple[int, Json]:
    headers = {"Idempotency-Key": key}
    return await client.post(f"/sessions/{session}/turn", {"prompt": prompt}, headers=headers)


async def test_repeated_idempotency_key_returns_stored_result(client: Client) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, "once", "k1")
    assert first[0] == 200
    assert await turn_with_key(client, session, "once", "k1") == first
    assert await turn_with_key(client, session, "another prompt", "k1") == first
    assert (await client.state(session))["turn_count"] == 1
    _, other = await turn_with_key(client, session, "twice", "k2")
    assert (other["turn_index"], texts_of(other["events"])) == (2, "echo: twice")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [("POST", "/turn", "Idempotency-Key"), ("GET", "/events", "Last-Event-ID")],
)
async def test_repeated_header_must_have_one_value(
    client: Client, method: str, path: str, name: str
) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    statuses = []
    for values in (("1", "2"), ("1", "1")):
        headers = [*client.headers().items(), *((name, value) for value in values)]
        headers.append(("Accept", "text/event-stream"))
        async with client.http.request(
            method,
            f"{client.url}/sessions/{session}{path}",
            headers=CIMultiDict(headers),
            json={"prompt": "hi"} if method == "POST" else None,
        ) as response:
            statuses.append(response.status)
    assert statuses == [400, 200]


async def test_repeated_query_parameter_must_have_one_value(client: Client) -> None:
    path = f"/sessions/{await client.create()}/events"
    assert (await client.get(f"{path}?after=0&after=1"))[0] == 400
    assert (await client.get(f"{path}?after=0&after=0"))[0] == 200


async def test_repeated_idempotency_key_waits_for_running_turn(client: Client) -> None:
    session = await client.create()
    prompt = script({"gate": "go"}, {"say": "held"})
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(turn_with_key(client, session, prompt, "k")) for _ in range(5)]
        await wait_running(client, session)
        await release(client, session)
    assert {json.dumps(turn.result()) for turn in turns} == {json.dumps(turns[0].result())}
    assert turns[0].result()[0] == 200
    assert (await client.state(session))["turn_count"] == 1


async def test_ended_turn_keeps_its_key_but_not_its_prompt(client: Client) -> None:
    size = 900_000
    prompt = script({"say": "hi"}) + " " * size
    await turn_with_key(client, await client.create(), prompt, "k")  # imports and caches are filled
    gc.collect()
    gc.disable()  # it would come too late in a real server
    tracemalloc.start()
    try:
        for _ in range(10):
            await turn_with_key(client, await client.create(), prompt, "k")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 10 * size  # not one each; the newest pages of the logs are kept


async def test_idempotency_key_is_per_session(client: Client) -> None:
    for _ in range(2):
        _, reply = await turn_with_key(client, await client.create(), "hello", "k")
        assert (reply["turn_index"], texts_of(reply["events"])) == (1, "echo: hello")


async def test_repeated_idempotency_key_returns_stored_failure(
    client: Client,
) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, script({"exit": 1}), "k")
    failure(first, 502, "agent_failed")
    again = await turn_with_key(client, session, script({"exit": 1}), "k")
    assert again[1].pop("request_id") != first[1].pop("request_id")
    assert again == first


async def test_idempotency_key_survives_restart(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    first = await turn_with_key(client, session, "hello", "k")
    await server.stop()
    again = await serve()
    client = Client(again.url, client.token, client.http)
    assert await turn_with_key(client, session, "hello", "k") == first
    assert (await client.state(session))["turn_count"] == 1


async def test_idempotency_key_returns_result_after_close(client: Client) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, "hello", "k")
    await client.delete(f"/sessions/{session}")
    assert await turn_with_key(client, session, "hello", "k") == first


@pytest.mark.parametrize("key", ["\U0001f468\u200d\U0001f469", "a\u00a0b", "a\tb"])
async def test_idempotency_key_may_be_any_text(client: Client, key: str) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, "hello", key)
    assert first[0] == 200
    socket = await client.connect(session)
    await socket.send("prompt", id=key, prompt="hello")
    assert (await socket.until("accepted"))["duplicate"] is True


async def test_invalid_idempotency_key_is_refused(client: Client) -> None:
    session = await client.create()
    for bad in ("", "x" * 257, "\udcff"):
        failure(await turn_with_key(client, session, "hello", bad), 400, "bad_request")
    assert (await client.state(session))["turn_count"] == 0


# Turns that fail.


def failed_turn(session: str, answer: tuple[int, Json], status: int, code: str) -> Json:
    failure(answer, status, code)
    reply = answer[1]
    assert reply["session_id"] == session
    assert reply["turn_index"] == 1
    assert reply["stop_reason"] == "error"
    assert isinstance(reply["duration_ms"], int)
    assert isinstance(reply["events"], list)
    return reply


async def test_agent_crash_fails_turn_and_keeps_its_events(client: Client) -> None:
    session = await client.create()
    answer = await client.turn(session, script({"say": "half"}, {"crash": "SIGKILL"}))
    reply = failed_turn(session, answer, 502, "agent_failed")
    assert texts_of(reply["events"]) == "half"
    assert reply["retryable"] is True


async def test_turn_after_crash_has_context(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "remember this")
    await client.turn(session, script({"exit": 1}))
    status, reply = await client.turn(session, script({"history": True}))
    assert status == 200
    assert json.loads(texts_of(reply["events"]))[0] == "remember this"


async def test_agent_error_fails_turn_with_its_message(
    client: Client,
) -> None:
    session = await client.create()
    error = {"code": -32603, "message": "out of cheese", "data": {"secret": "x"}}
    answer = await client.turn(session, script({"say": "half"}, {"error": error}))
    reply = failed_turn(session, answer, 502, "agent_failed")
    assert reply["error"] == "out of cheese"
    assert reply["events"][-1]["error"] == error
    assert (await client.state(session))["state"] == "idle"


async def test_agent_that_does_not_start_fails_first_turn(client: Client) -> None:
    session = await client.create("mock-dies")
    answer = await client.turn(session, "hello")
    failed_turn(session, answer, 502, answer[1]["code"])
    assert answer[1]["code"] in ("agent_failed", "agent_unavailable")
    assert answer[1]["events"] == []


async def test_turn_over_its_timeout_is_cancelled_and_fails(client: Client) -> None:
    session = await client.create()
    prompt = script({"say": "half"}, {"wait_for": "cancel"}, {"say": " and cancelled"})
    answer = await client.turn(session, prompt, timeout_secs=2)
    reply = failed_turn(session, answer, 504, "agent_timeout")
    assert texts_of(reply["events"]) == "half and cancelled"
    assert (await client.turn(session, "next"))[0] == 200


async def test_timeout_secs_cannot_exceed_limit_of_server(serve: Serve) -> None:
    client = await (await serve(turn_timeout_secs=0.5)).client()
    session = await client.create()
    answer = await client.turn(session, script({"hang": True}), timeout_secs=600)
    failed_turn(session, answer, 504, "agent_timeout")


async def test_unpaired_surrogate_in_agent_error_is_kept(client: Client) -> None:
    session = await client.create()
    error = r'"error":{"code":-32603,"message":"cut \ud83d"}'
    answers = [{"raw": f'{{"jsonrpc":"2.0","id":{number},{error}}}'} for number in range(5)]
    prompt = script(*answers, {"hang": True})  # one of them is the prompt's
    first = await turn_with_key(client, session, prompt, "k")
    assert failure(first, 502, "agent_failed") == "cut \ud83d"
    status, again = await turn_with_key(client, session, prompt, "k")
    # Each request has an id of its own.
    assert (status, again | {"request_id": None}) == (502, first[1] | {"request_id": None})


# Cancel.


async def test_cancel_ends_running_turn_as_cancelled(client: Client) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(client.turn(session, script({"say": "half"}, {"hang": True})))
        await wait_head(client, session, "event")
        answer = await client.post(f"/sessions/{session}/cancel")
        assert answer == (200, {"ok": True, "cancelled": True})
    status, reply = turn.result()
    assert (status, reply["ok"], reply["stop_reason"]) == (200, True, "cancelled")
    assert (await client.state(session))["state"] == "idle"


async def test_cancel_without_turn_reports_false(client: Client) -> None:
    session = await client.create()
    answer = await client.post(f"/sessions/{session}/cancel")
    assert answer == (200, {"ok": True, "cancelled": False})


async def test_agent_that_ignores_cancel_is_killed_and_session_stays_open(
    serve: Serve,
) -> None:
    client = await (await serve(cancel_grace_secs=0.2)).client()
    session = await client.create()
    prompt = script({"ignore_cancel": True}, {"say": "deaf"}, {"hang": True})
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(client.turn(session, prompt))
        await wait_head(client, session, "event")
        await client.post(f"/sessions/{session}/cancel")
    assert turn.result()[1]["stop_reason"] == "cancelled"
    assert (await client.turn(session, "next"))[0] == 200


# Permissions that ask.


async def test_pending_permission_is_resolved_over_rest(client: Client) -> None:
    session = await client.create(permission="ask")
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(client.turn(session, script({"permission": True})))
        request = await wait_head(client, session, "permission_request")
        (pending,) = (await client.state(session))["pending_permissions"]
        assert pending["request_id"] == request["request_id"]
        assert pending["request"] == request["request"]
        path = f"/sessions/{session}/permissions/{request['request_id']}"
        for bad in ({}, {"option_id": "nope"}, {"option_id": 1}, {"outcome": "selected"}):
            failure(await client.post(path, bad), 400, "bad_request")
        both = {"option_id": "allow_once", "outcome": "cancelled"}
        failure(await client.post(path, both), 400, "bad_request")
        assert await client.post(path, {"option_id": "allow_always"}) == (200, {"ok": True})
        failure(await client.post(path, {"option_id": "allow_once"}), 404, "not_found")
    outcome = {"outcome": "selected", "optionId": "allow_always"}
    assert json.loads(texts_of(turn.result()[1]["events"])) == {"permission": outcome}
    resolved = await wait_head(client, session, "permission_resolved")
    assert (resolved["outcome"], resolved["by"]) == (outcome, "client")


# Isolation of apps.


def session_routes(session: str) -> list[tuple[str, str, Any]]:
    path = f"/sessions/{session}"
    return [
        ("GET", path, None),
        ("PATCH", path, {"meta": {"stolen": True}}),
        ("POST", f"{path}/turn", {"prompt": "hello"}),
        ("POST", f"{path}/cancel", {}),
        ("POST", f"{path}/permissions/x", {"option_id": "allow_once"}),
        ("GET", f"{path}/events", None),
        ("POST", f"{path}/ticket", {}),
        ("GET", f"{path}/ws", None),
        ("DELETE", path, None),
    ]


async def test_session_of_another_app_looks_nonexistent(server: LocalServer) -> None:
    mine, other = await server.client("mine"), await server.client("other")
    session = await mine.create()
    never = session_routes(NOBODY)
    for (method, path, body), (_, missing, _) in zip(session_routes(session), never, strict=True):
        headers = UPGRADE if path.endswith("/ws") else {}
        answers = [
            await other.call(method, where, body, headers=headers) for where in (path, missing)
        ]
        for answer in answers:
            failure(answer, 404, "not_found")
            del answer[1]["request_id"]
        assert answers[0] == answers[1], (method, path)
    state = await mine.state(session)
    assert (state["state"], state["turn_count"], state["meta"]) == ("idle", 0, {})


async def test_malformed_session_id_is_not_found(client: Client) -> None:
    for session in ("x", "..%2F..%2Fetc", "%00", "%FF", "%ED%A0%80", "'%20OR%201=1--", "x" * 4000):
        failure(await client.get(f"/sessions/{session}"), 404, "not_found")


async def test_every_session_route_needs_token(server: LocalServer, client: Client) -> None:
    session = await client.create()
    anonymous = server.anonymous()
    for method, path, body in session_routes(session):
        if not path.endswith("/ws"):  # which may bring it in its first frame
            failure(await anonymous.call(method, path, body), 401, "unauthorized")
    for path in ("/sessions", "/agents"):
        failure(await anonymous.get(path), 401, "unauthorized")
    assert (await client.state(session))["state"] == "idle"


async def test_list_contains_only_sessions_of_app(server: LocalServer) -> None:
    mine, other = await server.client("mine"), await server.client("other")
    sessions = [await mine.create(), await mine.create()]
    await other.create()
    for session in sessions:
        await mine.until_live(session)
    status, reply = await mine.get("/sessions")
    assert (status, reply["ok"], reply["count"]) == (200, True, 2)
    assert [state["session_id"] for state in reply["sessions"]] == sessions[::-1]
    one = await mine.state(sessions[0])
    del one["ok"]
    assert reply["sessions"][1] == one


async def test_list_includes_closed_sessions_only_on_request(client: Client) -> None:
    closed, opened = await client.create(), await client.create()
    await client.delete(f"/sessions/{closed}")

    async def listed(query: str) -> list[str]:
        status, reply = await client.get(f"/sessions{query}")
        assert (status, reply["count"]) == (200, len(reply["sessions"]))
        return [state["session_id"] for state in reply["sessions"]]

    assert await listed("") == [opened]
    assert await listed("?include_closed=false") == [opened]
    assert await listed("?include_closed=true") == [opened, closed]
    failure(await client.get("/sessions?include_closed=perhaps"), 400, "bad_request")


# Closing.


async def test_second_delete_reports_already_closed(client: Client) -> None:
    session = await client.create()
    first = await client.delete(f"/sessions/{session}")
    assert first == (200, {"ok": True, "session_id": session})
    again = await client.delete(f"/sessions/{session}")
    assert again == (200, {"ok": True, "session_id": session, "already_closed": True})


async def test_exactly_one_of_concurrent_deletes_closes_session(client: Client) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        deletes = [group.create_task(client.delete(f"/sessions/{session}")) for _ in range(5)]
    replies = [delete.result()[1] for delete in deletes]
    assert [reply.get("already_closed") for reply in replies].count(None) == 1
    entries = await client.events(session)
    assert [entry["type"] for entry in entries].count("session_closed") == 1


async def test_closed_session_is_read_only(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    await client.delete(f"/sessions/{session}")
    state = await client.state(session)
    assert (state["state"], state["close_reason"]) == ("closed", "client")
    assert isinstance(state["closed_at"], int)
    assert (await client.events(session))[-1]["type"] == "session_closed"
    failure(await client.turn(session, "again"), 410, "session_closed")
    answer = await client.post(f"/sessions/{session}/cancel")
    assert answer == (200, {"ok": True, "cancelled": False})


async def test_delete_stops_turns_and_closes_sockets(
    client: Client,
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(client.turn(session, script({"say": "half"}, {"hang": True})))
        await socket.until_text("half")
        queued = group.create_task(client.turn(session, "next"))

        async def waits() -> Any:
            return (await client.state(session))["queued"]

        await eventually("the second prompt to queue", waits)
        assert (await client.delete(f"/sessions/{session}"))[0] == 200
    assert turn.result()[1]["stop_reason"] == "cancelled"
    assert queued.result()[1]["stop_reason"] == "cancelled"
    assert await socket.until_closed() == 4508
    assert socket.entries[-1]["type"] == "session_closed"


# The log.


async def test_events_are_numbered_from_one_without_gaps(client: Client) -> None:
    session = await client.create()
    for _ in range(2):
        await client.turn(session, "hello")
    status, reply = await client.get(f"/sessions/{session}/events")
    assert (status, reply["ok"]) == (200, True)
    seqs = [entry["seq"] for entry in reply["entries"]]
    assert seqs == list(range(1, reply["head"] + 1))
    assert all(isinstance(e["ts"], int) and "turn_index" in e for e in reply["entries"])
    turn = [entry for entry in reply["entries"] if entry["turn_index"] == 2]
    assert [e["type"] for e in turn] == ["turn_start", "event", "event", "turn_end"]
    assert turn[0]["prompt"] == [{"type": "text", "text": "hello"}]


async def test_events_are_paged(client: Client) -> None:
    session = await client.create()
    await client.turn(session, script({"burst": {"count": 3000}}))
    path = f"/sessions/{session}/events"
    _, reply = await client.get(path)
    head = reply["head"]
    assert len(reply["entries"]) == 1000
    for after, limit in ((0, 1), (1, 2), (999, 10_000), (1500, 1000), (head - 1, 5), (head, 5)):
        _, reply = await client.get(f"{path}?after={after}&limit={limit}")
        last = min(after + limit, head)
        assert [e["seq"] for e in reply["entries"]] == list(range(after + 1, last + 1))
        assert reply["head"] == head


async def test_invalid_page_of_events_is_refused(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    path = f"/sessions/{session}/events"
    for query in (
        "after=-1",
        "after=x",
        "after=",
        "after=1.5",
        "after=999",
        "after=" + "9" * 5000,
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=10001",
        "limit=" + "9" * 5000,
    ):
        failure(await client.get(f"{path}?{query}"), 400, "bad_request")


# Tickets.


async def test_ticket_admits_one_socket(server: LocalServer, client: Client) -> None:
    session = await client.create()
    status, reply = await client.post(f"/sessions/{session}/ticket")
    assert (status, reply["ok"], reply["expires_in"]) == (200, True, 30)
    socket = await server.anonymous().connect(session, ready=False)
    await socket.send("auth", ticket=reply["ticket"])
    assert (await socket.until("ready"))["session_id"] == session
    second = await server.anonymous().connect(session, ready=False)
    await second.send("auth", ticket=reply["ticket"])
    assert await second.until_closed() == 4500


# Any path.


async def test_unknown_paths_are_not_found(client: Client, server: LocalServer) -> None:
    for path in ("/nope", "/sessions/", "/sessions/x/nope", "/admin", "/sessions//events"):
        for who in (client, server.anonymous()):
            failure(await who.get(path), 404, "not_found")


async def test_wrong_method_gets_allow_header(client: Client) -> None:
    for method, path, allowed in (
        ("PUT", "/sessions", {"GET", "HEAD", "POST"}),
        ("GET", "/sessions/x/turn", {"POST"}),
        ("POST", "/sessions/x", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("DELETE", "/healthz", {"GET", "HEAD"}),
    ):
        failure(await client.call(method, path), 405, "method_not_allowed")
        assert {name.strip() for name in client.last_headers["Allow"].split(",")} == allowed


async def test_every_response_has_request_id_and_failures_repeat_it(
    client: Client,
) -> None:
    await client.get("/agents")
    first = client.last_headers["X-Request-Id"]
    _, reply = await client.get("/sessions/x")
    assert client.last_headers["X-Request-Id"] == reply["request_id"] != first
    # aiohttp would refuse this request by itself.
    async with client.http.get(client.url + "/agents", headers={"Expect": "more"}) as response:
        assert (response.status, bool(response.headers["X-Request-Id"])) == (417, True)
    assert client.last_headers["Content-Type"] == "application/json; charset=utf-8"


async def test_responses_to_a_token_are_not_stored_by_caches(client: Client) -> None:
    for path in ("/sessions", "/search?q=x", "/usage", "/agents", "/v1/models", "/nothing"):
        await client.get(path)
        assert client.last_headers["Cache-Control"] == "no-store", path


async def test_defect_gets_internal_without_details(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("the secret of the server")

    monkeypatch.setattr(type(server.services.sessions.listing), "page", broken)
    answer = await client.get("/sessions")
    assert "secret" not in json.dumps(answer[1])
    failure(answer, 500, "internal")
    assert answer[1]["request_id"] in [getattr(one, "request_id", "") for one in caplog.records]
    assert "the secret of the server" in caplog.text


async def raw_request(url: str, request: bytes) -> bytes:
    """Send bytes that a client library would not send; the head and body of the response."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_path_that_is_not_utf8_is_refused(client: Client) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {client.token}\r\nConnection: close\r\n\r\n"
    request = b"GET /sessions/\xff\xfe HTTP/1.1\r\n" + head.encode()
    status = (await raw_request(client.url, request)).partition(b"\r\n")[0]
    assert status.split()[1] in (b"400", b"404"), status


async def test_no_response_reveals_server_software(client: Client) -> None:
    session = await client.create()
    answers: list[tuple[int, Any]] = []
    for method, path in (
        ("GET", "/healthz"),
        ("GET", "/"),
        ("GET", "/static/app.js"),
        ("GET", "/no/such/path"),
        ("DELETE", "/acp"),
        ("POST", "/sessions"),
    ):
        async with client.http.request(method, client.url + path) as response:
            answers.append((response.status, response.headers))
    stream = {**client.headers(), "Accept": "text/event-stream"}
    async with client.http.get(f"{client.url}/sessions/{session}/events", headers=stream) as sse:
        answers.append((sse.status, sse.headers))
    for path in (f"/sessions/{session}/ws", "/acp"):
        ws = await client.http.ws_connect(client.url + path, headers=client.headers())
        answers.append((101, ws._response.headers))
        await ws.close()
    assert [status for status, _ in answers] == [200, 200, 200, 404, 405, 401, 200, 101, 101]
    assert [headers.getall("Server") for _, headers in answers] == [["clawdforge"]] * len(answers)
    head, _, _ = (await raw_request(client.url, b"no request\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400")
    assert b"\r\nServer: clawdforge\r\n" in head + b"\r\n"


async def test_foreign_host_name_is_refused_on_loopback(client: Client) -> None:
    answer = await client.get("/agents", headers={"Host": "evil.example.org"})
    failure(answer, 403, "forbidden")
    assert (await client.get("/agents", headers={"Host": "localhost"}))[0] == 200


@pytest.mark.slow
async def test_unpaired_surrogate_in_permission_request_does_not_prevent_restart(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    line = (
        r'{"jsonrpc":"2.0","id":7,"method":"session/request_permission","params":{"sessionId":"x",'
        r'"toolCall":{"toolCallId":"1","title":"half \ud83d","kind":"edit"},"options":[]}}'
    )
    await socket.send("prompt", prompt=script({"raw": line}, {"hang": True}))
    request = await socket.until("permission_request")
    await server.kill()

    client = Client((await spawn()).url, client.token, http)
    *_, resolved, end = await client.events(session)
    assert (resolved["request_id"], resolved["by"]) == (request["request_id"], "cancel")
    assert end["error"]["code"] == "server_restarted"
