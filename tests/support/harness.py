"""What the tests drive a server with: a client, sockets that remember, and servers to drive.

Nothing here sleeps in hope: everything waits for a frame, a state or a process,
with a deadline that fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from blockbuster import BlockBuster

from server.app import build_app
from server.config import AgentCommand, Settings
from server.tasks import Supervisor
from server.web.context import CONTEXT, ServerContext
from server.web.listener import Listener
from server.web.middleware import Runner
from server.ws.connection import INCOMING_LIMITS
from server.ws.incoming import IncomingLimits

ROOT = Path(__file__).parents[2]
MOCK = ROOT / "tests" / "stand_ins" / "mock_agent.py"
ADMIN = "admin-token-of-the-tests"
PATIENCE = 20.0

Json = dict[str, Any]


def mock_agent(*flags: str, **environ: str) -> AgentCommand:
    """The scriptable mock agent, started with *flags*."""
    return AgentCommand((sys.executable, "-I", "-S", str(MOCK), *flags), environ)


MOCKS: dict[str, AgentCommand] = {
    "mock": mock_agent(),
    "mock-resume": mock_agent("--resume"),
    "mock-modes": mock_agent("--modes"),
    "mock-no-load": mock_agent("--no-load"),
    "mock-fail-load": mock_agent("--fail-load", "--commands"),
    "mock-fail-new": mock_agent("--fail-new"),
    "mock-dies": mock_agent("--die-at-start"),
    "mock-silent": mock_agent("--silent"),
    "mock-stubborn": mock_agent("--ignore-eof", "--ignore-sigterm"),
    "missing": AgentCommand(("no-such-program-anywhere", "--acp")),
}


def script(*steps: Json) -> str:
    """A prompt that the mock agent carries out; see its table of steps."""
    return json.dumps({"steps": list(steps)})


class Clock:
    """Unix seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Socket:
    """A session's socket from a client's side; it keeps every frame it has seen.

    Attributes:
        frames: all frames, as they came.
        close_code: of the server's close, once it is closed.
    """

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.frames: list[Json] = []
        self._seen = 0

    @property
    def close_code(self) -> int | None:
        return self.ws.close_code

    async def send(self, kind: str, **fields: Any) -> None:
        await self.ws.send_str(json.dumps({"type": kind, **fields}))

    async def next(self) -> Json | None:
        """The next frame that nobody has waited for yet; None once the socket is closed."""
        if self._seen == len(self.frames):
            async with Deadline(f"a frame; the last was {self.frames[-1:]}"):
                message = await self.ws.receive()
            if message.type is not WSMsgType.TEXT:
                return None
            self.frames.append(json.loads(message.data))
        self._seen += 1
        return self.frames[self._seen - 1]

    async def until(self, kind: str, **fields: Any) -> Json:
        """The next frame of that type and with those fields; others are passed over."""
        while (frame := await self.next()) is not None:
            if frame["type"] == kind and fields.items() <= frame.items():
                return frame
        kinds = [frame["type"] for frame in self.frames]
        raise AssertionError(f"closed with {self.close_code} before {kind} {fields}: {kinds}")

    async def until_text(self, text: str) -> Json:
        """The next event whose message chunk contains *text*."""
        while (frame := await self.next()) is not None:
            if frame["type"] == "event" and text in chunk_text(frame):
                return frame
        raise AssertionError(f"closed with {self.close_code} before the text {text!r}")

    async def until_closed(self) -> int:
        """Read to the end; the close code."""
        while await self.next() is not None:
            pass
        assert self.close_code is not None
        return self.close_code

    async def turn(self, prompt: Any, **fields: Any) -> Json:
        """Send a prompt and wait for its turn's end."""
        await self.send("prompt", prompt=prompt, **fields)
        accepted = await self.until("accepted")
        return await self.until("turn_end", turn_index=accepted["turn_index"])

    @property
    def entries(self) -> list[Json]:
        """The log entries among the frames."""
        return [frame for frame in self.frames if "seq" in frame]

    def text(self, turn_index: int | None = None) -> str:
        """All message chunks of a turn (or of all), joined."""
        return "".join(
            chunk_text(frame)
            for frame in self.entries
            if frame["type"] == "event" and turn_index in (None, frame["turn_index"])
        )

    async def close(self) -> None:
        await self.ws.close()


def chunk_text(frame: Json) -> str:
    """The text of an ``event`` entry that carries an agent's message chunk, else nothing."""
    update = frame.get("event", {}).get("params", {}).get("update", {})
    if update.get("sessionUpdate") != "agent_message_chunk":
        return ""
    return str(update.get("content", {}).get("text", ""))


def texts_of(events: list[Json]) -> str:
    """The same for the raw events of a REST turn."""
    return "".join(chunk_text({"event": event}) for event in events)


_sockets: WeakKeyDictionary[aiohttp.ClientSession, list[aiohttp.ClientWebSocketResponse]] = (
    WeakKeyDictionary()
)


