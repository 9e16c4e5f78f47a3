"""The sandboxes of apps that are stricter than the server's."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from server.agents.base import AgentSpec
from server.auth.credential import hash_secret
from server.auth.token_options import TokenOptions
from server.sandbox.demands import SandboxDemand
from server.storage import statements
from server.storage.schema import TokenRow

from ..conftest import Serve
from ..support.harness import Client, LocalServer, failure, run_step
from ..support.sandboxes import mechanism


async def change(server: LocalServer, name: str, sandbox: Any) -> tuple[int, Any]:
    return await server.admin().call("PATCH", f"/admin/tokens/{name}", {"sandbox": sandbox})


async def home_of(client: Client, session: str) -> Path:
    return Path((await run_step(client, session, {"env": ["HOME"]}))["HOME"])


async def test_sandbox_of_a_token_applies_from_the_next_prompt(serve: Serve) -> None:
    mechanism("landlock")
    server = await serve(sandbox="off", prewarmed_agents=1)
    plain = await server.client("plain")
    client = await server.client("shop")
    session = await client.create()
    assert await home_of(client, session) == Path.home()
    assert (await client.state(session))["sandbox"] == "off"
    status, reply = await change(server, "shop", {"level": "landlock"})
    assert (status, reply["sandbox"]) == (200, {"level": "landlock"})
    assert (await home_of(client, session)).is_relative_to(server.services.settings.data_dir)
    assert (await client.state(session))["sandbox"] == "landlock"
    assert (await home_of(client, await client.create())) != Path.home()
    status, reply = await client.post("/run", {"agent": "mock", "prompt": '{"env": ["HOME"]}'})
    assert reply["result"]["HOME"] != str(Path.home())
    assert await home_of(plain, await plain.create()) == Path.home()
    token = client.token
    await server.stop()
    server = await serve(sandbox="off")
    client = Client(server.url, token, client.http)
    assert await home_of(client, session) != Path.home()
    assert "sandbox" not in (await change(server, "shop", None))[1]
    assert await home_of(client, session) == Path.home()


async def test_network_of_a_token_is_limited(own_server: LocalServer, tmp_path: Path) -> None:
    await own_server.client("shop", sandbox={"network": "web"})
    sandbox = own_server.services.sessions.backend.sandbox
    folder = own_server.services.settings.data_dir / "workspaces" / "one"
    folder.mkdir(parents=True)
    plans = {}
    for owner in ("shop", "other"):
        spec = AgentSpec(key="one", agent="mock", cwd=str(folder), permission="", owner=owner)
        plans[owner] = await asyncio.to_thread(sandbox.of(owner).plan, spec, {})
    assert plans["shop"]["tcp_ports"] == (80, 443)
    assert plans["other"]["tcp_ports"] is None
    assert plans["shop"]["level"] == plans["other"]["level"]


@pytest.mark.parametrize("sandbox", [{"level": "off"}, {"network": "all"}, {"levels": 1}, "none"])
async def test_invalid_demands_are_refused(server: LocalServer, sandbox: Any) -> None:
    body = {"name": "odd", "sandbox": sandbox}
    failure(await server.admin().post("/admin/tokens", body), 400, "bad_request")


async def test_less_strict_and_impossible_demands_are_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism("landlock")
    server = await serve(sandbox="landlock")
    await server.client("shop")
    sandbox = server.services.sessions.backend.sandbox
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox.stricter.environ = os.environ
    failure(await change(server, "shop", {"level": "bwrap"}), 400, "not_supported")
    _, reply = await server.admin().get("/admin/tokens")
    assert not any("sandbox" in token for token in reply["tokens"])
    # A demand that was accepted before lets no agent start if it cannot be enforced any more.
    await asyncio.to_thread(sandbox.stricter.prepare_stored, SandboxDemand("bwrap"))
    sandbox.stricter.demand_of = lambda _: SandboxDemand("bwrap")
    client = await server.client("old")
    status, reply = await client.turn(await client.create(), "hello")
    assert (status, reply["code"]) == (400, "bad_request")
    assert "sandbox" in reply["error"]


async def test_token_of_another_node_whose_sandbox_is_impossible_here_lets_no_agent_start(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism("landlock")
    server = await serve(sandbox="landlock")
    revoked = await server.client("revoked")
    monkeypatch.setenv("PATH", "/nowhere")
    tokens, stricter = server.services.tokens, server.services.sessions.backend.sandbox.stricter
    stricter.environ = os.environ
    options = TokenOptions(sandbox=SandboxDemand("bwrap"))
    row = TokenRow("strict", hash_secret("cf_strict"), "[]", time.time(), options.encode())
    writer = server.services.sessions.writer
    await writer.commit([statements.delete_token("revoked"), statements.insert_token(row)])
    await tokens.refresh()
    failure(await revoked.get("/sessions"), 401, "unauthorized")
    client = Client(server.url, "cf_strict", revoked.http)
    status, reply = await client.turn(await client.create(), "hello")
    assert (status, reply["code"]) == (400, "bad_request")
    assert "sandbox" in reply["error"]
    failure(await change(server, "strict", {"level": "bwrap"}), 400, "not_supported")
