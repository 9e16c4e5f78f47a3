"""OpenAI's chat API with the clients that people use: Node, LangChain, LiteLLM and ``llm``."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.agents.catalog import find_node

from ..support.caches import NotInstalledError
from ..support.client import Client
from ..support.harness import run_program, script
from . import installed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NODE = str(find_node())
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
USAGE = {"inputTokens": 10, "outputTokens": 2, "cachedReadTokens": 5, "totalTokens": 17}
ECHO = script({"echo": True})
STREAM = script(
    {"say": "one "}, {"say": "two"}, {"result": {"stopReason": "max_tokens", "usage": USAGE}}
)
FAIL = script({"say": "one"}, {"error": {"code": -32603, "message": "broken"}})


@pytest.fixture(scope="module")
def packages() -> Path:
    try:
        return installed.install()
    except NotInstalledError as error:
        pytest.skip(str(error))


async def run_client(
    client: Client, packages: Path, argv: Callable[[Path], tuple[str, ...]]
) -> tuple[dict[str, Any], str]:
    """Return what a program received, and the session that it continued."""
    session = await client.create()
    status, out, err = await run_program(
        *argv(packages),
        URL=client.url,
        TOKEN=str(client.token),
        PACKAGES=str(packages),
        SESSION=session,
        PIXEL=PIXEL,
        ECHO=ECHO,
        STREAM=STREAM,
        FAIL=FAIL,
        LITELLM_LOCAL_MODEL_COST_MAP="True",  # instead of a download
    )
    assert status == 0, out + err
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found, session


def python_program(name: str) -> Callable[[Path], tuple[str, ...]]:
    return lambda packages: (python_of(packages), str(installed.PROGRAMS / name))


def python_of(packages: Path) -> str:
    return str(packages / "python" / "bin" / "python")


def assert_conversation(text: str) -> None:
    assert "Be brief." in text
    assert "User: What is 2+2?\n\nAssistant: 4" in text
    assert text.endswith("And 3+3?")


async def test_openai_for_node_chats_and_continues_a_session(
    client: Client, packages: Path
) -> None:
    program = str(installed.PROGRAMS / "openai_client.mjs")
    found, session = await run_client(client, packages, lambda _: (NODE, program))
    assert "mock" in found["models"]
    assert (found["plain"], found["finish"]) == ("echo: hello", "stop")
    assert found["usage"]["total_tokens"] == 0
    assert_conversation(found["conversation"])
    assert '"type":"image"' in found["pictures"].replace(": ", ":")
    assert (found["pieces"], found["streamed"]) == (["one ", "two"], "one two")
    assert found["streamedFinish"] == "length"
    assert found["streamedUsage"]["total_tokens"] == 17
    assert found["continued"] == ["echo: one", "echo: two", "echo: three"]
    assert (await client.state(session))["turn_count"] == 3
    assert found["tools"] == ["echo: tools", "stop"]
    assert found["missing"] == ["NotFoundError", "model_not_found", 404, "string"]
    assert found["failed"] == ["InternalServerError", "agent_failed", 502, "string"]
    assert found["failedStream"] == ["APIError", "agent_failed", None, "string"]
    assert found["stranger"] == ["AuthenticationError", "unauthorized", 401, "string"]


async def test_langchain_chats_and_continues_a_session(client: Client, packages: Path) -> None:
    found, session = await run_client(client, packages, python_program("langchain_client.py"))
    assert (found["plain"], found["finish"]) == ("echo: hello", "stop")
    assert_conversation(found["conversation"])
    assert '"type":"image"' in found["pictures"].replace(": ", ":")
    assert (found["pieces"], found["streamed"]) == (["one ", "two"], "one two")
    assert found["streamed_usage"]["total_tokens"] == 17
    assert found["streamed_usage"]["input_token_details"]["cache_read"] == 5
    assert found["continued"] == ["echo: one", "echo: two"]
    assert (await client.state(session))["turn_count"] == 2
    assert found["tools"] == ["echo: tools", 0]
    assert found["missing"][1] == "model_not_found"
    assert found["failed"][1] == found["failed_stream"][1] == "agent_failed"


async def test_litellm_chats_and_continues_a_session(client: Client, packages: Path) -> None:
    found, session = await run_client(client, packages, python_program("litellm_client.py"))
    assert (found["plain"], found["finish"]) == ("echo: hello", "stop")
    assert '"type":"image"' in found["pictures"].replace(": ", ":")
    assert found["streamed"] == "one two"
    assert found["streamed_usage"]["total_tokens"] == 17
    assert found["continued"] == ["echo: one", "echo: two"]
    assert (await client.state(session))["turn_count"] == 2
    assert found["asynchronous"] == "echo: hello"
    assert found["missing"] == ["NotFoundError", "404"]
    assert found["failed"] == ["BadGatewayError", "502"]
    assert found["failed_stream"][0] != "none"


async def test_llm_chats_and_continues_a_session(
    client: Client, packages: Path, tmp_path: Path
) -> None:
    session = await client.create()
    home = tmp_path / "llm"
    home.mkdir()
    api = {"model_name": "mock", "api_base": f"{client.url}/v1", "api_key_name": "forge"}
    models = [
        {"model_id": "forge", "vision": True, **api},
        {"model_id": "forge-session", "headers": {"X-Session-Id": session}, **api},
        {"model_id": "forge-none", **api, "model_name": "none"},
    ]
    # YAML contains JSON.
    (home / "extra-openai-models.yaml").write_text(json.dumps(models))
    (home / "keys.json").write_text(json.dumps({"forge": client.token}))
    (home / "pixel.png").write_bytes(base64.b64decode(PIXEL))

    async def llm(*argv: str) -> tuple[int | None, str, str]:
        program = (python_of(packages), "-m", "llm")
        return await run_program(*program, *argv, LLM_USER_PATH=str(home))

    assert (await llm("-m", "forge", "hello"))[1] == "echo: hello\n"
    assert (await llm("-m", "forge", "--no-stream", "hello"))[1] == "echo: hello\n"
    _, again, _ = await llm("-c", "again")
    assert "User: hello" in again
    assert again.endswith("again\n")
    assert (await llm("-m", "forge-session", "one"))[1] == "echo: one\n"
    assert (await llm("-m", "forge-session", "-c", "two"))[1] == "echo: two\n"
    assert (await client.state(session))["turn_count"] == 2
    _, _, usage = await llm("-m", "forge", "-u", STREAM)
    assert "15 input, 2 output" in usage
    _, picture, _ = await llm("-m", "forge", "-s", "Be brief.", "what?", "-a", f"{home}/pixel.png")
    assert "Be brief." in picture
    assert "[image]" in picture
    status, _, message = await llm("-m", "forge-none", "x")
    assert (status, "there is no agent 'none'" in message) == (1, True)
