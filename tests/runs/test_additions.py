"""``POST /run`` for clients that ask for more: a schema, usage, updates, a later response."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from server.agent_commands import AgentCommand

from ..conftest import Serve, Spawn
from ..support.client import Client, Json, failure
from ..support.harness import ROOT, LocalServer, eventually, new_client
from ..support.runs import make_fake_claude, run, steps

SCHEMA = {
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"type": "integer"}},
    "additionalProperties": False,
}
USAGE = {
    "input_tokens": 10,
    "output_tokens": 2,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 4,
}


def answering(*answers: str) -> AgentCommand:
    program = ROOT / "tests" / "stand_ins" / "answering_agent.py"
    return AgentCommand((sys.executable, "-IS", str(program), *answers), {})


async def post(client: Client, prompt: str, **body: Any) -> tuple[int, Json]:
    return await client.post("/run", {"prompt": prompt, **body})


async def keyed(client: Client, key: str, prompt: str, **body: Any) -> tuple[int, Json]:
    headers = {**client.headers(), "Idempotency-Key": key}
    return await client.call("POST", "/run", {"prompt": prompt, **body}, headers=headers)


async def until_done(client: Client, run_id: str) -> tuple[int, Json]:
    async def is_done() -> bool:
        return (await client.get(f"/run/{run_id}"))[0] != 202

    await eventually("the run to end", is_done)
    return await client.get(f"/run/{run_id}")


# Schema


async def test_result_of_claude_is_its_structured_output(client: Client) -> None:
    assert await run(client, steps({"structured": {"n": 1}}), schema=SCHEMA) == {"n": 1}
    report = await run(client, steps({"report": True}), schema={"type": "object"})
    assert json.loads(report["argv"][report["argv"].index("--json-schema") + 1]) == {
        "type": "object"
    }


@pytest.mark.parametrize(
    "step", [{"structured": {"n": "one"}}, {"structured": {"n": 1, "m": 2}}, {"result": "no JSON"}]
)
async def test_invalid_result_of_claude_is_schema_failed(client: Client, step: Json) -> None:
    status, reply = await post(client, steps(step), schema=SCHEMA)
    assert (status, reply["code"], reply["stop_reason"]) == (422, "schema_failed", "error")
    assert {"stderr", "duration_ms", "retryable", "request_id"} <= reply.keys()


async def test_agent_is_asked_until_its_result_is_valid(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWERING_LOG", str(tmp_path / "prompts"))
    agents = {"picky": answering("no JSON", '```json\n{"n": "1"}\n```', '{"n": 1}')}
    server = await serve(agents=agents, default_agent="picky", agent_env=("ANSWERING_LOG",))
    client = await server.client()
    status, reply = await post(
        client, "Count.", agent="picky", schema=SCHEMA, include=["usage", "session_id"]
    )
    assert (status, reply["result"], reply["session_id"]) == (200, {"n": 1}, "the-conversation")
    cost = {"amount": 0.25, "currency": "USD"}
    assert reply["usage"] == {"input_tokens": 30, "output_tokens": 6, "cost": cost}
    prompts = [json.loads(line) for line in (tmp_path / "prompts").read_text().splitlines()]
    assert len(prompts) == 3
    assert json.dumps(SCHEMA, separators=(",", ":")) in prompts[0]
    assert prompts[0].endswith("Count.")
    assert "result['n']" in prompts[2]
    status, reply = await post(client, "Count.", agent="picky", schema=SCHEMA, max_attempts=2)
    assert (status, reply["code"]) == (422, "schema_failed")
    assert "result['n']" in reply["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"schema": {"type": "no such type"}},
        {"schema": {"$ref": "http://127.0.0.1:9/schema"}},
        {"schema": {"enum": ["x" * 70_000]}},
        {"schema": [1]},
        {"schema": SCHEMA, "max_attempts": 0},
        {"schema": SCHEMA, "max_attempts": 6},
        {"include": ["everything"]},
        {"background": "yes"},
    ],
)
async def test_bad_field_is_refused(client: Client, body: Json) -> None:
    failure(await client.post("/run", {"prompt": "x", **body}), 400, "bad_request")


# Usage


async def test_usage_and_session_are_added_if_asked_for(client: Client) -> None:
    script = steps({"result": "4", "usage": USAGE, "total_cost_usd": 0.5, "session_id": "abc"})
    _, reply = await post(client, script, include=["usage", "session_id"])
    assert list(reply) == ["ok", "result", "duration_ms", "stop_reason", "usage", "session_id"]
    assert reply["session_id"] == "abc"
    assert reply["usage"] == {
        "input_tokens": 10,
        "output_tokens": 2,
        "cached_read_tokens": 3,
        "cached_write_tokens": 4,
        "cost": {"amount": 0.5, "currency": "USD"},
    }
    _, reply = await post(client, script)
    assert list(reply) == ["ok", "result", "duration_ms", "stop_reason"]


# Server-sent events


async def events_of(
    client: Client, prompt: str, headers: dict[str, str] | None = None, **body: Any
) -> list[tuple[str, Json]]:
    headers = {**client.headers(), **(headers or {}), "Accept": "text/event-stream"}
    url = f"{client.url}/run"
    async with client.http.post(url, json={"prompt": prompt, **body}, headers=headers) as response:
        assert response.status == 200
        text = (await response.read()).decode()
    found = []
    for event in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


async def test_updates_arrive_before_the_result(client: Client) -> None:
    update = {"type": "assistant", "message": {"content": []}}
    script = steps({"print": json.dumps(update)}, {"print": "not JSON"}, {"result": "4"})
    events = await events_of(client, script)
    assert events[:-1] == [("update", update)]
    assert events[-1][0] == "result"
    assert events[-1][1]["result"] == 4
    report = (await events_of(client, steps({"report": True})))[-1][1]["result"]
    at = report["argv"].index("--output-format")
    assert report["argv"][at + 1] == "stream-json"
    assert "--verbose" in report["argv"]


async def test_updates_of_an_agent_are_its_raw_messages(client: Client) -> None:
    events = await events_of(client, "hello", agent="mock")
    updates = [event["params"]["update"] for name, event in events if name == "update"]
    texts = [update["content"]["text"] for update in updates if "content" in update]
    assert texts == ["echo: hello"]
    assert events[-1][1]["result"] == "echo: hello"


async def test_failure_is_the_last_event(client: Client) -> None:
    [(name, reply)] = await events_of(client, steps({"exit": 3}))
    assert (name, reply["ok"], reply["code"]) == ("result", False, "agent_failed")


async def test_client_that_leaves_the_stream_ends_the_run(serve: Serve, tmp_path: Path) -> None:
    server = await serve(stream_keep_alive_secs=0.1)  # the connection is tried with each comment
    client = await server.client()
    headers = {**client.headers(), "Accept": "text/event-stream"}
    prompt = steps({"touch": str(tmp_path / "begun")}, {"sleep": 60})
    response = await client.http.post(f"{client.url}/run", json={"prompt": prompt}, headers=headers)
    await eventually("the run to begin", (tmp_path / "begun").exists)
    response.close()
    await eventually("the run to end", lambda: server.services.runner.running == 0)


# In the background


async def test_background_run_is_fetched_later(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    prompt = steps({"gate": str(gate)}, {"result": "4"})
    status, reply = await post(client, prompt, background=True, include=["usage"])
    assert (status, list(reply)) == (202, ["ok", "run_id"])
    path = f"/run/{reply['run_id']}"
    assert (await client.get(path))[0] == 202
    other = await server.client("another")
    failure(await other.get(path), 404, "not_found")
    failure(await other.delete(path), 404, "not_found")
    gate.touch()
    status, fetched = await until_done(client, reply["run_id"])
    assert (status, fetched["result"], fetched["usage"]) == (200, 4, {})
    assert await client.get(path) == (200, fetched)
    failure(await other.get(path), 404, "not_found")


async def test_failed_background_run_is_fetched_as_failure(client: Client) -> None:
    _, reply = await post(client, steps({"exit": 3}), background=True)
    status, fetched = await until_done(client, reply["run_id"])
    assert (status, fetched["code"], fetched["ok"]) == (502, "agent_failed", False)


async def test_deleted_run_ends_and_is_not_found(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    prompt = steps({"touch": str(tmp_path / "begun")}, {"sleep": 60})
    _, reply = await post(client, prompt, background=True)
    await eventually("the run to begin", (tmp_path / "begun").exists)
    path = f"/run/{reply['run_id']}"
    assert await client.delete(path) == (200, {"ok": True, "run_id": reply["run_id"]})
    failure(await client.get(path), 404, "not_found")
    failure(await client.delete(path), 404, "not_found")
    await eventually("the run to end", lambda: server.services.runner.running == 0)
    failure(await client.get(path), 404, "not_found")


# Idempotency


async def test_repeated_key_runs_nothing(client: Client, tmp_path: Path) -> None:
    script = steps({"report": True})
    first = await keyed(client, "a", script)
    assert await keyed(client, "a", script) == first
    assert (await keyed(client, "b", script))[1]["result"] != first[1]["result"]
    gate = tmp_path / "gate"
    waiting = [
        asyncio.create_task(keyed(client, "c", steps({"gate": str(gate)}, {"report": True})))
        for _ in range(5)
    ]
    gate.touch()
    replies = await asyncio.gather(*waiting)
    assert replies == [replies[0]] * 5
    failed = await keyed(client, "d", steps({"exit": 3}))
    assert await keyed(client, "d", steps({"result": "4"})) == failed
    assert (await keyed(client, "c", "x", background=True))[0] == 202


async def test_key_belongs_to_its_app(server: LocalServer, client: Client) -> None:
    other = await server.client("another")
    first = await keyed(client, "same", steps({"report": True}))
    assert (await keyed(other, "same", steps({"report": True})))[1]["result"] != first[1]["result"]


async def test_run_with_a_key_survives_its_client(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    prompt = steps({"touch": str(tmp_path / "begun")}, {"gate": str(gate)}, {"result": "4"})
    request = asyncio.create_task(keyed(client, "k", prompt))
    await eventually("the run to begin", (tmp_path / "begun").exists)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    gate.touch()
    assert (await keyed(client, "k", "another prompt"))[1]["result"] == 4


async def test_run_with_a_key_streams_like_any_other(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    update = {"type": "assistant", "message": {"content": []}}
    prompt = steps({"print": json.dumps(update)}, {"gate": str(gate)}, {"result": "4"})
    headers = {**client.headers(), "Accept": "text/event-stream", "Idempotency-Key": "stream"}
    body = {"prompt": prompt}
    async with client.http.post(f"{client.url}/run", json=body, headers=headers) as response:
        assert response.status == 200
        assert await response.content.readuntil(b"event: update\n")  # while the run is in progress
    repeated = asyncio.create_task(events_of(client, prompt, headers={"Idempotency-Key": "stream"}))
    gate.touch()
    [(name, reply)] = await repeated
    assert (name, reply["result"]) == ("result", 4)
    assert await keyed(client, "stream", prompt) == (200, reply)


@pytest.mark.slow
async def test_responses_survive_a_killed_server(spawn: Spawn, http: Any, tmp_path: Path) -> None:
    claude = make_fake_claude(tmp_path)
    server = await spawn(CLAUDE_BIN=claude)
    client = await new_client(server.url, http)
    done = await keyed(client, "done", steps({"result": "4"}))
    prompt = steps({"touch": str(tmp_path / "begun")}, {"sleep": 60})
    _, begun = await post(client, prompt, background=True)
    await eventually("the run to begin", (tmp_path / "begun").exists)
    await server.kill()
    server = await spawn(CLAUDE_BIN=claude)
    client = Client(server.url, client.token, http)
    assert await keyed(client, "done", "x") == done
    status, reply = await client.get(f"/run/{begun['run_id']}")
    assert (status, reply["code"], reply["retryable"]) == (502, "server_restarted", True)


async def test_stored_responses_of_an_app_are_limited(serve: Serve, tmp_path: Path) -> None:
    server = await serve(
        claude_bin=make_fake_claude(tmp_path), max_run_result_bytes_per_app=2_500_000
    )
    client = await server.client()
    other = await server.client("another")
    theirs = (await post(other, steps({"result": "4"}), background=True))[1]["run_id"]
    await until_done(other, theirs)
    ids = []
    for _ in range(3):
        _, reply = await post(client, steps({"result": "x" * 1_000_000}), background=True)
        ids.append(reply["run_id"])
        await until_done(client, ids[-1])
    assert [(await client.get(f"/run/{run_id}"))[0] for run_id in ids] == [404, 200, 200]
    assert (await other.get(f"/run/{theirs}"))[0] == 200


async def test_revocation_ends_background_runs(serve: Serve, tmp_path: Path) -> None:
    server = await serve(claude_bin=make_fake_claude(tmp_path))
    client = await server.client("short-lived")
    prompt = steps({"touch": str(tmp_path / "begun")}, {"sleep": 60})
    await post(client, prompt, background=True)
    await eventually("the run to begin", (tmp_path / "begun").exists)
    await server.admin().delete("/admin/tokens/short-lived")
    await eventually("the run to end", lambda: server.services.runner.running == 0)
