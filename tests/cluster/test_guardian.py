"""The guardian of `make cluster`: nothing is left of a cluster that was killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from ..support.harness import eventually, is_running
from ..support.processes import ROOT

PROGRAM = """
import pathlib, subprocess, sys, time
from tests.support.guardian import guarded

with guarded() as guardian:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    guardian.add_process(child.pid)
    guardian.add_folder(pathlib.Path(sys.argv[1]))
    print(child.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
async def test_killed_program_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, folder), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    child = int(await program.stdout.readline())
    program.kill()
    await program.wait()
    await eventually("the child to end", lambda: not is_running(child))
    await eventually("the folder to be removed", lambda: not folder.exists())
