"""Sessions of the demo agent, run by the real acpx."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from server.agents.demo.commands import COMMANDS, NOTES_FILE

from ...conftest import Serve
from ...support.harness import Client, Json, LocalServer, Socket, descendants, environ_of, texts_of


def updates(socket: Socket, kind: str) -> list[Json]:
    found = (e["event"].get("params", {}).get("update", {}) for e in socket.entries if "event" in e)
    return [update for update in found if update.get("sessionUpdate") == kind]


async def test_demo_is_the_default_unless_claude_is_installed(serve: Serve) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    _, reply = await client.get("/agents")
    installed = {agent["name"]: agent["installed"] for agent in reply["agents"]}
    expected = "claude" if installed["claude"] else "demo"
    assert [agent["name"] for agent in reply["agents"] if agent["default"]] == [expected]
    assert installed["demo"] is True


async def test_help_lists_every_command_and_mentions_the_demo(client: Client) -> None:
    session = await client.create("demo")
    status, reply = await client.turn(session, "help")
    text = texts_of(reply["events"])
    assert status == 200
    assert "demo" in text.lower()
    assert [name for name in COMMANDS if name not in text] == []
    offered = (await client.state(session))["commands"]
    assert [command["name"] for command in offered] == list(COMMANDS)


async def test_reply_streams_words_thoughts_and_usage(client: Client) -> None:
    socket = await client.connect(await client.create("demo"))
    end = await socket.turn("tell me something")
    assert end["stop_reason"] == "end_turn"
    assert len(updates(socket, "agent_message_chunk")) > 5
    assert updates(socket, "agent_thought_chunk")
    assert updates(socket, "usage_update")


async def test_plan_entries_complete_step_by_step(client: Client) -> None:
    socket = await client.connect(await client.create("demo"))
    await socket.turn("plan")
    plans = [[entry["status"] for entry in plan["entries"]] for plan in updates(socket, "plan")]
    assert set(plans[0]) <= {"pending", "in_progress"}
    assert set(plans[-1]) == {"completed"}
    assert len(plans) > 2


@pytest.mark.parametrize("option", ["allow_once", "reject_once"])
async def test_diff_is_written_only_with_permission(
    client: Client, server: LocalServer, option: str
) -> None:
    session = await client.create("demo", permission="ask")
    notes = server.services.settings.data_dir / "workspaces" / session / NOTES_FILE
    socket = await client.connect(session)
    await socket.send("prompt", prompt="diff")
    request = await socket.until("permission_request")
    (diff,) = [c for c in updates(socket, "tool_call")[-1]["content"] if c["type"] == "diff"]
    assert diff["path"] == str(notes)
    before = notes.read_text(encoding="utf-8") if notes.exists() else None
    await socket.send("permission", request_id=request["request_id"], option_id=option)
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"
    after = notes.read_text(encoding="utf-8") if notes.exists() else None
    assert after == (diff["newText"] if option == "allow_once" else before)


async def test_files_of_the_demo_can_be_seen_downloaded_and_undone(client: Client) -> None:
    session = await client.create("demo")
    path = f"/sessions/{session}"
    for _ in range(2):
        assert (await client.turn(session, "files"))[0] == 200
    _, reply = await client.get(f"{path}/changes")
    created = ["demo-site/dot.png", "demo-site/index.html", "demo-site/style.css"]
    assert [one["path"] for one in reply["files"]] == created
    _, reply = await client.get(f"{path}/changes?since_turn=2")
    assert [(one["path"], one["status"]) for one in reply["files"]] == [
        ("demo-site/draft.txt", "deleted"),
        ("demo-site/index.html", "modified"),
        ("demo-site/style.css", "modified"),
    ]
    url = f"{client.url}{path}/files/demo-site/index.html"
    for version in (2, 1):
        async with client.http.get(url, headers=client.headers()) as response:
            assert f"<h1>Version {version}</h1>" in await response.text()
        await client.post(f"{path}/undo", {"turn_index": version})
    _, reply = await client.get(f"{path}/files?depth=2")
    assert [one["path"] for one in reply["entries"] if "demo-site" in one["path"]] == []
    assert (await client.turn(session, "what did I say?"))[0] == 200  # its memory is not undone


async def test_cancel_ends_the_turn_immediately(client: Client) -> None:
    socket = await client.connect(await client.create("demo"))
    await socket.send("prompt", prompt="slow 3600")
    while not updates(socket, "agent_message_chunk") and not updates(socket, "tool_call"):
        await socket.next()
    await socket.send("cancel")
    assert (await socket.until("turn_end"))["stop_reason"] == "cancelled"


@pytest.mark.parametrize(
    ("argument", "reason", "code"),
    [
        ("error", "error", "agent_failed"),
        ("refusal", "refusal", None),
        ("crash", "error", "agent_failed"),
    ],
)
async def test_session_continues_after_a_failed_turn(
    client: Client, argument: str, reason: str, code: str | None
) -> None:
    socket = await client.connect(await client.create("demo"))
    end = await socket.turn(f"/fail {argument}")
    assert (end["stop_reason"], (end["error"] or {}).get("code")) == (reason, code)
    assert (await socket.turn("help"))["stop_reason"] == "end_turn"


async def test_set_mode_and_set_config_option_change_the_settings(client: Client) -> None:
    session = await client.create("demo")
    socket = await client.connect(session)
    await socket.turn("hello")
    await socket.send("set_mode", mode="auto")
    while not updates(socket, "current_mode_update"):
        await socket.next()
    await socket.send("set_config_option", key="thought_level", value="off")
    while not updates(socket, "config_option_update")[1:]:
        await socket.next()
    state = await client.state(session)
    assert state["modes"]["currentModeId"] == "auto"
    values = {option["id"]: option["currentValue"] for option in state["config_options"]}
    assert values["thought_level"] == "off"


async def test_conversation_survives_sigkill_of_the_agent(client: Client) -> None:
    session = await client.create("demo")
    socket = await client.connect(session, after=0)
    await socket.turn("My name is Ada Lovelace.")
    pids = demo_agents(session)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await client.until_hibernated(session)
    await socket.turn("What is my name?")
    assert "Ada Lovelace" in socket.text(2)
    starts = socket.contexts()
    assert starts == ["new", "kept"]
    assert len(pids) == 1


def demo_agents(session: str) -> list[int]:
    found = []
    for pid in descendants(os.getpid()):
        try:
            mark = environ_of(pid).get("AGENT_SESSION", "")
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if mark.startswith(session) and b"demo_agent.py" in argv:
            found.append(pid)
    return found


async def test_sessions_have_separate_memories(client: Client) -> None:
    first, second = await client.create("demo"), await client.create("demo")
    await asyncio.gather(
        client.turn(first, "My name is Ada."), client.turn(second, "My name is Grace.")
    )
    _, one = await client.turn(first, "What is my name?")
    _, two = await client.turn(second, "What is my name?")
    assert "Ada" in texts_of(one["events"])
    assert "Grace" in texts_of(two["events"])


async def test_form_and_link_ask_the_client(client: Client) -> None:
    session = await client.create("demo", elicitation="ask")
    socket = await client.connect(session)
    await socket.send("prompt", prompt="/form")
    question = await socket.until("elicitation_request")
    content = {"size": "l", "name": "Zoë", "toppings": ["Basil", "Olives"]}
    answer = {"request_id": question["request_id"], "action": "accept", "content": content}
    await socket.send("elicitation", **answer)
    await socket.until("turn_end", stop_reason="end_turn")
    assert "| Toppings | Basil, Olives |" in socket.text(1)

    await socket.send("prompt", prompt="/link")
    question = await socket.until("elicitation_request")
    link = question["request"]
    await socket.send("elicitation", request_id=question["request_id"], action="accept")
    await socket.until("turn_end", stop_reason="end_turn")
    events = [entry["event"] for entry in socket.entries if entry["type"] == "event"]
    complete = [
        event["params"] for event in events if event.get("method") == "elicitation/complete"
    ]
    assert complete == [{"elicitationId": link["elicitationId"]}]


async def test_form_without_a_client_that_can_show_it_gets_no_answer(client: Client) -> None:
    session = await client.create("demo")
    status, reply = await client.turn(session, "/form")
    assert (status, reply["stop_reason"]) == (200, "end_turn")
    assert "I got no answer" in texts_of(reply["events"])