class Client:
    """One app's client: REST calls give (status, body), sockets are :class:`Socket`."""

    def __init__(self, url: str, token: str | None, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.token = token
        self.http = http

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}

    async def call(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> tuple[int, Json]:
        headers = {**self.headers(), **options.pop("headers", {})}
        if body is not None:
            options["data"] = body if isinstance(body, (bytes, str)) else json.dumps(body)
        async with self.http.request(
            method, self.url + path, headers=headers, **options
        ) as response:
            data = await response.read()
            self.last_headers = response.headers
            return response.status, json.loads(data) if data else {}

    async def get(self, path: str, **options: Any) -> tuple[int, Json]:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Json]:
        return await self.call("POST", path, body if body is not None else {}, **options)

    async def delete(self, path: str) -> tuple[int, Json]:
        return await self.call("DELETE", path)

    async def create(self, agent: str = "mock", **body: Any) -> str:
        """Create a session; its id."""
        status, reply = await self.post("/sessions", {"agent": agent, **body})
        assert status == 200, reply
        return str(reply["session_id"])

    async def turn(self, session_id: str, prompt: Any, **body: Any) -> tuple[int, Json]:
        return await self.post(f"/sessions/{session_id}/turn", {"prompt": prompt, **body})

    async def events(self, session_id: str, after: int = 0) -> list[Json]:
        """The whole log behind *after*."""
        entries: list[Json] = []
        while True:
            status, reply = await self.get(f"/sessions/{session_id}/events?after={after}")
            assert status == 200, reply
            entries += reply["entries"]
            if not reply["entries"] or entries[-1]["seq"] >= reply["head"]:
                return entries
            after = entries[-1]["seq"]

    async def state(self, session_id: str) -> Json:
        status, reply = await self.get(f"/sessions/{session_id}")
        assert status == 200, reply
        return reply

    async def asleep(self, session_id: str) -> None:
        """Wait until the server has noticed that the session's agent is gone."""

        async def gone() -> bool:
            return bool((await self.state(session_id))["agent_state"] == "hibernated")

        await eventually("the agent to be gone", gone)

    async def awake(self, session_id: str) -> None:
        """Wait until the session's agent has started."""

        async def live() -> bool:
            return bool((await self.state(session_id))["agent_state"] == "live")

        await eventually("the agent to start", live)

    def keep(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Have *ws* closed with the client."""
        _sockets.setdefault(self.http, []).append(ws)

    async def close_sockets(self) -> None:
        """Close what has been kept so far."""
        for ws in _sockets.pop(self.http, []):
            await ws.close()

    async def connect(
        self, session_id: str, *, after: int | None = None, ready: bool = True, **options: Any
    ) -> Socket:
        """Open a session's socket; its ``ready`` frame has been read unless told otherwise."""
        query = "" if after is None else f"?after={after}"
        headers = {**self.headers(), **options.pop("headers", {})}
        ws = await self.http.ws_connect(
            f"{self.url}/sessions/{session_id}/ws{query}",
            headers=headers,
            max_msg_size=0,
            **options,
        )
        socket = Socket(ws)
        self.keep(ws)
        if ready:
            await socket.until("ready")
        return socket


class LocalServer:
    """A server in the test's own process and loop, with real acpx behind it."""

    def __init__(self, runner: web.AppRunner, url: str, http: aiohttp.ClientSession) -> None:
        self._runner = runner
        self._http = http
        self.url = url
        self.services: ServerContext = runner.app[CONTEXT]
        self.router = runner.app.router
        self.incoming: IncomingLimits = runner.app[INCOMING_LIMITS]

    async def client(self, name: str = "app", **token: Any) -> Client:
        """A client with a token of its own."""
        admin = self.admin()
        status, reply = await admin.post("/admin/tokens", {"name": name, **token})
        assert status == 200, reply
        return Client(self.url, reply["token"], self._http)

    async def clear(self) -> None:
        """End every app, with its sockets, its sessions and their agents."""
        await self.anonymous().close_sockets()
        services = self.services
        for row in services.tokens.rows():
            for session in await services.sessions.sessions_of(row.name, include_closed=False):
                await services.sessions.close(session, "admin")
            await services.tokens.revoke(row.name)

    def admin(self) -> Client:
        return Client(self.url, ADMIN, self._http)

    def anonymous(self) -> Client:
        return Client(self.url, None, self._http)

    async def stop(self) -> None:
        await self._runner.cleanup()


# While tests run against servers here, whatever would block their event loop fails. A server's
# start and end may.
blocking = BlockBuster("server")


@contextlib.asynccontextmanager
async def local_server(
    data_dir: Path,
    clock: Callable[[], float] = time.time,
    supervisor: Supervisor | None = None,
    **settings: Any,
) -> AsyncIterator[LocalServer]:
    """Run a server here; *settings* are fields of :class:`Settings`."""
    values = {
        "admin_token": ADMIN,
        "agents": MOCKS,
        "default_agent": "mock",
        "data_dir": data_dir,
        "min_free_bytes": 0,  # the machine's disk is not the test's
        "drain_secs": 0.1,  # a turn that a test leaves running is not waited for
        **settings,
    }
    blocking.deactivate()
    environ = {**os.environ, "DEMO_PACE_MS": "0"}
    app = await build_app(Settings(**values), environ=environ, clock=clock, supervisor=supervisor)
    runner = Runner(app, shutdown_timeout=2)
    try:
        await runner.setup()
        services = app[CONTEXT]
        used = services.settings
        door = Listener(
            services.sockets.waiting,
            used.auth_timeout_secs,
            used.stall_timeout_secs,
            services.supervisor,
        )
        async with http_session() as http, door.open(runner, "127.0.0.1", 0) as port:
            blocking.activate()
            yield LocalServer(runner, f"http://127.0.0.1:{port}", http)
    finally:
        blocking.deactivate()
        await runner.cleanup()


def hold_commits(
    server: LocalServer, patch: pytest.MonkeyPatch
) -> tuple[asyncio.Event, asyncio.Event]:
    """Keep whoever commits waiting: an event that it is stored, and one that lets them go on."""
    writer, stored, go_on = server.services.sessions.writer, asyncio.Event(), asyncio.Event()
    commit = writer.commit

    async def slow_commit(statements: Any) -> None:
        await commit(statements)
        stored.set()
        await go_on.wait()

    patch.setattr(writer, "commit", slow_commit)
    return stored, go_on


class ServerProcess:
    """A server as a user runs it: ``python -m server``, killed or stopped by its pid."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, greeting: str) -> None:
        self.process = process
        self.url = url
        self.greeting = greeting

    @property
    def pid(self) -> int:
        return self.process.pid

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and wait; its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), PATIENCE)


async def start_server(
    data_dir: Path, log: Path, *, wrapper: Sequence[str] = (), **variables: str | None
) -> ServerProcess:
    """Start ``python -m server`` on a free port and wait until it is ready.

    Args:
        log: file that its stderr is added to.
        wrapper: a program, with arguments, that becomes the server.
        variables: settings, by the variable's name without the prefix; None leaves one out.
    """
    agents = {name: {"argv": a.argv, "env": dict(a.env)} for name, a in MOCKS.items()}
    settings = {
        "DATA_DIR": str(data_dir),
        "PORT": "0",
        "ADMIN_TOKEN": ADMIN,
        "AGENTS": json.dumps(agents),
        "DEFAULT_AGENT": "mock",
        "MIN_FREE_BYTES": "0",
        **variables,
    }
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
    environ |= {f"CLAWDFORGE_{k}": v for k, v in settings.items() if v is not None}
    environ |= {"DEMO_PACE_MS": "0", "PYTHONWARNINGS": "error"}
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *wrapper,
            *(sys.executable, "-m", "server"),
            cwd=ROOT,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    greeting = ""
    while "is ready on" not in greeting:
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        if not line:
            raise AssertionError(f"the server did not start: see {log}")
        greeting += line.decode()
    url = greeting.rpartition("is ready on ")[2].strip().rstrip("/")
    return ServerProcess(process, url, greeting)


@contextlib.asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client session that closes its WebSockets with it."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        try:
            yield http
        finally:
            await Client("", None, http).close_sockets()


async def new_client(url: str, http: aiohttp.ClientSession, name: str = "app") -> Client:
    """A client with a fresh token at a :class:`ServerProcess`."""
    status, reply = await Client(url, ADMIN, http).post("/admin/tokens", {"name": name})
    assert status == 200, reply
    return Client(url, reply["token"], http)


class Deadline:
    """``async with Deadline(what):`` fails the test when the body takes too long."""

    def __init__(self, what: str, seconds: float = PATIENCE) -> None:
        self._what = what
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise AssertionError(f"waited too long for {self._what}") from error


async def eventually(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Poll *condition* (plain or async) until it is true, for what sends no signal."""
    async with Deadline(what, seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.01)


async def run_program(*argv: str, **variables: str) -> tuple[int | None, str, str]:
    """Run a program; its exit status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 2 * PATIENCE)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        pytest.fail(f"{argv[0]} took too long; it said {out!r} {err!r}")
    return process.returncode, out.decode(), err.decode()


def is_running(pid: int) -> bool:
    """Whether *pid* is a process that has not ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def descendants(pid: int) -> list[int]:
    """Every process below *pid*, zombies left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    parents[int(entry.name)] = int(fields[1])

    def chain(child: int) -> Iterator[int]:
        while child in parents:
            child = parents[child]
            yield child

    return [child for child in parents if pid in chain(child)]


def environ_of(pid: int) -> Mapping[str, str]:
    """The environment that process was started with."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (entry.decode(errors="replace").partition("=") for entry in raw if entry)
    return {name: value for name, _, value in pairs}
