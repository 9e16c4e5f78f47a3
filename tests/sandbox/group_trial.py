"""Uses control groups of the kernel as a server does: ``python -m … LEVEL GROUP FOLDER``.

GROUP is an empty group with the controllers cpu and pids, in which this program may work. It
becomes a part of it, and prints a JSON object with what it has found.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from server.data_dir import DataDir
from server.sandbox.control_groups import ControlGroups, delegated_group
from server.sandbox.levels import RESTRICT, find_mechanism
from server.sandbox.sandbox import Sandbox
from server.sandbox.trial import TrialSpec

from ..support.sandboxes import system_python

PROC = Path("/proc/self")
PROCESSES = 40
MEASURED_SECS = 3.0
BUSY = "import os\nfor _ in range({}): os.fork()\nprint(flush=True)\nwhile True: pass"
FORKS = """
import os
count = 0
try:
    while count < 100:
        if os.fork() == 0:
            os.read(0, 1)
            os._exit(0)
        count += 1
except BlockingIOError:
    pass
print(count, flush=True)
os.read(0, 1)
"""
TWO = "import os; os.fork(); print(flush=True); os.read(0, 1)"


class Trial:
    """A server in a delegated group."""

    def __init__(self, level: str, group: Path, folder: Path) -> None:
        self.group = group
        self.data = DataDir(folder / "data")
        self.programs: list[subprocess.Popen[bytes]] = []
        (group / "cgroup.procs").write_text(str(os.getpid()))
        self.found: dict[str, Any] = {"undelegated": delegated_group(PROC) is None}
        os.setxattr(group, "user.delegate", b"1")
        self.sandbox = Sandbox(find_mechanism(level, os.environ), self.data)
        groups = ControlGroups.enter(PROCESSES, PROC)
        assert groups is not None
        self.sandbox.groups = self.groups = groups
        line = (PROC / "cgroup").read_text().splitlines()[-1]
        self.found["own"] = line.rpartition("/")[2]

    def start(self, owner: str, key: str, code: str) -> bytes:
        """Start a program of a session, and return its first line."""
        cwd = self.data.workspace(key)
        cwd.mkdir(parents=True)
        plan = self.data.path / f"{key}.json"
        spec = TrialSpec(key, str(cwd), owner=owner)
        plan.write_text(json.dumps(self.sandbox.plan(spec, {})))
        argv = [sys.executable, "-I", "-S", str(RESTRICT), str(plan)]
        process = subprocess.Popen(
            [*argv, system_python(), "-ISc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.programs.append(process)
        assert process.stdout is not None
        return process.stdout.readline()

    def folder_of(self, owner: str, key: str) -> Path:
        return Path(self.groups.plan(owner, key)["folder"])

    def pids_of(self, owner: str, key: str) -> list[str]:
        return (self.folder_of(owner, key) / "cgroup.procs").read_text().split()

    def measure_shares(self) -> None:
        """Let one app run eight busy processes, and another one a single one."""
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        self.start("many", "m", BUSY.format(3))
        self.start("few", "f", BUSY.format(0))
        apps = [self.folder_of(*one).parent for one in (("many", "m"), ("few", "f"))]
        before = [_use_of(app) for app in apps]
        time.sleep(MEASURED_SECS)
        many, few = (_use_of(app) - start for app, start in zip(apps, before, strict=True))
        self.found["share"] = few / (many + few)

    def limit_processes(self) -> None:
        self.found["forks"] = int(self.start("many", "forks", FORKS))

    def move(self) -> None:
        """Let an app take an agent that had none."""
        self.start("", "waiting", TWO)
        self.groups.move("waiting", "", "few")
        self.groups.remove_empty()
        self.found["moved"] = len(self.pids_of("few", "waiting"))
        kept = (self.folder_of("few", "f"), self.folder_of("", "waiting"))
        self.found["kept"] = [folder.is_dir() for folder in kept]

    def end(self) -> None:
        """End all programs, and remove their groups."""
        deadline = time.monotonic() + 60
        while [*self.group.glob("apps/*/")] and time.monotonic() < deadline:
            for file in self.group.glob("apps/*/*/cgroup.procs"):
                for pid in file.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            for program in self.programs:
                program.poll()
            self.groups.remove_empty()
            time.sleep(0.05)
        self.found["left"] = [str(path) for path in self.group.glob("apps/*/")]


def _use_of(group: Path) -> int:
    return int((group / "cpu.stat").read_text().split()[1])


def main() -> None:
    trial = Trial(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    try:
        trial.measure_shares()
        trial.limit_processes()
        trial.move()
    finally:
        trial.end()
    sys.stdout.write(json.dumps(trial.found))


if __name__ == "__main__":
    main()
