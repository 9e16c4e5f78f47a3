"""Turns with acpx's command line: cancelled at each of their steps, and after an agent's death."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest

from server.agent_commands import AgentCommand

from ..conftest import Serve
from ..support.harness import (
    MOCKS,
    Client,
    LocalServer,
    Socket,
    eventually,
    mock_agent,
    run_step,
    script,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HELD = (
    'test -e "$HOLD" && : >"$WAITS"; while test -e "$HOLD"; do sleep 0.05; done;'
    ' rm -f "$WAITS"; exec '
)


@pytest.fixture
async def server(serve: Serve, tmp_path: Path) -> LocalServer:
    """A server whose agent ``held`` does not start while the file ``hold`` exists."""
    command = HELD + shlex.join(mock_agent().argv)
    environ = {"HOLD": str(tmp_path / "hold"), "WAITS": str(tmp_path / "waits")}
    agents = {
        **MOCKS,
        "held": AgentCommand(("/bin/sh", "-c", command), environ),
        "hanging": mock_agent("--modes", "--hang-mode", f"--set-file={tmp_path / 'set'}"),
        "resets": mock_agent("--modes", "--resets"),
    }
    return await serve(agent_backend="cli", agents=agents, sandbox="off")


@pytest.fixture
async def client(server: LocalServer) -> Client:
    return await server.client()


async def cancel(socket: Socket, turn_index: int) -> None:
    """Cancel the running turn, which ends as cancelled, once."""
    await socket.send("cancel")
    end = await socket.until("turn_end", turn_index=turn_index)
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)


async def check_goes_on(client: Client, session: str, socket: Socket) -> None:
    """Check that the next turn is not cancelled, and that each turn has one start and one end."""
    status, reply = await client.turn(session, "Go on.")
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    await socket.until("turn_end", turn_index=reply["turn_index"])
    for kind in ("turn_start", "turn_end"):
        indexes = [one["turn_index"] for one in socket.entries if one["type"] == kind]
        assert sorted(indexes) == [*range(1, reply["turn_index"] + 1)]


async def test_turn_is_cancelled_while_its_agent_starts(client: Client, tmp_path: Path) -> None:
    hold, waits = tmp_path / "hold", tmp_path / "waits"
    hold.touch()
    session = await client.create("held")
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt="hello")  # acpx makes the session
    await eventually("the agent to start", waits.exists)
    await cancel(socket, 1)
    hold.unlink()
    await check_goes_on(client, session, socket)

    await kill_agent(client, session)
    hold.touch()
    await socket.send("prompt", prompt="hello")  # acpx loads the session
    await eventually("the agent to start", waits.exists)
    await cancel(socket, 4)
    hold.unlink()
    await check_goes_on(client, session, socket)
    assert socket.contexts()[-1] == "kept"


async def kill_agent(client: Client, session: str) -> None:
    """Kill the agent between two turns. The session is hibernated then."""
    pid = int((await run_step(client, session, {"report": True}))["pid"])
    assert (await client.state(session))["agent_state"] == "live"
    os.kill(pid, signal.SIGKILL)
    await client.until_hibernated(session)


async def test_turn_is_cancelled_while_its_agent_is_set(client: Client, tmp_path: Path) -> None:
    session = await client.create("hanging", mode="code")
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt="hello")
    await eventually("the agent to be set", (tmp_path / "set").exists)
    await cancel(socket, 1)
    assert socket.text() == ""


async def test_turn_is_cancelled_in_each_state_of_its_prompt(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    for prompt in (
        script({"say": "hanging"}, {"hang": True}),
        script({"say": "hanging"}, {"wait_for": "cancel"}, {"say": "bye"}),
        script({"say": "hanging"}, {"repeat": {"times": 10**6, "steps": [{"sleep": 20}]}}),
    ):
        await socket.send("prompt", prompt=prompt)
        turn_index = (await socket.until("accepted"))["turn_index"]
        await socket.until_text("hanging")
        await socket.send("prompt", prompt="queued")
        queued = await socket.until("accepted")
        await socket.send("cancel", turn_index=queued["turn_index"])
        end = await socket.until("turn_end", turn_index=queued["turn_index"])
        assert (end["stop_reason"], end["withdrawn"]) == ("cancelled", True)
        await cancel(socket, turn_index)
    # acpx still waits for further updates of a turn that has ended.
    await socket.turn("hello")
    await socket.send("cancel")
    assert (await socket.until("error"))["code"] == "not_found"
    await socket.send("prompt", prompt=script({"say": "at once"}))
    await cancel(socket, (await socket.until("accepted"))["turn_index"])
    await check_goes_on(client, session, socket)


async def test_killed_agent_is_hibernated_and_continues(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.turn("hello")
    await kill_agent(client, session)
    # Also one that ends by itself, after its response.
    report = await run_step(client, session, {"history": True})
    assert report[0] == "hello"
    await socket.turn(script({"late": {"delay_ms": 10, "steps": [{"exit": 0}]}}))
    await client.until_hibernated(session)
    assert len(await run_step(client, session, {"history": True})) == len(report) + 2
    await socket.until("turn_end", turn_index=5)
    assert socket.contexts() == ["new", *["kept"] * 4]


async def test_setting_before_the_first_turn_is_not_restored_in_it(
    server: LocalServer, client: Client
) -> None:
    session = await client.create("resets")
    socket = await client.connect(session, after=0)
    await socket.send("set_mode", mode="code")
    await socket.send("prompt", prompt="hello")
    await socket.until("turn_end")
    assert [one for one in socket.entries if one["type"] == "notice"] == []
    assert await server.services.sessions.cached[session].agent.hibernate()
    await socket.send("prompt", prompt="hello")
    notice = await socket.until("notice")
    assert (notice["setting"], notice["value"]) == ("mode", "code")
