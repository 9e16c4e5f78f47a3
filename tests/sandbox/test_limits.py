"""The limits of sandboxed programs: processes, memory, and the size of files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.data_dir import DataDir
from server.sandbox.levels import RESTRICT
from server.sandbox.policy import SandboxLimits, SandboxPolicy
from server.sandbox.sandbox import Sandbox
from server.sandbox.trial import TrialSpec

from ..support.sandboxes import as_user, mechanism, plain_environ, system_python

each_level = pytest.mark.parametrize(
    "level", ["landlock", pytest.param("bwrap", marks=pytest.mark.slow)]
)
FORKS = """
import os
count = 0
until_parent_ends, end = os.pipe()
try:
    for _ in range(100):
        if os.fork() == 0:
            os.closerange(0, 3)
            os.close(end)
            os.read(until_parent_ends, 1)
            os._exit(0)
        count += 1
except BlockingIOError:
    pass
print(count)
"""


def run_limited(
    folder: Path, level: str, code: str, **limits: int
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a sandbox with limits."""
    data = DataDir(folder / "data")
    cwd = data.workspace("own")
    cwd.mkdir(parents=True)
    policy = SandboxPolicy(limits=SandboxLimits(**limits))
    sandbox = Sandbox(mechanism(level), data, policy, plain_environ())
    file = folder / "plan.json"
    file.write_text(json.dumps(sandbox.plan(TrialSpec("own", str(cwd)), {})))
    return subprocess.run(
        [sys.executable, "-I", "-S", str(RESTRICT), str(file), system_python(), "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@each_level
def test_size_of_a_file_is_limited(tmp_path: Path, level: str) -> None:
    code = "open('f', 'wb').write(bytes(1 << 20)); print('ok', flush=True)"
    code += "; open('g', 'wb').write(bytes(3 << 20)); print('too large')"
    result = run_limited(tmp_path, level, code, file_bytes=2 << 20)
    assert (result.returncode != 0, result.stdout) == (True, "ok\n")
    assert (tmp_path / "data/workspaces/own/g").stat().st_size <= 2 << 20


@each_level
def test_memory_of_a_process_is_limited(tmp_path: Path, level: str) -> None:
    code = "b = bytearray(50 << 20); print('ok', flush=True); bytearray(300 << 20); print('no')"
    result = run_limited(tmp_path, level, code, memory_bytes=200 << 20)
    assert (result.stdout, "MemoryError" in result.stderr) == ("ok\n", True)


@each_level
def test_limits_cannot_be_raised(tmp_path: Path, level: str) -> None:
    code = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (r.RLIM_INFINITY,) * 2)"
    result = run_limited(tmp_path, level, code, file_bytes=2 << 20)
    assert result.returncode != 0


def forks_of_user(folder: Path, level: str, **limits: int) -> int:
    """The number of processes that a sandboxed program of an ordinary user can start, up to 100.

    The kernel does not limit the processes of root.
    """
    folder.chmod(0o777)
    for parent in folder.parents[:3]:
        parent.chmod(0o755)
    mechanism(level)

    def count() -> int:
        result = run_limited(folder, level, FORKS, **limits)
        assert result.stdout, result
        return int(result.stdout)

    forks: int = as_user(count)
    return forks


@pytest.mark.slow
def test_landlock_limits_the_processes_of_the_user(tmp_path: Path) -> None:
    assert forks_of_user(tmp_path, "landlock", all_processes=60) < 60


@pytest.mark.slow
def test_bwrap_limits_the_processes_of_each_sandbox(tmp_path: Path) -> None:
    assert 10 < forks_of_user(tmp_path, "bwrap", processes=20) < 20
