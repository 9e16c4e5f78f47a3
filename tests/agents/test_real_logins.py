"""Logins of real agents from npm, on a machine without keys and without a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..conftest import Serve
from ..support import real_agents
from ..support.harness import Client, Json

pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]

PROGRAMS = {"codex": "codex-acp", "gemini": "gemini", "qwen": "qwen"}
KEYS = ("OPENAI_API_KEY", "CODEX_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_BASE_URL")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who has the agents on the PATH, and no login."""
    programs, home = tmp_path / "bin", tmp_path / "home"
    for folder in (programs, home):
        folder.mkdir()
    try:
        for program in PROGRAMS.values():
            (programs / program).symlink_to(real_agents.find_program(program))
    except real_agents.NotInstalledError as error:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))
    (programs / "node").symlink_to(real_agents.NODE / "bin/node")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(home))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    return home


async def entry(client: Client, name: str) -> Json:
    _, reply = await client.get("/agents")
    return next(dict(one) for one in reply["agents"] if one["name"] == name)


@pytest.mark.parametrize("name", PROGRAMS)
async def test_agent_without_a_login_fails_with_its_methods(
    serve: Serve, machine: Path, name: str
) -> None:
    client = await (await serve(default_agent=None)).client()
    status, reply = await client.turn(await client.create(name), "hello")
    assert (status, reply["code"], reply["retryable"]) == (502, "login_required", False), reply
    assert all({"id", "name"} <= method.keys() for method in reply["auth_methods"])
    assert reply["auth_methods"]
    found = await entry(client, name)
    assert (found["login_required"], found["auth_methods"]) == (True, reply["auth_methods"])


async def test_codex_logs_in_with_a_key_and_out(
    serve: Serve, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/admin/agents/codex/authenticate"
    # A sandboxed agent does not see the home in which codex stores its login.
    server = await serve(default_agent=None, sandbox="off")
    status, reply = await server.admin().post(path, {"method_id": "api-key"})
    assert (status, reply["code"]) == (502, "login_required"), reply
    await server.stop()

    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-dummy-key")
    server = await serve(default_agent=None, sandbox="off", data_dir=tmp_path / "keyed")
    status, reply = await server.admin().post(path, {"method_id": "api-key"})
    assert (status, reply.get("agent")) == (200, "codex"), reply
    client = await server.client()
    methods = (await entry(client, "codex"))["auth_methods"]
    assert "api-key" in [method["id"] for method in methods]
    status, reply = await server.admin().post("/admin/agents/codex/logout")
    assert (status, reply.get("login_required")) == (200, True), reply
