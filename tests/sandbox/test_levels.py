"""The level of the sandbox: how it is chosen, reported and required."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import aiohttp
import pytest

from server.config import SettingError
from server.data_dir import DataDir
from server.sandbox import levels, restrict
from server.sandbox.levels import Mechanism, find_mechanism
from server.sandbox.policy import SandboxPolicy
from server.sandbox.sandbox import Sandbox

from ..conftest import Spawn
from ..support.harness import ADMIN, new_client, run_program
from ..support.sandboxes import mechanism

WITHOUT_SANDBOX = (
    sys.executable,
    "-c",
    """
import os, struct, sys
sys.path.insert(0, os.getcwd())
from server.sandbox import restrict, seccomp
LOAD, EQUAL, SET, RETURN, ALLOW, REFUSE = 0x20, 0x15, 0x45, 0x06, 0x7FFF0000, 0x50001
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
code = [
    (LOAD, 0, 0, 0),
    (EQUAL, 4, 0, 444),  # Landlock
    (EQUAL, 0, 2, clone),
    (LOAD, 0, 0, 16),
    (SET, 1, 0, 0x10000000),  # a user namespace, which bubblewrap needs
    (RETURN, 0, 0, ALLOW),
    (RETURN, 0, 0, REFUSE),
]
restrict.filter_system_calls(b"".join(struct.pack("HBBI", *one) for one in code))
os.execv(sys.argv[1], sys.argv[1:])
""",
)
"""Starts a program for which no level works."""


@pytest.mark.parametrize(
    "level",
    [
        pytest.param("bwrap", marks=pytest.mark.slow),
        "landlock",
        pytest.param("off", marks=pytest.mark.slow),
    ],
)
async def test_level_of_the_sandbox_is_reported(
    spawn: Spawn, http: aiohttp.ClientSession, level: str, tmp_path: Path
) -> None:
    if level != "off":
        mechanism(level)
    server = await spawn(SANDBOX=level)
    assert [line for line in server.greeting.splitlines() if f"sandbox: {level}" in line]
    client = await new_client(server.url, http)
    status, health = await client.get("/healthz")
    assert (status, health["sandbox"]["level"]) == (200, level)
    assert bool(health["sandbox"]["enforced"]) == (level != "off")
    assert "loopback" in health["sandbox"]["open"]
    session = await client.create()
    assert (await client.state(session))["sandbox"] == level
    async with http.get(
        f"{server.url}/metrics", headers={"Authorization": f"Bearer {ADMIN}"}
    ) as reply:
        assert f'clawdforge_sandbox{{level="{level}"}} 1.0' in await reply.text()


@pytest.mark.parametrize("level", [pytest.param("bwrap", marks=pytest.mark.slow), "landlock"])
async def test_named_level_that_does_not_work_stops_the_start(tmp_path: Path, level: str) -> None:
    status, out, err = await run_program(
        *(*WITHOUT_SANDBOX, sys.executable, "-m", "server"),
        CLAWDFORGE_SANDBOX=level,
        CLAWDFORGE_DATA_DIR=str(tmp_path / "data"),
        CLAWDFORGE_PORT="0",
    )
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert "CLAWDFORGE_SANDBOX" in line
    assert not (tmp_path / "data").exists()


async def test_second_app_is_refused_without_a_sandbox(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn(wrapper=WITHOUT_SANDBOX, SANDBOX="auto")
    assert "sandbox: off" in server.greeting  # the first start has created an app
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with http.post(
        f"{server.url}/admin/tokens", json={"name": "other"}, headers=headers
    ) as reply:
        body = await reply.json()
        assert (reply.status, body["code"]) == (409, "conflict")
        assert "CLAWDFORGE_SANDBOX" in body["error"]


@pytest.mark.slow
async def test_second_app_is_accepted_if_the_operator_chose_no_sandbox(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn(wrapper=WITHOUT_SANDBOX, SANDBOX="off")
    await new_client(server.url, http)


@pytest.mark.slow
async def test_token_command_refuses_second_app_without_a_sandbox(tmp_path: Path) -> None:
    async def add(name: str, **variables: str) -> int | None:
        status, _, err = await run_program(
            *(*WITHOUT_SANDBOX, sys.executable, "-m", "server", "token", "add", name),
            CLAWDFORGE_DATA_DIR=str(tmp_path / "data"),
            **variables,
        )
        assert (status == 0) != ("CLAWDFORGE_SANDBOX" in err)
        return status

    assert await add("one") == 0
    assert await add("two") == 1
    assert await add("two", CLAWDFORGE_SANDBOX="off") == 0


def test_bubblewrap_that_cannot_be_used_has_a_reason(tmp_path: Path) -> None:
    assert levels.find_bwrap({"PATH": str(tmp_path)})[1]
    program = tmp_path / "bwrap"
    for text in ("#!/bin/sh\necho --bind\n", "#!/bin/sh\necho --bind-fd\nexit 1\n"):
        program.write_text(text)
        program.chmod(0o755)
        assert levels.find_bwrap({"PATH": f"{tmp_path}:{os.environ['PATH']}"})[1]


async def test_trial_of_bubblewrap_leaves_no_process() -> None:
    mechanism("bwrap")
    program = """
import os
from server.agents.process import process_tree, supervise
from server.sandbox import levels
process_tree.isolate()
print(levels.find_bwrap(os.environ)[1], supervise.children_of(os.getpid()))
"""
    _, out, err = await run_program(sys.executable, "-c", program)
    assert out == "None []\n", err


def test_auto_prefers_bubblewrap_and_falls_back_to_landlock(tmp_path: Path) -> None:
    mechanism("landlock")
    assert find_mechanism("auto", {"PATH": str(tmp_path)}).level == "landlock"
    mechanism("bwrap")
    assert find_mechanism("auto", os.environ).level == "bwrap"


def test_unsupported_kernel_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(restrict, "landlock_version", lambda: 0)
    found = find_mechanism("auto", {"PATH": str(tmp_path)})
    assert (found.level, found.is_chosen) == ("off", False)
    sandbox = Sandbox(found, DataDir(tmp_path))
    assert "Landlock" in sandbox.describe()
    assert sandbox.refusal is not None
    with pytest.raises(SettingError):
        find_mechanism("landlock", {"PATH": str(tmp_path)})


def test_old_landlock_is_reported_as_open(tmp_path: Path) -> None:
    old = Mechanism("landlock", is_chosen=False, abi=2)
    assert {"signals", "truncation of files"} <= set(old.open)
    policy = SandboxPolicy(write=(tmp_path,))
    assert "data folder" in Sandbox(old, DataDir(tmp_path / "data"), policy).open
