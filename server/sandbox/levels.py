"""The levels of the sandbox: which one works on this machine, and what it enforces."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ..config import SettingError
from . import restrict
from .seccomp import build_filter

logger = logging.getLogger(__name__)

Level = Literal["bwrap", "landlock", "off"]
SETTING = "CLAWDFORGE_SANDBOX"
RESTRICT = Path(restrict.__file__)
PROGRAM_SECS = 15
TRUNCATE_SINCE, TCP_SINCE, SCOPES_SINCE = 3, 4, restrict.SCOPES_SINCE
UNIX_SINCE = 9

BWRAP_OPTIONS = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
    *("--unshare-cgroup-try", "--die-with-parent", "--cap-drop", "ALL"),
)


class Mechanism(msgspec.Struct, frozen=True):
    """The sandbox that this machine and the setting result in.

    Attributes:
        level: the level that is enforced.
        is_chosen: the operator named the level, so that ``off`` is a decision.
        abi: the version of Landlock; 0 if the kernel has none.
        program: bubblewrap's path, at the level ``bwrap``.
        reasons: why better levels do not work, by level.
    """

    level: Level
    is_chosen: bool
    abi: int
    program: str | None = None
    reasons: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def unix_sockets(self) -> bool:
        """Whether programs may create Unix sockets, because others' sockets are out of reach."""
        return self.abi >= (SCOPES_SINCE if self.level == "bwrap" else UNIX_SINCE)

    @property
    def limits_tcp(self) -> bool:
        """Whether the ports to which programs connect can be limited."""
        return self.abi >= TCP_SINCE

    def seccomp(self, *, tcp_only: bool, datagrams: bool, servers: bool) -> bytes:
        """The filter of the level; see :func:`build_filter`."""
        filter_ = build_filter(
            has_namespaces=self.level == "bwrap",
            unix_sockets=self.unix_sockets,
            tcp_only=tcp_only,
            datagrams=datagrams,
            servers=servers,
        )
        return filter_ or b""

    @property
    def enforced(self) -> list[str]:
        """The targets that agents cannot reach, in the words of ``/healthz``."""
        if self.level == "off":
            return []
        restrictions = ["files", "memory", "kernel", "home"]
        if self.level == "bwrap":
            return [*restrictions, "signals", "processes", "sockets", "ipc", "devices"]
        if self.abi >= SCOPES_SINCE:
            restrictions.append("signals")
        return [*restrictions, "sockets", "ipc"]

    @property
    def open(self) -> list[str]:
        """The targets that agents can reach nevertheless."""
        if self.level == "off":
            return ["files", "memory", "signals", "processes", "sockets", "loopback", "cpu"]
        if self.level == "bwrap":
            return ["loopback", "cpu"]
        gaps = ["process list", "file attributes", "terminals", "loopback", "cpu"]
        if self.abi < SCOPES_SINCE:
            gaps.insert(0, "signals")
        if self.abi < TRUNCATE_SINCE:
            gaps.insert(0, "truncation of files")
        return gaps


def find_mechanism(setting: str, environ: Mapping[str, str]) -> Mechanism:
    """Find the level to use. Blocking: it starts bubblewrap once.

    Args:
        setting: ``auto``, or the name of a level.
        environ: the environment, whose PATH is searched for bubblewrap.

    Raises:
        SettingError: the level that the setting names does not work here.
    """
    abi = restrict.landlock_version()
    if setting == "off":
        return Mechanism("off", is_chosen=True, abi=abi)
    is_chosen = setting != "auto"
    reasons: dict[str, str] = {}
    if setting in ("auto", "bwrap"):
        program, reason = find_bwrap(environ)
        if program is not None and reason is None:
            return Mechanism("bwrap", is_chosen, abi, program)
        reasons["bwrap"] = reason or ""
    if setting in ("auto", "landlock"):
        reason = _why_no_landlock(abi)
        if reason is None:
            return Mechanism("landlock", is_chosen, abi, reasons=reasons)
        reasons["landlock"] = reason
    if is_chosen:
        raise SettingError(
            f"{SETTING}: {setting} does not work on this machine: {reasons[setting]}"
        )
    return Mechanism("off", is_chosen=False, abi=abi, reasons=reasons)


def _why_no_landlock(abi: int) -> str | None:
    if build_filter(has_namespaces=False, unix_sockets=False) is None:
        return f"there is no filter for {os.uname().machine}"
    if abi == 0:
        return "the kernel has no Landlock (Linux 5.13), or a container forbids it"
    return _try({"level": "landlock", "bwrap": []})


def find_bwrap(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Try bubblewrap.

    Returns:
        Its path, and the reason why it does not work, or None.
    """
    program = shutil.which("bwrap", path=environ.get("PATH"))
    if program is None:
        return None, "bubblewrap is not installed (the package `bubblewrap`)"
    if build_filter(has_namespaces=True, unix_sockets=False) is None:
        return program, f"there is no filter for {os.uname().machine}"
    try:
        usage = subprocess.run(
            [program, "--help"], capture_output=True, text=True, timeout=PROGRAM_SECS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return program, f"{program}: {error}"
    if "--bind-fd" not in usage.stdout + usage.stderr:
        return (
            program,
            "bubblewrap is too old: it has no --bind-fd (0.10, or Debian's 0.8.0-2+deb12u1)",
        )
    options = [program, *BWRAP_OPTIONS, "--proc", "/proc", "--dev", "/dev"]
    if os.geteuid() == 0:
        options += ["--ro-bind-try", "/proc/sys", "/proc/sys"]
    return program, _try({"level": "bwrap", "bwrap": options})


def _try(plan: Mapping[str, object]) -> str | None:
    """Start a program in a sandbox. Returns why that failed, or None."""
    is_bwrap = plan["level"] == "bwrap"
    abi = restrict.landlock_version()
    filter_ = build_filter(
        has_namespaces=is_bwrap, unix_sockets=abi >= (SCOPES_SINCE if is_bwrap else UNIX_SINCE)
    )
    tops = ("/usr", "/bin", "/lib", "/lib64")
    with tempfile.TemporaryDirectory(prefix="clawdforge-") as folder:
        file = Path(folder, "plan.json")
        complete = {
            **plan,
            "cwd": [folder, ""],
            "own": [],
            "read": [top for top in tops if os.path.lexists(top)],
            "write": [],
            "hidden": [],
            "devices": [],
            "tags": [],
            "seccomp": (filter_ or b"").hex(),
        }
        file.write_text(json.dumps(complete), encoding="utf-8")
        argv = [sys.executable, "-I", "-S", str(RESTRICT), str(file), "/bin/sh", "-c", "exit 42"]
        try:
            result = _run_alone(argv)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if result.returncode == 42:
        return None
    lines = (result.stderr or result.stdout).strip().splitlines()
    return lines[-1][:300] if lines else f"the trial ended with status {result.returncode}"


def _run_alone(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program in a process group of its own, and reap the whole group.

    Bubblewrap ends before its first process in the sandbox does, which this server inherits.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it takes too long.
    """
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            output, errors = process.communicate(timeout=PROGRAM_SECS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the pid is not reused
            raise
        finally:
            process.wait()
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-process.pid, 0)
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)
