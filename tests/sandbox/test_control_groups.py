"""Control groups: which one is used, and which programs are put into it.

Most folders stand in for the kernel's: machines with cgroups v2 rarely delegate a group to tests.
The last test uses the kernel's if CLAWDFORGE_TEST_CGROUP is the path of a group in which root may
work, with the controllers cpu and pids.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from server.agents.base import AgentSpec
from server.data_dir import DataDir
from server.sandbox import resource_limits
from server.sandbox.control_groups import ControlGroups, delegated_group
from server.sandbox.levels import RESTRICT
from server.sandbox.sandbox import Sandbox

from ..support.harness import run_program
from ..support.sandboxes import mechanism

GROUP = os.environ.get("CLAWDFORGE_TEST_CGROUP", "")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a process in a group that systemd has delegated to it."""
    group, proc = tmp_path / "fs/system.slice/forge.service", tmp_path / "proc"
    group.mkdir(parents=True)
    proc.mkdir()
    (group / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (group / "cgroup.procs").write_text("101\n102\n")
    (proc / "cgroup").write_text("4:memory:/\n0::/system.slice/forge.service\n")
    mount = f"30 23 0:26 / {tmp_path / 'fs'} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    (proc / "mountinfo").write_text(f"22 1 8:1 / / rw - xfs /dev/vda rw\n{mount}")
    marks = {group: b"1"}

    def getxattr(path: Path, name: str) -> bytes:
        if name != "user.delegate" or path not in marks:
            raise OSError
        return marks[path]

    monkeypatch.setattr(os, "getxattr", getxattr)
    return proc


def group_of(proc: Path) -> Path:
    found = delegated_group(proc)
    assert found is not None
    return found


def test_server_moves_itself_and_divides_the_cpu_between_apps(proc: Path) -> None:
    assert ControlGroups.enter(256, proc) is not None
    group = group_of(proc)
    assert (group / "server/cgroup.procs").read_text() == "102"  # the last of those it moved
    for divided in (group, group / "apps"):
        assert (divided / "cgroup.subtree_control").read_text() == "+cpu +pids"
    # After a reload the server is in its own group.
    (proc / "cgroup").write_text("0::/system.slice/forge.service/server\n")
    assert group_of(proc) == group


def test_group_that_was_not_delegated_is_left_alone(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"0")
    assert ControlGroups.enter(256, proc) is None
    (proc / "cgroup").write_text("1:cpu:/forge\n")  # version 1
    assert ControlGroups.enter(256, proc) is None


def test_group_that_cannot_be_divided_is_not_used(proc: Path) -> None:
    (group_of(proc) / "cgroup.subtree_control").mkdir()
    assert ControlGroups.enter(256, proc) is None


@pytest.mark.parametrize("level", ["off", "landlock"])
async def test_program_is_put_into_the_group_of_its_session(
    proc: Path, tmp_path: Path, level: str
) -> None:
    data = DataDir(tmp_path / "data")
    sandbox = Sandbox(mechanism(level), data)
    sandbox.groups = ControlGroups.enter(256, proc)
    cwd = data.path / "workspaces" / "s"
    cwd.mkdir(parents=True)
    spec = AgentSpec(key="s", agent="mock", cwd=str(cwd), permission="deny-all", owner="a/b" * 100)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(sandbox.plan(spec, {})))
    program = [sys.executable, "-I", "-S", str(RESTRICT), str(plan), "/bin/true"]
    assert (await run_program(*program))[0] == 0
    [app] = [path for path in (group_of(proc) / "apps").iterdir() if path.is_dir()]
    assert (app / "cgroup.subtree_control").read_text() == "+cpu +pids"
    [session] = [path for path in app.iterdir() if path.is_dir()]
    assert (session / "cgroup.procs").read_text() == "0"  # the kernel takes it for the writer
    assert (session / "pids.max").read_text() == "256"
    assert "cpu" not in sandbox.open
    assert ("cpu" in sandbox.enforced) == (level != "off")


def test_programs_of_a_prewarmed_agent_move_to_the_app_that_takes_it(proc: Path) -> None:
    groups = ControlGroups.enter(0, proc)
    assert groups is not None
    waiting = Path(groups.plan("", "s")["folder"])
    waiting.mkdir(parents=True)
    (waiting / "cgroup.procs").write_text("7\n")
    groups.move("s", "", "app")
    taken = Path(groups.plan("app", "s")["folder"])
    assert taken != waiting
    assert (taken / "cgroup.procs").read_text() == "7"


def test_id_of_a_session_is_not_the_name_of_its_group(proc: Path) -> None:
    """Agents can list the groups, and a session's id is a part of the paths of its folders."""
    groups = ControlGroups.enter(0, proc)
    assert groups is not None
    assert "session-id" not in groups.plan("app", "session-id")["folder"]


def test_group_of_an_app_that_another_launcher_has_just_made_is_divided(proc: Path) -> None:
    groups = ControlGroups.enter(9, proc)
    assert groups is not None
    plan = groups.plan("app", "s")
    app = Path(plan["folder"]).parent
    app.mkdir()
    resource_limits.join_group(plan)
    assert (app / "cgroup.subtree_control").read_text() == "+cpu +pids"


if GROUP:  # CI fails if a test is skipped

    @pytest.mark.slow
    @pytest.mark.parametrize("level", ["landlock", "bwrap"])
    async def test_kernel_divides_the_cpu_and_limits_processes(tmp_path: Path, level: str) -> None:
        mechanism(level)
        group = Path(GROUP, f"test-{os.getpid()}-{level}")
        group.mkdir()
        argv = [
            sys.executable,
            "-m",
            f"{__package__}.group_trial",
            level,
            str(group),
            str(tmp_path),
        ]
        status, output, errors = await run_program(*argv)
        for path in (group / "apps", group / "server", group):
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
        assert status == 0, errors
        found = json.loads(output.splitlines()[-1])
        assert found.pop("share") == pytest.approx(0.5, abs=0.15)  # 8 processes against 1
        assert 20 < found.pop("forks") < 40  # also of root
        assert found.pop("moved") >= 2
        assert found == {"undelegated": True, "own": "server", "kept": [True, False], "left": []}
