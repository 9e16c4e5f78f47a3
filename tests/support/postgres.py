"""A PostgreSQL server of Debian's package, in a folder in memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import descendants

USER = "clawdforge"
_PROGRAMS = Path("/usr/lib/postgresql")
_NAMES = itertools.count(1)
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "on",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "posix",
    "log_min_messages": "warning",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "lc_messages": "C",
}


def programs() -> Path | None:
    """The folder of the newest installed PostgreSQL; None if there is none."""
    found = sorted(
        (path for path in _PROGRAMS.glob("*/bin") if (path / "initdb").exists()),
        key=lambda path: int(path.parent.name),
    )
    return found[-1] if found else None


def require_programs() -> Path:
    """The folder of PostgreSQL's programs; without one the test is skipped."""
    found = programs()
    if found is None:
        message = "PostgreSQL is not installed: apt-get install postgresql"
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def _user() -> pwd.struct_passwd | None:
    """The user that runs PostgreSQL, which refuses to run as root; None for this one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL does not run as root, and there is no other user")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Postgres:
    """A PostgreSQL server.

    Attributes:
        folder: its data.
        port: at which it listens on 127.0.0.1.
    """

    def __init__(self, programs: Path, folder: Path, port: int) -> None:
        self._programs = programs
        user = _user()
        self._user = None if user is None else user.pw_uid
        self._group = None if user is None else user.pw_gid
        self.folder = folder
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as PostgreSQL's user."""
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            capture_output=True,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            user=self._user,
            group=self._group,
        )

    def create(self) -> None:
        """Create an empty cluster of databases."""
        if self._user is not None and self._group is not None:
            os.chown(self.folder.parent, self._user, self._group)
        self.run(
            "initdb", "-D", str(self.folder), "-U", USER, "-A", "trust", "-E", "UTF8",
            "--locale=C.UTF-8", "--no-sync", "--no-instructions",
        )  # fmt: skip

    def start(self, **settings: str) -> None:
        """Start the server, and wait until it takes connections."""
        options = {
            **SETTINGS,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder.parent),
            **settings,
        }
        with (self.folder.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    "-D",
                    self.folder,
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                user=self._user,
                group=self._group,
                start_new_session=True,  # Ctrl-C ends it after the servers that use it
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        for _ in range(600):
            assert self.process is not None
            assert self.process.poll() is None, (self.folder.parent / "log").read_text()[-2000:]
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1")
                return
        raise TimeoutError("PostgreSQL does not start")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends it in order, SIGQUIT as a crash does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def pause(self) -> None:
        """Stop all processes of the server, as a hanging disk does."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self.process is not None
        for pid in (self.process.pid, *descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """The result of a statement, as psql prints it."""
        return subprocess.run(
            [
                self._programs / "psql", "-X", "-A", "-t", "-q", "-h", "127.0.0.1",
                "-p", str(self.port), "-U", USER, "-d", database,
                "-v", "ON_ERROR_STOP=1", "-c", statement,
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()  # fmt: skip

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{os.getpid()}_{next(_NAMES)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def copy_from(self, primary: Postgres) -> None:
        """Become a copy of a running server, which follows it as an asynchronous standby."""
        if self._user is not None and self._group is not None:
            os.chown(self.folder.parent, self._user, self._group)
        self.run(
            "pg_basebackup", "-h", "127.0.0.1", "-p", str(primary.port), "-U", USER,
            "-D", str(self.folder), "-R", "--checkpoint=fast", "--no-sync",
        )  # fmt: skip

    def cut_off(self) -> None:
        """Let a standby receive nothing more."""
        self.sql("ALTER SYSTEM SET primary_conninfo = ''")
        self.sql("SELECT pg_reload_conf()")
        while self.sql("SELECT count(*) FROM pg_stat_wal_receiver") != "0":
            time.sleep(0.05)

    def promote(self) -> None:
        """Let a standby take writes."""
        assert self.sql("SELECT pg_promote(true, 60)") == "t"

    def url(self, database: str, port: int | None = None) -> str:
        return f"postgresql://{USER}@127.0.0.1:{port or self.port}/{database}"


@contextlib.contextmanager
def running_postgres(primary: Postgres | None = None, **settings: str) -> Iterator[Postgres]:
    """Run a PostgreSQL server in a new folder in memory.

    Args:
        primary: the server of which it is a standby.
    """
    found = require_programs()
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="clawdforge-pg-"))
    root.chmod(0o755)
    server = Postgres(found, root / "data", free_port())
    try:
        if primary is None:
            server.create()
        else:
            server.copy_from(primary)
        server.start(**settings)
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)
