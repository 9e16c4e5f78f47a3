"""The limits of ``POST /run``, and servers that stop or are killed during runs."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path

import aiohttp
import pytest

from server.data_dir import DataDir

from ..conftest import Serve, Spawn
from ..support.harness import (
    Client,
    Json,
    LocalServer,
    descendants,
    eventually,
    is_running,
    mock_agent,
    new_client,
    script,
)
from ..support.runs import (
    fail,
    is_clean,
    make_fake_claude,
    pid_in,
    read_rows,
    rows,
    run,
    steps,
    until_ended,
)


@pytest.fixture
def fake_claude(tmp_path: Path) -> str:
    return make_fake_claude(tmp_path)


def _is_queued(server: LocalServer, count: int) -> bool:
    """Whether one run is in progress, and *count* runs wait."""
    runner = server.services.runner
    return (runner.running, runner.queued) == (1, count)


async def test_program_gets_only_allowed_environment(
    serve: Serve, fake_claude: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a key")
    monkeypatch.setenv("CLAWDFORGE_ADMIN_TOKEN", "a secret")
    monkeypatch.setenv("SOMETHING_ELSE", "private")
    client = await (await serve(claude_bin=fake_claude)).client()
    environ = (await run(client, steps({"report": True})))["env"]
    assert environ["ANTHROPIC_API_KEY"].startswith("sk-cf-")  # of the key proxy
    assert not [name for name in environ if name.startswith("CLAWDFORGE_")]
    assert "SOMETHING_ELSE" not in environ


async def test_missing_configured_program_is_unavailable(serve: Serve) -> None:
    server = await serve(claude_bin="/no/such/claude")
    client = await server.client()
    for body in ({}, {"agent": "claude"}):
        reply = await fail(client, "x", **body)
        assert (reply["code"], reply["stop_reason"]) == ("agent_unavailable", "error")
        assert "npm install" in reply["error"]
    assert [row.error for row in await rows(server)] == ["agent_unavailable"] * 2


async def test_program_that_cannot_be_started_reports_cause(serve: Serve, tmp_path: Path) -> None:
    program = tmp_path / "claude"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    client = await (await serve(claude_bin=str(program))).client()
    reply = await fail(client, "x")
    assert "No such file or directory" in reply["error"]
    assert "No such file or directory" in reply["stderr"]


async def test_run_without_folder_fails_as_internal(
    own_server: LocalServer, own_client: Client
) -> None:
    runs = DataDir.of(own_server.services.settings).runs
    runs.rmdir()
    runs.touch()
    status, reply = await own_client.post("/run", {"prompt": "x"})
    assert (status, reply["code"]) == (502, "internal")
    assert (await rows(own_server))[-1].error == "internal"


async def test_time_limit_of_server_applies(serve: Serve, fake_claude: str) -> None:
    server = await serve(claude_bin=fake_claude, run_timeout_secs=0.2)
    reply = await fail(await server.client(), steps({"sleep": 100}), timeout_secs=100)
    assert reply["stop_reason"] == "timeout"


@pytest.mark.slow
async def test_killed_server_leaves_no_process_or_folder_of_runs(
    spawn: Spawn, http: aiohttp.ClientSession, fake_claude: str, tmp_path: Path
) -> None:
    process = await spawn(CLAUDE_BIN=fake_claude)
    client = await new_client(process.url, http)
    tool, program = tmp_path / "tool", tmp_path / "program"
    prompt = steps(
        {"ignore_sigterm": True}, {"touch": str(program)}, {"spawn": str(tool)}, {"sleep": 100}
    )
    other = script({"touch": str(tmp_path / "other")}, {"hang": True})
    asked = [
        asyncio.create_task(client.post("/run", {"prompt": prompt})),
        asyncio.create_task(client.post("/run", {"prompt": other, "agent": "mock"})),
    ]
    await eventually("the ACP agent to run", (tmp_path / "other").exists)
    below = {await pid_in(program), await pid_in(tool), *descendants(process.pid)}
    await process.kill()
    await asyncio.gather(*asked, return_exceptions=True)
    for pid in below:
        await until_ended(pid)
    await spawn(CLAUDE_BIN=fake_claude)
    found = await asyncio.to_thread(read_rows, tmp_path / "data")
    assert [(row.stop_reason, row.error) for row in found] == [("error", "server_restarted")] * 2
    for kind in ("runs", "acpx/sessions"):
        assert list((tmp_path / "data" / kind).iterdir()) == []


async def test_fifty_concurrent_runs_are_executed_or_refused(
    serve: Serve, fake_claude: str, tmp_path: Path
) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=4, run_queue=10)
    client = await server.client()
    runner, gate = server.services.runner, tmp_path / "gate"

    async def ask(number: int) -> tuple[int, Json]:
        prompt = steps(
            {"touch": str(tmp_path / f"began-{number}")},
            {"gate": str(gate)},
            {"result": str(number)},
        )
        return await client.post("/run", {"prompt": prompt})

    asked = [asyncio.create_task(ask(number)) for number in range(50)]
    await eventually("36 to be refused", lambda: sum(task.done() for task in asked) == 36)
    assert int(client.last_headers["Retry-After"]) > 0
    assert (runner.running, runner.queued) == (4, 10)
    await eventually("four to begin", lambda: len(list(tmp_path.glob("began-*[0-9]"))) == 4)
    gate.touch()
    answers = await asyncio.gather(*asked)
    assert sorted(status for status, _ in answers) == [200] * 14 + [503] * 36
    for number, (status, reply) in enumerate(answers):
        if status == 200:
            assert reply["result"] == number
        else:
            assert (reply["ok"], reply["code"]) == (False, "pool_full")
    assert (runner.running, runner.queued) == (0, 0)
    assert is_clean(server)


async def test_queued_runs_start_in_order(serve: Serve, fake_claude: str, tmp_path: Path) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1)
    gate = tmp_path / "gate"
    prompts = [steps({"gate": str(gate)}), *("x" * size for size in (5, 3, 4, 1, 2))]
    asked = []
    for queued, prompt in enumerate(prompts):
        client = await server.client(f"app-{queued}")
        asked.append(asyncio.create_task(client.post("/run", {"prompt": prompt})))
        await eventually("the run to be queued", functools.partial(_is_queued, server, queued))
    gate.touch()
    await asyncio.gather(*asked)
    assert [row.prompt_bytes for row in await rows(server)][1:] == [5, 3, 4, 1, 2]


async def test_run_is_refused_after_longest_wait(serve: Serve, fake_claude: str) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1, run_queue_secs=0.1)
    client = await server.client()
    held = asyncio.create_task(client.post("/run", {"prompt": steps({"sleep": 100})}))
    await eventually("the run to begin", lambda: server.services.runner.running == 1)
    status, reply = await client.post("/run", {"prompt": "x"})
    assert (status, reply["code"]) == (503, "pool_full")
    assert len(await rows(server)) == 1  # a refused run has no row
    held.cancel()


async def test_disconnect_of_client_leaves_queue(serve: Serve, fake_claude: str) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1, run_queue=1)
    client = await server.client()
    runner = server.services.runner
    asked = []
    for queued in (0, 1):
        asked.append(asyncio.create_task(client.post("/run", {"prompt": steps({"sleep": 100})})))
        await eventually("the run to be queued", functools.partial(_is_queued, server, queued))
    asked[1].cancel()
    await eventually("the queue to be empty", lambda: runner.queued == 0)
    assert runner.running == 1
    asked[0].cancel()
    assert await run(client, "x") == "x"


async def test_stopping_server_ends_runs(serve: Serve, fake_claude: str, tmp_path: Path) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1, drain_secs=0)
    client = await server.client()
    tool = tmp_path / "tool"
    prompt = steps({"spawn": str(tool)}, {"sleep": 100})
    running = asyncio.create_task(client.post("/run", {"prompt": prompt}))
    pid = await pid_in(tool)
    queued = asyncio.create_task(client.post("/run", {"prompt": "x"}))
    await eventually("one run to wait", lambda: server.services.runner.queued == 1)
    await server.stop()
    status, reply = await running
    assert (status, reply["code"], reply["stop_reason"]) == (502, "server_restarted", "cancelled")
    status, reply = await queued
    assert (status, reply["code"]) == (503, "draining")
    assert not is_running(pid)


async def test_stopping_server_waits_for_runs(
    serve: Serve, fake_claude: str, tmp_path: Path
) -> None:
    server = await serve(claude_bin=fake_claude, drain_secs=20)
    client = await server.client()
    began, gate = tmp_path / "began", tmp_path / "gate"
    prompt = steps({"touch": str(began)}, {"gate": str(gate)}, {"result": "done"})
    running = asyncio.create_task(run(client, prompt))
    await pid_in(began)
    stopping = asyncio.create_task(server.stop())
    await eventually("the stop to begin", lambda: server.services.sessions.is_draining)
    gate.touch()
    assert await running == "done"
    await stopping


async def test_row_of_run_contains_no_text(serve: Serve, fake_claude: str) -> None:
    server = await serve(claude_bin=fake_claude)
    client = await server.client()
    await run(client, "do you remember zanzibar?", model="opus")
    await fail(client, steps({"stderr": "zanzibar"}, {"exit": 1}))
    await run(client, "zanzibar", agent="mock")
    good, bad, other = await rows(server)
    assert (good.app_name, good.agent, good.model) == ("app", "claude", "opus")
    assert (good.prompt_bytes, good.result_bytes) == (25, 27)
    assert (good.stop_reason, good.error) == ("end_turn", None)
    assert good.duration_ms is not None
    assert good.duration_ms > 0
    assert abs(good.started_at - time.time()) < 60
    assert (bad.stop_reason, bad.error, bad.result_bytes) == ("error", "agent_failed", None)
    assert other.agent == "mock"
    await server.stop()
    data = server.services.settings.data_dir
    stored = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert b"zanzibar" not in stored


async def test_default_agent_replaces_missing_claude(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # claude is not installed
    server = await serve()
    client = await server.client()
    assert await run(client, "hello", effort="low") == "echo: hello"
    assert (await rows(server))[-1].agent == "mock"
    reply = await fail(client, "hello", agent="claude")
    assert reply["code"] == "agent_unavailable"


async def test_claude_adapter_replaces_missing_claude(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # claude is not installed
    server = await serve(agents={"claude": mock_agent()}, default_agent=None)
    client = await server.client()
    for body in ({}, {"agent": "claude"}, {"agent": "claude", "effort": "low"}):
        assert await run(client, "hello", **body) == "echo: hello"
    assert {row.agent for row in await rows(server)} == {"claude"}
