"""The OpenAPI document: it covers every call, and every response matches its schema."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import msgspec
import pytest

from server.agents.agent_state import Presence
from server.app import build_app
from server.config import Settings
from server.errors import ErrorCode
from server.web import openapi
from server.web.resources import endpoints, modules

from ..conftest import Serve
from ..support.harness import ADMIN, ROOT, LocalServer, script
from ..support.runs import make_fake_claude

ENDPOINTS = endpoints()
DOCUMENT = openapi.document(ENDPOINTS)
PAGES = re.compile(r"/(docs)?|/(static|lib)/.*")
CONFIG = ROOT / "tests" / "support" / "schemathesis.toml"
LONG = os.environ.get("CLAWDFORGE_TEST_CHAOS") == "long"
PHASES = "examples,coverage,fuzzing" if LONG else "coverage"
FUZZ_SECS = 240


def responses() -> list[tuple[str, dict[str, Any]]]:
    """Each response of each call, and its name."""
    return [
        (f"{method} {path} {status}", response)
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        for status, response in operation["responses"].items()
    ]


def check(value: Any, schema: dict[str, Any]) -> None:
    """Validate *value* against a schema of the document."""
    whole = {"components": DOCUMENT["components"], **schema}
    jsonschema_rs.Draft202012Validator(whole).validate(value)


async def test_document_lists_exactly_the_routes(tmp_path: Path) -> None:
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
    assert described == rest == {(one.method, one.path) for one in ENDPOINTS}


def test_every_struct_of_a_resource_is_described() -> None:
    used: set[Any] = set()
    for one in ENDPOINTS:
        used |= {one.body, one.form, one.query, one.headers, one.result, one.own_failure}
        used |= set(one.failure_results.values())
    schemas = DOCUMENT["components"]["schemas"]
    for module in modules():
        for struct in vars(module).values():
            if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
                # Records of other packages are not sent as they are.
                is_other = not struct.__module__.startswith("server.web.")
                is_private = struct.__name__.startswith("_") or is_other
                assert is_private or struct in used or struct.__name__ in schemas, struct


def test_document_lists_every_agent_state() -> None:
    described = DOCUMENT["components"]["schemas"]["SessionInfo"]["properties"]["agent_state"][
        "enum"
    ]
    assert set(described) == set(get_args(Presence))


def test_every_error_code_has_an_example() -> None:
    assert openapi.EXAMPLES.keys() == set(ErrorCode)


def test_schemas_are_valid_json_schema() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        for pattern in re.findall(r"'pattern': '([^']*)'", repr(schema)):
            assert not re.search(r"\\[AZ]", pattern), f"{name}: Python-only syntax"


def test_every_example_matches_its_schema() -> None:
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


async def test_document_needs_no_token(server: LocalServer) -> None:
    status, reply = await server.anonymous().get("/openapi.json")
    assert (status, reply) == (200, DOCUMENT)


async def test_responses_of_turns_and_permissions_match_their_schemas(server: LocalServer) -> None:
    client = await server.client()

    def schema_of(method: str, path: str, status: int) -> dict[str, Any]:
        content = DOCUMENT["paths"][path][method]["responses"][str(status)]["content"]
        return dict(content["application/json"]["schema"])

    session = await client.create(permission="ask")
    turn = "/sessions/{session_id}/turn"
    asking = asyncio.create_task(client.turn(session, script({"permission": {"kind": "edit"}})))
    socket = await client.connect(session, after=0)
    asked = await socket.until("permission_request")
    one = "/sessions/{session_id}"
    check(await client.state(session), schema_of("get", one, 200))
    status, reply = await client.post(
        f"/sessions/{session}/permissions/{asked['request_id']}", {"option_id": "allow_once"}
    )
    assert status == 200, reply
    check(reply, schema_of("post", "/sessions/{session_id}/permissions/{request_id}", 200))
    check((await asking)[1], schema_of("post", turn, 200))
    status, reply = await client.turn(session, script({"exit": 1}))
    assert status == 502
    check(reply, schema_of("post", turn, 502))
    unset = await client.create("mock-modes", mode="no-such-mode")
    status, reply = await client.turn(unset, "hello")
    assert (status, reply["turn_index"]) == (400, 1)
    check(reply, {"$ref": "#/components/schemas/TurnFailure"})
    assert {"$ref": "#/components/schemas/TurnFailure"} in schema_of("post", turn, 400)["anyOf"]
    assert reply["events"] == []
    status, reply = await client.turn(session, script({"hang": True}), timeout_secs=0.1)
    assert status == 504
    check(reply, schema_of("post", turn, 504))
    for closed in (await client.delete(f"/sessions/{session}"),) * 2:
        check(closed[1], schema_of("delete", one, 200))
    status, reply = await client.get(f"/sessions/{session}/events")
    assert {entry["type"] for entry in reply["entries"]} >= {
        *("turn_start", "event", "turn_end", "session_closed"),
        *("permission_request", "permission_resolved"),
    }
    check(reply, schema_of("get", "/sessions/{session_id}/events", 200))


@pytest.mark.slow
@pytest.mark.timeout(2 * FUZZ_SECS)
async def test_fuzzed_requests_get_documented_responses(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The debug mode of the event loop would take a third of the time.
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
            # A cache of tables of Unicode, which take seconds to compute.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"),
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
    report = output.decode()
    assert process.returncode == 0, report[-10_000:]
    # All calls except the document itself.
    assert f"Tested: {len(ENDPOINTS) - 1}\n" in report, report
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert not [one for one in errors if one.name.startswith("server.")]
