"""The levels of the sandbox that this machine has, and processes of an ordinary user."""

from __future__ import annotations

import json
import os
import struct
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
        like_container: the process is restricted as in the container of ``compose.yml``: no
            capabilities, no new privileges, and what Docker's default filter refuses.
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
        if like_container:
            _drop_bounding_set()
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
    tempfile.tempdir = None
    if like_container:
        restrict.filter_system_calls(docker_filter())


def _drop_bounding_set() -> None:
    for capability in range(64):
        try:
            restrict.control(restrict.PR_CAPBSET_DROP, capability)
        except OSError:
            break


# Of Docker's default profile for a container without capabilities: the calls that it refuses, by
# their numbers on x86_64 and on aarch64, without those that no program of today has.
DOCKER_REFUSES = (
    *((163, 89), (248, 217), (321, 280), (305, 266), (227, 112), (176, 106), (313, 273)),
    *((175, 105), (425, 425), (426, 426), (427, 427), (312, 272), (320, 294), (246, 104)),
    *((250, 219), (212, 18), (237, 235), (165, 40), (429, 429), (442, 442), (279, 239)),
    *((256, 238), (304, 265), (428, 428), (298, 241), (155, 41), (438, 438), (440, 440)),
    *((179, 60), (443, 443), (169, 142), (249, 218), (238, 237), (308, 268), (164, 170)),
    *((168, 225), (167, 224), (103, 116), (166, 39), (272, 97), (323, 282), (153, 58)),
    *((300, 262), (430, 430), (431, 431), (432, 432), (433, 433), (170, 161), (171, 162)),
    *((161, 51), (159, 171), (467, 467)),
)
NAMESPACE_FLAGS, AF_ALG, AF_VSOCK = 0x7E020000, 38, 40


def docker_filter() -> bytes:
    """A filter that refuses what Docker's default profile does."""
    column = ("x86_64", "aarch64").index(os.uname().machine)
    load, equal, jump_set, result = 0x20, 0x15, 0x45, 0x06
    refuse, missing, allow = 0x50000 | 1, 0x50000 | 38, 0x7FFF0000
    clone, socket_ = ((56, 220), (41, 198))
    code = [(load, 0, 0, 0)]
    for numbers in DOCKER_REFUSES:
        code += [(equal, 0, 1, numbers[column]), (result, 0, 0, refuse)]
    code += [(equal, 0, 1, 435), (result, 0, 0, missing)]  # clone3, whose flags no filter sees
    code += [(equal, 0, 4, clone[column]), (load, 0, 0, 16), (jump_set, 0, 1, NAMESPACE_FLAGS)]
    code += [(result, 0, 0, refuse), (result, 0, 0, allow)]
    code += [(equal, 0, 4, socket_[column]), (load, 0, 0, 16), (equal, 1, 0, AF_ALG)]
    code += [(equal, 0, 1, AF_VSOCK), (result, 0, 0, refuse), (result, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *one) for one in code)
