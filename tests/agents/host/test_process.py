"""Failures of the acpx host: killed, frozen, noisy, or of the wrong version."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import platform
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from server.agents import catalog
from server.agents.host import calls, process
from server.agents.process import supervise
from server.errors import StartError

from ...conftest import Serve
from ...support.engine import only_sqlite
from ...support.harness import (
    ROOT,
    Client,
    Socket,
    descendants,
    eventually,
    is_running,
    mock_agent,
    script,
    texts_of,
)
from ...support.processes import processes_of

HANG = script({"say": "hanging"}, {"hang": True})
HISTORY = script({"history": True})


def processes_of_the_host() -> list[int]:
    """The supervisor, the host and the agents. The server has other processes, which stay."""
    (supervisor,) = processes_of("supervise.py")
    return [supervisor, *descendants(supervisor)]


def has_slices() -> bool:
    """Whether a process can set its scheduler slice on this kernel."""
    major, minor = platform.release().split(".")[:2]
    return (int(major), int(minor)) >= (6, 12) and platform.machine() in supervise.SYS_SCHED_SETATTR


def slice_ns(pid: int) -> int:
    attributes = ctypes.create_string_buffer(supervise.SCHED_ATTR.size)
    sched_getattr = supervise.SYS_SCHED_SETATTR[platform.machine()] + 1
    ctypes.CDLL(None).syscall(sched_getattr, pid, attributes, len(attributes), 0)
    return int(supervise.SCHED_ATTR.unpack(attributes.raw)[5])


def kill(program: str) -> None:
    (pid,) = processes_of(program)
    os.kill(pid, signal.SIGKILL)


async def running_turns(client: Client, count: int) -> list[Socket]:
    """Sockets of *count* sessions, each in the middle of its second turn."""
    sockets = []
    for number in range(count):
        socket = await client.connect(await client.create(), after=0)
        await socket.turn(f"I am {number}")
        await socket.send("prompt", prompt=HANG)
        await socket.until_text("hanging")
        sockets.append(socket)
    return sockets


@pytest.mark.parametrize(
    "victim", ["host.mjs", pytest.param("supervise.py", marks=pytest.mark.slow)]
)
async def test_killed_host_fails_its_turns_and_sessions_keep_their_context(
    own_client: Client, victim: str
) -> None:
    sockets = await running_turns(own_client, 3)
    before = processes_of_the_host()
    kill(victim)
    for socket in sockets:
        end = await socket.until("turn_end", turn_index=2)
        assert (end["stop_reason"], end["error"]["code"]) == ("error", "agent_failed")
        assert end["error"]["retryable"] is True

    await asyncio.gather(*(socket.turn(HISTORY) for socket in sockets))
    for number, socket in enumerate(sockets):
        assert json.loads(socket.text(3))[:2] == [f"I am {number}", HANG]
        contexts = socket.contexts()
        assert contexts == ["new", "kept", "kept"]
    await eventually("the old processes to end", lambda: not any(map(is_running, before)))


@pytest.mark.parametrize("victim", ["host.mjs", "supervise.py"])
async def test_processes_of_agents_end_with_a_killed_host(
    own_client: Client, victim: str, tmp_path: Path
) -> None:
    hidden = {"double_fork": True, "ignore_sigterm": True, "hold_stdout": True}
    pids = []
    for agent, options in (("mock", {"setsid": True}), ("mock-stubborn", hidden)):
        step = {"spawn": {"pid_file": str(tmp_path / agent), **options}}
        assert (await own_client.turn(await own_client.create(agent), script(step)))[0] == 200
        pids.append(int((tmp_path / agent).read_text()))
    pids += processes_of_the_host()
    kill(victim)
    await eventually("all of them to end", lambda: not any(map(is_running, pids)))
    assert (await own_client.turn(await own_client.create(), "a new host"))[0] == 200


async def test_host_killed_while_agents_are_idle_or_starting_is_restarted(
    own_client: Client,
) -> None:
    idle = await own_client.create()
    await own_client.turn(idle, "before")
    new = await own_client.create()
    turns = [asyncio.create_task(own_client.turn(s, HISTORY)) for s in (new, idle)]
    kill("host.mjs")
    for turn in turns:
        status, reply = await turn
        # A prompt that had reached its agent fails; every other prompt runs.
        assert status == 200 or reply["code"] == "agent_failed", reply
    status, reply = await own_client.turn(idle, HISTORY)
    assert status == 200
    assert json.loads(texts_of(reply["events"]))[0] == "before"


@pytest.mark.slow
async def test_prompt_right_after_the_hosts_death_runs(own_client: Client) -> None:
    session = await own_client.create()
    await own_client.turn(session, "before")
    for number in range(3):
        kill("host.mjs")
        status, reply = await own_client.turn(session, f"after {number}")
        assert status == 200, reply
        assert texts_of(reply["events"]) == f"echo: after {number}"
    assert len(processes_of("host.mjs")) == 1


async def test_host_that_dies_during_an_agents_start_is_restarted(
    serve: Serve,
) -> None:
    server = await serve(agents={"slow": mock_agent("--slow-start=500")}, default_agent="slow")
    client = await server.client()
    session = await client.create("slow")
    turn = asyncio.create_task(client.turn(session, "patient"))
    await eventually("the agent to start", lambda: processes_of("mock_agent.py"))
    kill("host.mjs")
    status, reply = await turn
    assert status == 200 or reply["retryable"], reply
    assert (await client.turn(session, "again"))[0] == 200


async def test_agent_of_an_abandoned_prompt_does_not_write_into_the_next_turn(
    own_client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    socket = await own_client.connect(await own_client.create())
    await socket.turn("before")
    gate, send = tmp_path / "gate", process.HostProcess.send
    prompts: list[asyncio.Future[Any]] = []

    def note(host: process.HostProcess, op: str, **fields: Any) -> asyncio.Future[Any]:
        call = send(host, op, **fields)
        if op == "prompt":
            prompts.append(call)
        return call

    monkeypatch.setattr(process.HostProcess, "send", note)
    await socket.send(
        "prompt", prompt=script({"say": "on it"}, {"gate": str(gate)}, {"say": "stray"})
    )
    await socket.until_text("on it")
    prompts[0].set_exception(calls.CallError("RUNTIME", "acpx has given up"))
    end = await socket.until("turn_end")
    assert (end["error"]["code"], end["error"]["retryable"]) == ("agent_failed", True)
    gate.touch()
    await socket.turn("next")
    assert (socket.text(2), socket.text(3)) == ("on it", "echo: next")
    await socket.turn(HISTORY)
    assert json.loads(socket.text(4))[0] == "before"


async def test_restart_of_the_host_is_retried_until_it_succeeds(
    own_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await own_client.create()
    await own_client.turn(session, "before")
    start = asyncio.create_subprocess_exec
    failures = [OSError(12, "Cannot allocate memory"), BlockingIOError(11, "Try again")]

    async def start_later(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        if failures:
            raise failures.pop()
        return await start(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_later)
    kill("host.mjs")
    status, reply = await own_client.turn(session, HISTORY)
    assert (status, failures) == (200, []), reply
    assert json.loads(texts_of(reply["events"]))[0] == "before"


async def test_frozen_host_delays_neither_cancel_nor_close(serve: Serve) -> None:
    server = await serve()
    server.services.sessions.backend.timeouts.close = 0.3
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session)
    await socket.turn("hello")
    (pid,) = processes_of("host.mjs")
    os.kill(pid, signal.SIGSTOP)
    try:
        await socket.send("prompt", prompt="into the void")
        await socket.until("accepted")
        await socket.send("cancel")
        assert (await socket.until("turn_end"))["stop_reason"] == "cancelled"
        assert (await client.delete(f"/sessions/{session}"))[0] == 200
        assert not processes_of("mock_agent.py")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (await client.turn(await client.create(), "thawed"))[0] == 200


async def test_host_that_stays_frozen_is_replaced(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH_SECS", 0.1)
    server = await serve(agents={"mock": mock_agent("--slow-start=200")})
    client = await server.client()
    (running,) = await running_turns(client, 1)
    starting = await client.create()
    (pid,) = processes_of("host.mjs")
    with monkeypatch.context() as impatience:
        impatience.setattr(process, "FROZEN_SECS", 0.3)
        os.kill(pid, signal.SIGSTOP)
        # Neither a close that waits for its agent nor a new session waits forever.
        close = asyncio.create_task(client.delete(f"/sessions/{starting}"))
        create = asyncio.create_task(client.post("/sessions", {"agent": "mock"}))
        await eventually("the host to be killed", lambda: not is_running(pid), seconds=40)
    assert [(await close)[0], (await create)[0]] == [200, 200]
    assert (await running.until("turn_end"))["error"]["code"] == "agent_failed"
    await running.turn(HISTORY)
    assert json.loads(running.text(3))[0] == "I am 0"


# Noise.


def noisy_node(tmp_path: Path, noise: str) -> str:
    """A Node that makes *noise*, a shell script, before it runs."""
    program = tmp_path / "node"
    program.write_text(f'#!/bin/sh\n{noise}\nexec {catalog.find_node()} "$@"\n')
    program.chmod(0o700)
    return str(program)


@pytest.mark.parametrize(
    "noise",
    [
        "head -c 20000000 /dev/zero | tr '\\0' x | fold -w 100000 >&2",
        "head -c 20000000 /dev/zero | tr '\\0' x >&2; echo >&2",
        "head -c 5000000 /dev/zero | tr '\\0' x | fold -w 100000; echo",
        "head -c 20000000 /dev/zero | tr '\\0' x; echo",
        'printf \'7\\n[]\\nnull\\n"text"\\n{}\\n\\377\\n{"id":1e9}\\n{"event":"new"}\\n\'',
    ],
    ids=["stderr", "a long line on stderr", "stdout", "a long line on stdout", "odd JSON"],
)
async def test_other_output_of_the_host_is_ignored(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    node = noisy_node(tmp_path, noise)
    monkeypatch.setattr("server.backends.find_node", lambda: node)
    client = await (await serve()).client()
    assert (await client.turn(await client.create(), "hello"))[0] == 200


# The start.


async def start_error(serve: Serve) -> str:
    with pytest.raises(StartError) as caught:
        await serve()
    assert "\n" not in str(caught.value)
    await eventually("every process to end", lambda: not processes_of("supervise.py"))
    return str(caught.value)


async def test_host_and_agents_have_batch_scheduling_and_short_slices(
    own_client: Client,
) -> None:
    await own_client.turn(await own_client.create(), "hi")
    for pid in (*processes_of("host.mjs"), *processes_of("mock_agent.py")):
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
        if has_slices():
            assert slice_ns(pid) == supervise.SLICE_NS > slice_ns(os.getpid())
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


async def test_start_fails_with_another_acpx_version(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "ACPX_VERSION", "0.99.0")
    message = await start_error(serve)
    assert "acpx 0.99.0 is needed, but 0.19.1 is installed" in message
    assert "make run" in message


async def test_start_fails_with_an_old_node(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "NODE_MINIMUM", (99, 0))
    assert "Node 99.0 or newer is needed" in await start_error(serve)


async def test_start_fails_without_acpx(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The host resolves acpx from the folder of its file.
    shutil.copytree(process.HERE, tmp_path / "host")
    monkeypatch.setattr(process, "HOST", tmp_path / "host" / "host.mjs")
    assert "make run" in await start_error(serve)


async def test_host_loads_modules_of_acpx_without_the_bundle(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = shutil.copytree(process.HERE, tmp_path / "server" / "agents" / "host")
    packages = ROOT / "node_modules"
    for folder in (Path(), Path("acpx"), Path("acpx") / "dist"):
        (tmp_path / "node_modules" / folder).mkdir()
        for path in (packages / folder).iterdir():
            if path.name not in ("acpx", "dist", "bundle.mjs"):
                (tmp_path / "node_modules" / folder / path.name).symlink_to(path)
    monkeypatch.setattr(process, "HOST", host / "host.mjs")
    client = await (await serve()).client()
    assert (await client.turn(await client.create(), "hello"))[0] == 200


def test_host_loads_acpx_from_the_bundle() -> None:
    modules = (process.HERE / "acpx_modules.mjs").read_text("utf-8")
    exports = re.findall(r"\w+", " ".join(re.findall(r"\{(.*?)\}", modules)))
    bundle = (ROOT / "node_modules" / "acpx" / "dist" / "bundle.mjs").read_text("utf-8")
    assert sorted(re.findall(r"\w+", bundle.rpartition("export {")[2])) == sorted(exports)


@pytest.mark.parametrize("node", ["/no/such/node", sys.executable, "/bin/cat"])
async def test_start_fails_if_node_does_not_run_the_host(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    monkeypatch.setattr("server.backends.find_node", lambda: node)
    monkeypatch.setattr(process, "BOOT_SECS", 1)
    assert "the acpx host" in await start_error(serve)


async def test_start_fails_without_node(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "Node is missing" in await start_error(serve)


@only_sqlite
async def test_incomplete_files_of_a_killed_server_are_deleted_at_the_next_start(
    serve: Serve, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    begun = [data / "acpx" / name for name in ("probe-1", "sessions/acpx-write-1")]
    for folder in begun:
        folder.mkdir(parents=True)
        (folder / "record.json").touch()
    record = data / "acpx" / "sessions" / "probe-1.json"
    kept = record.with_name("0b1e.json")
    record.touch()
    kept.touch()
    await serve()
    assert [path.exists() for path in (*begun, record, kept)] == [False, False, False, True]
