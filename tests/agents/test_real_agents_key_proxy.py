"""Real agents work through the key proxy, at each level, and never see the key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ..conftest import Serve
from ..support.anthropic_stand_in import StandIn, Text
from ..support.harness import texts_of
from ..support.sandboxes import mechanism
from .test_real_agents_ask import AGENTS, Real, api, machine, write_json

pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]
__all__ = ["api", "machine"]

KEY = "sk-the-real-key-of-the-operator"
QUIET = {"check_for_update_on_startup": False, "analytics": {"enabled": False}}


def claude(_: Path, api: StandIn) -> dict[str, str]:
    return {**api.environ, "ANTHROPIC_API_KEY": KEY, "CLAUDE_CODE_MAX_RETRIES": "0"}


def claude_subscription(home: Path, api: StandIn) -> dict[str, str]:
    environ = claude(home, api)
    del environ["ANTHROPIC_API_KEY"]
    return {**environ, "CLAUDE_CODE_OAUTH_TOKEN": KEY}


def codex(home: Path, api: StandIn) -> dict[str, str]:
    return {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{api.url}/v1",
        "CODEX_CONFIG": json.dumps(QUIET),
    }


def codex_with_a_provider(home: Path, api: StandIn) -> dict[str, str]:
    AGENTS["codex"].prepare(home, api)
    (home / ".codex" / "auth.json").unlink()
    return {"OPENAI_API_KEY": KEY}


def codex_with_a_stored_login(home: Path, api: StandIn) -> dict[str, str]:
    AGENTS["codex"].prepare(home, api)
    write_json(home / ".codex" / "auth.json", {"OPENAI_API_KEY": KEY})
    return {}


def gemini(home: Path, api: StandIn) -> dict[str, str]:
    return {**AGENTS["gemini"].prepare(home, api), "GEMINI_API_KEY": KEY}


def qwen(home: Path, api: StandIn) -> dict[str, str]:
    environ = AGENTS["qwen"].prepare(home, api)
    path = home / ".qwen" / "settings.json"
    settings = json.loads(path.read_text("utf-8"))
    del settings["modelProviders"]  # qwen prefers their addresses to that of the key proxy
    write_json(path, settings)
    return {**environ, "OPENAI_API_KEY": KEY}


def opencode(home: Path, api: StandIn) -> dict[str, str]:
    limit = {"context": 100_000, "output": 4_000}
    config = {
        "provider": {"anthropic": {"models": {"model": {"name": "model", "limit": limit}}}},
        "enabled_providers": ["anthropic"],
        "model": "anthropic/model",
        "autoupdate": False,
        "share": "disabled",
    }
    return {
        **AGENTS["opencode"].prepare(home, api),
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": api.url,
    }


REAL = {
    "claude-0.76": dataclasses.replace(AGENTS["claude-0.76"], prepare=claude),
    "claude-newest": dataclasses.replace(AGENTS["claude-newest"], prepare=claude),
    "claude-subscription": dataclasses.replace(
        AGENTS["claude-newest"], prepare=claude_subscription
    ),
    "codex": dataclasses.replace(AGENTS["codex"], prepare=codex),
    "codex-provider": dataclasses.replace(AGENTS["codex"], prepare=codex_with_a_provider),
    "codex-stored": dataclasses.replace(AGENTS["codex"], prepare=codex_with_a_stored_login),
    "gemini": dataclasses.replace(AGENTS["gemini"], prepare=gemini),
    "opencode": dataclasses.replace(AGENTS["opencode"], prepare=opencode),
    "qwen": dataclasses.replace(AGENTS["qwen"], prepare=qwen),
}


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest) -> Real:
    return REAL[request.param]


@pytest.mark.parametrize("level", ["landlock", "bwrap"])
async def test_agent_answers_through_the_key_proxy(
    serve: Serve, machine: Path, real: Real, api: StandIn, level: str
) -> None:
    mechanism(level)
    server = await serve(default_agent=None, sandbox=level, sandbox_write=(), key_proxy="on")
    client = await server.client()
    session = await client.create(real.name)
    api.always(Text("Done."))
    status, reply = await client.turn(session, "Say it.")
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    assert "Done." in texts_of(reply["events"])
    assert api.keys == {KEY}
    state = await client.state(session)
    assert state["usage"]["input_tokens"] > 0
    assert state["usage"]["output_tokens"] > 0
    home = server.services.settings.data_dir / "homes" / session
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert KEY.encode() not in path.read_bytes(), path
