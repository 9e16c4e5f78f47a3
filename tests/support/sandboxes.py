"""The levels of the sandbox that this machine has, and processes of an ordinary user."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.agents.process.environ import agent_environ
from server.config import SettingError
from server.sandbox import restrict
from server.sandbox.levels import Mechanism, find_mechanism
from server.sandbox.seccomp import build_filter

TEST_LEVEL = os.environ.get("CLAWDFORGE_TEST_SANDBOX") or (
    "landlock" if restrict.landlock_version() else "auto"
)
"""The level of most tests: with Landlock, unlike bubblewrap, an agent reports the pids that the
tests look for."""
LEVELS = ("bwrap", "landlock")
USER = 10001
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def mechanism(level: str) -> Mechanism:
    """The mechanism of a level. Skips the test if this machine does not have the level."""
    try:
        return find_mechanism(level, os.environ)
    except SettingError as error:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL"):
            raise
        pytest.skip(str(error))


def system_python() -> str:
    """A Python that every user of this machine may start."""
    if os.access(sys.executable, os.X_OK) and os.geteuid() != 0:
        return sys.executable
    for folder in SYSTEM_PATH.split(":"):
        if (program := Path(folder, "python3")).exists():
            return str(program)
    return sys.executable


def plain_environ() -> dict[str, str]:
    """The environment of agents, with the system's programs only."""
    return {**agent_environ(os.environ), "PATH": SYSTEM_PATH}


def as_user(function: Callable[[], Any], *, like_container: bool = False) -> Any:
    """Call *function* in a process of an ordinary user, and return its JSON-like result.

    Args:
        like_container: the process has no new privileges and a filter like Docker's, which
            refuses namespaces and mounts.
    """
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                _become_user(like_container=like_container)
                result = {"result": function()}
            except BaseException as error:  # noqa: BLE001 - reported by the parent
                result = {"error": repr(error)}
            file.write(json.dumps(result).encode())
            file.flush()
            os._exit(0)
        os.waitpid(child, 0)
        file.seek(0)
        result = json.loads(file.read())
    assert "error" not in result, result
    return result["result"]


def _become_user(*, like_container: bool) -> None:
    os.chdir("/")
    sys.executable = system_python()  # for the trial of a level
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
    tempfile.tempdir = None
    if like_container:
        filter_ = build_filter(has_namespaces=True, unix_sockets=True)
        assert filter_ is not None
        restrict.filter_system_calls(filter_)
