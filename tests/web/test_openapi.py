"""REST's own description: complete, true of every answer, and shown on a page."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema  # type: ignore[import-untyped]
import pytest

from server.agents.base import Presence
from server.app import build_app
from server.config import Settings
from server.errors import STATUS
from server.web import openapi
from server.web.operations import OPERATIONS

from ..conftest import Serve
from ..support.harness import ADMIN, ROOT, LocalServer, script
from ..support.runs import make_fake_claude

DOCUMENT = openapi.document()
PAGES = re.compile(r"/(docs)?|/(static|lib)/.*")
CONFIG = ROOT / "tests" / "support" / "schemathesis.toml"
LONG = os.environ.get("CLAWDFORGE_TEST_CHAOS") == "long"
PHASES = "examples,coverage,fuzzing" if LONG else "coverage"
FUZZ_SECS = 100


def responses() -> list[tuple[str, dict[str, Any]]]:
    """Each response of each call, and where it stands."""
    return [
        (f"{method} {path} {status}", response)
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        for status, response in operation["responses"].items()
    ]


def check(value: Any, schema: dict[str, Any]) -> None:
    """Hold *value* against a schema of the document."""
    whole = {"components": DOCUMENT["components"], **schema}
    jsonschema.Draft202012Validator(whole).validate(value)


async def test_every_route_is_in_the_document_and_no_other(tmp_path: Path) -> None:
    application = await build_app(Settings(data_dir=tmp_path))
    routes = {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    rest = {(method, path) for method, path in routes if not PAGES.fullmatch(path)}
    described = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert described == rest == OPERATIONS.keys()


def test_every_shape_that_requests_are_checked_with_is_described_and_no_other() -> None:
    source = "".join(
        path.read_text("utf-8") for path in (ROOT / "server" / "web" / "resources").glob("*.py")
    )
    used = set(re.findall(r"\bbodies\.([A-Z]\w+)", source))
    named = {
        shape.__name__
        for operation in OPERATIONS.values()
        for shape in (operation.body, operation.query, operation.headers)
        if shape is not None and shape.__module__ == "server.web.bodies"
    }
    assert named == used


def test_every_state_of_an_agent_is_in_the_document() -> None:
    described = DOCUMENT["components"]["schemas"]["Session"]["properties"]["agent_state"]["enum"]
    assert set(described) == set(get_args(Presence))


def test_every_code_is_explained() -> None:
    assert openapi.CODES.keys() == STATUS.keys()


def test_the_schemas_are_schemas() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        for pattern in re.findall(r"'pattern': '([^']*)'", repr(schema)):
            assert not re.search(r"\\[AZ]", pattern), f"{name}: only Python knows that"


def test_every_example_has_its_shape() -> None:
    seen = 0
    for operation in (one for item in DOCUMENT["paths"].values() for one in item.values()):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in media:
                check(media["example"], media["schema"])
                seen += 1
    for _, response in responses():
        for media in response.get("content", {}).values():
            examples = [one["value"] for one in media.get("examples", {}).values()]
            if "example" in media:
                examples.append(media["example"])
            assert examples or media["schema"]["$ref"].endswith("Failure")
            for example in examples:
                check(example, media["schema"])
                seen += 1
    assert seen > 100


async def test_the_document_needs_no_token(server: LocalServer) -> None:
    status, reply = await server.anonymous().get("/openapi.json")
    assert (status, reply) == (200, DOCUMENT)


async def test_answers_that_chance_does_not_find_have_their_shape(server: LocalServer) -> None:
    client = await server.client()

    def answer(method: str, path: str, status: int) -> dict[str, Any]:
        content = DOCUMENT["paths"][path][method]["responses"][str(status)]["content"]
        return dict(content["application/json"]["schema"])

    session = await client.create(permission="ask")
    turn = "/sessions/{session_id}/turn"
    asking = asyncio.create_task(client.turn(session, script({"permission": {"kind": "edit"}})))
    socket = await client.connect(session, after=0)
    asked = await socket.until("permission_request")
    one = "/sessions/{session_id}"
    check(await client.state(session), answer("get", one, 200))
    status, reply = await client.post(
        f"/sessions/{session}/permissions/{asked['request_id']}", {"option_id": "allow_once"}
    )
    assert status == 200, reply
    check(reply, answer("post", "/sessions/{session_id}/permissions/{request_id}", 200))
    check((await asking)[1], answer("post", turn, 200))
    status, reply = await client.turn(session, script({"exit": 1}))
    assert status == 502
    check(reply, answer("post", turn, 502))
    unset = await client.create("mock-modes", mode="no-such-mode")
    status, reply = await client.turn(unset, "hello")
    assert (status, reply["turn_index"]) == (400, 1)
    check(reply, {"$ref": "#/components/schemas/TurnFailure"})
    assert {"$ref": "#/components/schemas/TurnFailure"} in answer("post", turn, 400)["anyOf"]
    assert reply["events"] == []
    status, reply = await client.turn(session, script({"hang": True}), timeout_secs=0.1)
    assert status == 504
    check(reply, answer("post", turn, 504))
    for closed in (await client.delete(f"/sessions/{session}"),) * 2:
        check(closed[1], answer("delete", one, 200))
    status, reply = await client.get(f"/sessions/{session}/events")
    assert {entry["type"] for entry in reply["entries"]} >= {
        *("turn_start", "event", "turn_end", "session_closed"),
        *("permission_request", "permission_resolved"),
    }
    check(reply, answer("get", "/sessions/{session_id}/events", 200))


@pytest.mark.timeout(2 * FUZZ_SECS)
async def test_no_request_gets_an_undocumented_answer_or_breaks_the_server(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Debugging a loop takes a third of the time of hundreds of requests.
    asyncio.get_running_loop().set_debug(False)
    server = await serve(claude_bin=make_fake_claude(tmp_path), max_sessions_per_app=100_000)
    client = await server.client()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *("run", f"{server.url}/openapi.json", "--url", server.url, "--warnings", "off"),
        *("--phases", PHASES),
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
            "FUZZ_TOKEN": str(client.token),
            "FUZZ_ADMIN": ADMIN,
            "FUZZ_SESSION": await client.create(),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(FUZZ_SECS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    told = output.decode()
    assert process.returncode == 0, told[-10_000:]
    # All but the document's own.
    assert f"Tested: {len(OPERATIONS) - 1}\n" in told, told
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert not [one for one in errors if one.name.startswith("server.")]
