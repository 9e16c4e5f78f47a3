"""Sessions over REST: create, read, change, list, close, isolation of apps."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Serve
from ..support.harness import (
    MOCKS,
    ROOT,
    Client,
    LocalServer,
    eventually,
    failure,
    hold_commits,
    mock_agent,
    script,
    texts_of,
)
from .rest_turns import post_large

NOBODY = "00000000-0000-4000-8000-000000000000"


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


# Creating.


async def test_create_needs_bearer_token(server: LocalServer) -> None:
    anonymous = server.anonymous()
    failure(await anonymous.post("/sessions", {"agent": "mock"}), 401, "unauthorized")
    quotas = server.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("0 open sessions", lambda: quotas.open_sessions == 0)


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
    table = page.partition("| agent | installation |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `([a-z-]+)` \| (.+?) \|", table, re.MULTILINE))
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


async def test_state_counts_turns(client: Client) -> None:
    session = await client.create()
    for turn_index in (1, 2):
        _, reply = await client.turn(session, "hello")
        assert reply["turn_index"] == turn_index
    state = await client.state(session)
    assert (state["turn_count"], state["state"]) == (2, "idle")
    assert state["last_turn_at"] >= state["created_at"]
    assert state["head"] == (await client.events(session))[-1]["seq"]


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
