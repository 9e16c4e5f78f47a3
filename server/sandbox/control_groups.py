"""Control groups: each app gets the same share of the CPU, however many programs its agents start.

This needs cgroups v2 and a group that was delegated to the server, as systemd does for a unit with
``Delegate=``. The kernel divides the CPU equally between groups with the same parent::

    the delegated group/server          the server, which moves itself there
    the delegated group/apps/APP/HASH   a session's programs, put there by their launchers

Agents can see the groups. So those of sessions are named by a hash of their ids, which are a part
of the paths of their folders.
Only a group that systemd marks as delegated is used: to divide any other would disturb its owner.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import urllib.parse
from pathlib import Path
from typing import Any, Self

from .resource_limits import join_group

logger = logging.getLogger(__name__)

CONTROLLERS = ("cpu", "pids")
DELEGATED = ("user.delegate", "trusted.delegate")
"""The attributes by which systemd marks a delegated group. Only root can read the second one."""
UNOWNED_GROUP = "none"
"""The group of agents that have no app yet."""
MAX_GROUP_NAME = 200
"""Characters of a folder's name. A longer name of an app is replaced by its hash."""
MOVES = 10


class ControlGroups:
    """The groups of the apps and their sessions.

    Args:
        folder: the delegated group.
        controllers: what is divided between the apps, some of :data:`CONTROLLERS`.
        processes: the most processes and threads of a session; 0 for no limit.
    """

    def __init__(self, folder: Path, controllers: list[str], processes: int) -> None:
        self._apps = folder / "apps"
        self._controllers = controllers
        self._processes = processes if "pids" in controllers else 0

    @classmethod
    def enter(cls, processes: int, proc: Path = Path("/proc/self")) -> Self | None:
        """Move the server to its own group, and prepare that of the apps. Blocking.

        Returns:
            None if no group is delegated to the server.
        """
        folder = delegated_group(proc)
        if folder is None:
            return None
        try:
            available = (folder / "cgroup.controllers").read_text("ascii").split()
            controllers = [name for name in CONTROLLERS if name in available]
            if "cpu" not in controllers:
                return None
            _move_all(folder, folder / "server")
            groups = cls(folder, controllers, processes)
            _enable(folder, controllers)
            groups._apps.mkdir(exist_ok=True)
            _enable(groups._apps, controllers)
        except OSError as error:
            logger.warning("the CPU is not divided between apps: %s", error)
            return None
        logger.info("the CPU is divided between apps: %s", groups._apps)
        return groups

    @property
    def limits_processes(self) -> bool:
        """Whether the processes of each session are limited, also those of root."""
        return self._processes > 0

    def plan(self, owner: str, key: str) -> dict[str, Any]:
        """The part of a launcher's plan that names the group of a session."""
        return {
            "folder": str(self._group(owner, key)),
            "controllers": self._controllers,
            "processes": self._processes,
        }

    def move(self, key: str, owner: str, new_owner: str) -> None:
        """Move the programs of a session to the group of another app."""
        old, plan = self._group(owner, key), self.plan(new_owner, key)
        try:
            for _ in range(MOVES):  # a program may start another one meanwhile
                pids = (old / "cgroup.procs").read_text("ascii").split()
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        join_group(plan, int(pid))
                if not pids:
                    return
        except OSError as error:
            logger.warning("session %s: its programs stay in the group %s: %s", key, old, error)

    def remove_empty(self) -> None:
        """Remove the groups of sessions without programs, and of apps without sessions. Blocking.

        The kernel refuses it for others.
        """
        with contextlib.suppress(OSError):
            for app in self._apps.iterdir():
                if app.is_dir():
                    for group in [*filter(Path.is_dir, app.iterdir()), app]:
                        with contextlib.suppress(OSError):
                            group.rmdir()

    def _group(self, owner: str, key: str) -> Path:
        return self._app_group(owner) / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _app_group(self, owner: str) -> Path:
        if not owner:
            return self._apps / UNOWNED_GROUP
        name = urllib.parse.quote(owner, safe="")
        if len(name) > MAX_GROUP_NAME:
            name = hashlib.sha256(owner.encode()).hexdigest()
        return self._apps / f"app-{name}"


def delegated_group(proc: Path) -> Path | None:
    """The control group that was delegated to the server; None if there is none.

    Args:
        proc: the folder of the server's process.
    """
    try:
        groups = (proc / "cgroup").read_text("utf-8").splitlines()
        mounts = (proc / "mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), None)
    mounted = (line.split(" ")[4] for line in mounts if " - cgroup2 " in line)
    top = next(mounted, None)
    if own is None or top is None:
        return None
    folder = Path(top, own)
    for candidate in (folder, folder.parent):  # after a reload the server is in its own group
        for name in DELEGATED:
            with contextlib.suppress(OSError):
                if os.getxattr(candidate, name) == b"1" and os.access(candidate, os.W_OK):
                    return candidate
    return None


def _move_all(folder: Path, target: Path) -> None:
    """Move all processes of a group: one that has any cannot divide anything between others."""
    target.mkdir(exist_ok=True)
    for pid in (folder / "cgroup.procs").read_text("ascii").split():
        with contextlib.suppress(ProcessLookupError):
            (target / "cgroup.procs").write_text(pid, "ascii")


def _enable(folder: Path, controllers: list[str]) -> None:
    wanted = " ".join(f"+{name}" for name in controllers)
    (folder / "cgroup.subtree_control").write_text(wanted, "ascii")
