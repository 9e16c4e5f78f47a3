"""The agent's own conversation: forked although no process has it, and deleted with its session."""

from __future__ import annotations

from pathlib import Path

from ..conftest import Serve
from ..support.harness import Client, LocalServer, eventually, script
from ..support.mock_agents import mock_agent, run_step
from .test_forks import contexts, fork


async def hibernate(server: LocalServer, session: str) -> None:
    assert await server.services.sessions.cached[session].agent.hibernate()


async def history(client: Client, session: str) -> str:
    return str(await run_step(client, session, {"history": True}))


async def test_conversation_without_a_process_is_forked_at_the_head(
    serve: Serve, tmp_path: Path
) -> None:
    state = {"MOCK_STATE_DIR": str(tmp_path / "state")}
    agents = {
        "forks": mock_agent("--fork", **state),
        "refuses": mock_agent("--fork", "--fail-fork", **state),
    }
    server = await serve(agents=agents, default_agent=None)
    client = await server.client()
    session = await client.create("forks")
    await client.turn(session, "my name is Ada")
    await hibernate(server, session)
    hibernated = await fork(client, session)
    assert not server.services.sessions.cached[session].agent.is_live
    await client.delete(f"/sessions/{session}")
    closed = await fork(client, session)
    for one in (hibernated, closed):
        assert "Ada" in await history(client, one)
        await hibernate(server, one)
        await client.turn(one, "and Bob")
        assert await contexts(client, one) == ["new", "kept", "kept"]
    assert "Bob" in await history(client, closed)
    second = await fork(client, closed)  # of a fork
    assert await history(client, second) == await history(client, closed)

    # An agent that offers forks and refuses one gets the conversation as text.
    session = await client.create("refuses")
    await client.turn(session, "my name is Ada")
    await hibernate(server, session)
    told = await fork(client, session)
    reply = await run_step(client, told, {"echo": True})
    assert "my name is Ada" in str(reply)
    assert await contexts(client, told) == ["new", "told"]


async def test_purge_lets_a_running_agent_delete_its_conversation(
    serve: Serve, tmp_path: Path
) -> None:
    deleted = tmp_path / "deleted"
    agents = {"deletes": mock_agent(f"--delete={deleted}"), "hangs": mock_agent("--delete")}
    server = await serve(agents=agents, default_agent=None)
    client = await server.client()
    kept, purged, hanging = [
        await client.create(agent) for agent in ("deletes", "deletes", "hangs")
    ]
    ids = {}
    for session in (kept, purged, hanging):
        report = await run_step(client, session, {"report": True})
        ids[session] = report["session"]["sessionId"]
    await client.delete(f"/sessions/{kept}")
    socket = await client.connect(purged, after=0)
    await socket.send("prompt", prompt=script({"hang": True}))
    await socket.until("turn_start", turn_index=2)
    for session in (purged, hanging):
        status, reply = await client.delete(f"/sessions/{session}?purge=true")
        assert (status, reply["purged"]) == (200, True)
    await eventually("the deletion", deleted.exists)
    assert deleted.read_text().split() == [ids[purged]]
