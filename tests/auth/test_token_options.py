"""The variables of an app's token: stored, never shown, and passed to its agents and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import Serve
from ..support import runs
from ..support.engine import only_sqlite
from ..support.harness import Client, LocalServer, eventually, failure, mock_agent, run_step

SECRET = "hunter2-hunter2"


async def app_with(server: LocalServer, name: str, **body: object) -> Client:
    admin = server.admin()
    status, reply = await admin.post("/admin/tokens", {"name": name, **body})
    assert status == 200, reply
    assert SECRET not in str(reply)
    client = server.anonymous()
    client.token = reply["token"]
    return client


async def test_variables_are_stored_and_only_their_names_are_shown(server: LocalServer) -> None:
    admin = server.admin()
    await app_with(server, "shop", env={"B_KEY": SECRET, "A_KEY": SECRET})
    await app_with(server, "plain")
    _, reply = await admin.get("/admin/tokens")
    assert SECRET not in str(reply)
    tokens = {token["name"]: token for token in reply["tokens"]}
    assert tokens["shop"]["env"] == ["A_KEY", "B_KEY"]
    assert "env" not in tokens["plain"]
    path = "/admin/tokens/shop"
    status, reply = await admin.call("PATCH", path, {"env": {"C_KEY": SECRET}})
    assert (status, reply["env"]) == (200, ["C_KEY"])
    assert SECRET not in str(reply)
    assert "env" not in (await admin.call("PATCH", path, {"env": None}))[1]


@pytest.mark.parametrize(
    "env", [{"CLAWDFORGE_X": "x"}, {"LD_PRELOAD": "x"}, {"A=B": "x"}, {"A": 1}, {"A": "\0"}, []]
)
async def test_invalid_variables_are_refused(server: LocalServer, env: object) -> None:
    admin = server.admin()
    body = {"name": "shop", "env": env}
    failure(await admin.post("/admin/tokens", body), 400, "bad_request")


async def test_change_of_a_token_needs_a_known_name_and_a_field(server: LocalServer) -> None:
    admin = server.admin()
    client = await app_with(server, "shop")
    body = {"env": {"A": "x" * 40_000}}
    failure(await admin.call("PATCH", "/admin/tokens/shop", {}), 400, "bad_request")
    failure(await admin.call("PATCH", "/admin/tokens/shop", body), 413, "payload_too_large")
    failure(await admin.call("PATCH", "/admin/tokens/nobody", {"env": {}}), 404, "not_found")
    failure(await client.call("PATCH", "/admin/tokens/shop", {"env": {}}), 403, "forbidden")


@only_sqlite
async def test_variables_of_session_precede_those_of_token_and_server(serve: Serve) -> None:
    agents = {"mock": mock_agent(ONE="server", TWO="server", THREE="server")}
    server = await serve(agents=agents, prewarmed_agents=1)
    prewarmer = server.services.sessions.prewarmer
    await eventually("a prewarmed agent", lambda: any(one.is_ready for one in prewarmer.agents))
    client = await app_with(server, "shop", env={"ONE": "token", "TWO": "token"})
    names = ["ONE", "TWO", "THREE"]
    session = await client.create(env={"ONE": "session"})
    found = await run_step(client, session, {"env": names})
    assert found == {"ONE": "session", "TWO": "token", "THREE": "server"}
    session = await client.create()
    found = await run_step(client, session, {"env": names})
    assert found == {"ONE": "token", "TWO": "token", "THREE": "server"}
    other = await server.client("other")
    found = await run_step(other, await other.create(), {"env": names})
    assert set(found.values()) == {"server"}


async def test_changed_variables_apply_to_the_next_start_also_after_a_restart(
    serve: Serve,
) -> None:
    server = await serve()
    client = await app_with(server, "shop", env={"KEY": "first"})
    session = await client.create()
    assert await run_step(client, session, {"env": ["KEY"]}) == {"KEY": "first"}
    change = {"env": {"KEY": "second"}}
    assert (await server.admin().call("PATCH", "/admin/tokens/shop", change))[0] == 200
    assert await run_step(client, session, {"env": ["KEY"]}) == {"KEY": "first"}
    loaded = await server.services.sessions.find(session)
    assert loaded is not None
    assert await loaded.agent.hibernate()
    assert await run_step(client, session, {"env": ["KEY"]}) == {"KEY": "second"}
    token = client.token
    await server.stop()
    server = await serve()
    client = server.anonymous()
    client.token = token
    assert await run_step(client, session, {"env": ["KEY"]}) == {"KEY": "second"}


async def test_runs_get_the_variables_and_do_not_show_them(serve: Serve, tmp_path: Path) -> None:
    server = await serve(claude_bin=runs.make_fake_claude(tmp_path))
    client = await app_with(server, "shop", env={"ANTHROPIC_API_KEY": SECRET})
    found = await runs.run(client, runs.steps({"report": True}))
    assert "ANTHROPIC_API_KEY" in found["env"]
    prompt = runs.steps({"stderr": f"the key is {SECRET}"}, {"exit": 1})
    reply = await runs.fail(client, prompt)
    assert "the key is" in reply["stderr"]
    assert SECRET not in str(reply)
    # A run of another agent.
    status, reply = await client.post(
        "/run", {"agent": "mock", "prompt": '{"env": ["ANTHROPIC_API_KEY"]}'}
    )
    assert (status, reply["result"]) == (200, {"ANTHROPIC_API_KEY": SECRET})
