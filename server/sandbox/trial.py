"""Tries to escape from the sandbox of this machine, for ``doctor``. Blocking."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..data_dir import DataDir
from . import attempts
from .levels import RESTRICT, Mechanism
from .sandbox import Sandbox

TRIAL_SECS = 30
SLEEPER = "import time; print(flush=True); time.sleep(600)"
IPC_CREAT, IPC_RMID = 0o1000, 0


class TrialSpec(msgspec.Struct, frozen=True):
    """The session that an attempt is made from; see :class:`SandboxSpec`."""

    key: str
    cwd: str
    agent: str = ""
    owner: str = ""
    directories: tuple[str, ...] = ()
    repository: str | None = None
    client_environ: Mapping[str, str] = msgspec.field(default_factory=dict)


def try_escapes(
    mechanism: Mechanism,
    environ: Mapping[str, str],
    script: Path = Path(attempts.__file__),
    python: str = sys.executable,
) -> dict[str, str | None]:
    """Run attempts to escape, against a data folder made for them.

    Args:
        environ: the environment of agents.
        script: the program that makes the attempts; by default the short form.
        python: runs the script.

    Returns:
        The name of each attempt to the reason why it failed, or to None if it succeeded.

    Raises:
        OSError: the attempts cannot be run.
    """
    with contextlib.ExitStack() as stack:
        data = DataDir(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        home = stack.enter_context(tempfile.TemporaryDirectory())
        sandbox = Sandbox(mechanism, data, environ={**environ, "HOME": home})
        targets = stack.enter_context(targets_of(data, Path(home), environ, python))
        cwd = data.workspace("own")
        cwd.mkdir()
        targets["own_home"] = str(data.homes / "own")
        plan = sandbox.plan(TrialSpec("own", str(cwd)), {})
        if sandbox.is_on:
            (copy,) = sandbox.folders.add_files("own", [Path(targets["upload"])])
            targets["own_upload"] = str(copy)
        file = data.path / "plan.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        argv = [python, "-I", "-S", str(script)]
        return run_attempts(file, argv, targets, sandbox.environ)


@contextlib.contextmanager
def targets_of(
    data: DataDir, home: Path, environ: Mapping[str, str], python: str
) -> Iterator[dict[str, Any]]:
    """Make the targets of all attempts, which the attempts may read, change and delete.

    Args:
        data: a data folder, which is filled.
        home: plays the home of the server's user.
    """
    with contextlib.ExitStack() as stack:
        yield {
            **_files(data, home),
            **stack.enter_context(_shared_files()),
            **stack.enter_context(_sockets(data)),
            **stack.enter_context(_process(environ, python)),
            **stack.enter_context(_shared_memory()),
            **stack.enter_context(_terminal()),
        }


def run_attempts(
    plan: Path, argv: Sequence[str], targets: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, str | None]:
    """Run a program of attempts in the sandbox of a plan, and return the results that it prints.

    Raises:
        OSError: the script cannot be run.
    """
    try:
        result = subprocess.run(
            [argv[0], "-I", "-S", str(RESTRICT), str(plan), *argv, json.dumps(targets)],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TRIAL_SECS,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"the attempts took over {TRIAL_SECS} s") from None
    try:
        return dict(json.loads(result.stdout))
    except ValueError:
        lines = result.stderr.strip().splitlines()
        raise OSError(lines[-1] if lines else f"status {result.returncode}") from None


def _files(data: DataDir, home: Path) -> dict[str, str]:
    paths = {
        "database": data.database,
        "other_file": data.workspace("other") / "notes",
        "other_home_file": data.homes / "other" / ".credentials",
        "upload": data.uploads / "one" / "report.txt",
        "operator_file": home / "id_ed25519",
        "environment_file": data.path / ".env",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret", encoding="utf-8")
    empty = data.workspace("other") / "empty"
    empty.mkdir()
    return {
        "data": str(data.path),
        "empty_folder": str(empty),
        **{name: str(path) for name, path in paths.items()},
    }


@contextlib.contextmanager
def _shared_files() -> Iterator[dict[str, str]]:
    """Files in the folders that all users share."""
    with tempfile.NamedTemporaryFile() as file, contextlib.ExitStack() as stack:
        files = {"temporary_file": file.name}
        if os.access("/dev/shm", os.W_OK):  # noqa: S108
            other = stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm"))
            files["shared_memory_file"] = other.name
        yield files


@contextlib.contextmanager
def _sockets(data: DataDir) -> Iterator[dict[str, Any]]:
    name = f"clawdforge-trial-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        for kind, suffix in ((socket.SOCK_STREAM, "s"), (socket.SOCK_DGRAM, "d")):
            for address in (f"\0{name}{suffix}", str(data.path / suffix)):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                sock.bind(address)
                if kind == socket.SOCK_STREAM:
                    sock.listen()
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield {
            "abstract_socket": f"{name}s",
            "unix_socket": str(data.path / "s"),
            "abstract_datagram_socket": f"{name}d",
            "datagram_socket": str(data.path / "d"),
            "tcp_port": tcp.getsockname()[1],
        }


@contextlib.contextmanager
def _process(environ: Mapping[str, str], python: str) -> Iterator[dict[str, Any]]:
    """A process of this user with a secret in its environment."""
    secret, marker = secrets.token_hex(8), secrets.token_hex(8)
    process = subprocess.Popen(
        [python, "-I", "-S", "-c", SLEEPER, marker],
        env={**environ, "SECRET": secret},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield {"pid": process.pid, "secret": secret, "marker": marker}
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _terminal() -> Iterator[dict[str, Any]]:
    controller, terminal = os.openpty()
    try:
        # A namespace has other terminals under the same names.
        yield {
            "terminal": os.ttyname(terminal),
            "terminal_device": os.fstat(terminal).st_dev,
        }
    finally:
        os.close(controller)
        os.close(terminal)


@contextlib.contextmanager
def _shared_memory() -> Iterator[dict[str, Any]]:
    functions = ctypes.CDLL(None, use_errno=True)
    key, name = secrets.randbits(30) | 1, f"/clawdforge-{secrets.token_hex(8)}"
    number = functions.shmget(key, 4096, IPC_CREAT | 0o600)
    queue = functions.mq_open(name.encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
    try:
        yield {
            "shared_memory_key": key,
            "shared_memory_id": number,
            "message_queue": name,
        }
    finally:
        functions.shmctl(number, IPC_RMID, None)
        if queue >= 0:
            os.close(queue)
            functions.mq_unlink(name.encode())
