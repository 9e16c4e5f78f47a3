"""The measured targets: clawdforge, and what it is made of; ``rivals`` has those of other projects.

Each has one agent and one warm session.

:meth:`Target.turn` sends a prompt, and measures the time until the first update and until the end
of the turn. Targets read large pieces and parse them only after the turn, so that this program
hardly affects the measurement. Then all updates are checked: a missing, repeated or misplaced one
fails.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from measure import ROOT

from server.agent_commands import AgentCommand
from server.agents.base import AgentObserver, AgentSpec
from server.agents.catalog import find_node
from server.agents.host.backend import HostBackend
from server.agents.output_limits import MessageLimits
from server.agents.subagents import Subagent
from server.data_dir import DataDir
from server.sandbox.sandbox import OFF, Sandbox

NODE = find_node()
UPDATE = b'"session/update"'
ANSWER = b'"stopReason"'
PIECE_BYTES = 1 << 20
QUIET_SECS = 0.2
ADMIN = "admin-token-of-the-bench"


class BenchError(Exception):
    """A target does not work, or has lost updates."""


class Turn(NamedTuple):
    """Seconds from the prompt to the first update, and to the end of the turn."""

    first: float
    total: float


class Target(Protocol):
    name: str

    def turn(self, prompt: str, updates: int) -> Turn:
        """Run a turn in which the agent sends *updates* updates.

        Raises:
            BenchError: an update is missing, or they are not in order.
        """

    def settle(self) -> None:
        """Wait for work that continues after the end of the last turn."""

    def close(self) -> None: ...


AGENT = [NODE, str(ROOT / "bench" / "agent.mjs")]
RIVALS = ROOT / "bench" / "node_modules"


# Reading a turn, and parsing it afterwards.


WHOLE = (b"}", b"}\n", b"}\x89\0")
"""The ends of a complete message. The server's ping may follow it in the same read."""


def read_turn(read: Callable[[], bytes], end: bytes, began: float) -> tuple[Turn, bytes]:
    """Read until *end*. Returns the times of the first update and of the end, and all bytes."""
    data = bytearray()
    first, has_ended = 0.0, False
    while True:
        piece = read()
        now = time.perf_counter() - began
        if not piece:
            raise BenchError(f"the stream ended during the turn, after {bytes(data[-500:])!r}")
        seen = max(0, len(data) - 64)
        data += piece
        if not first and data.find(UPDATE, seen) >= 0:
            first = now
        has_ended = has_ended or data.find(end, seen) >= 0
        # The frame that contains the end must be complete, however many reads it takes.
        if has_ended and data.endswith(WHOLE):
            return Turn(first, now), bytes(data)


def check_updates(messages: Iterable[Any], expected: int) -> None:
    """Raise :class:`BenchError` unless these are exactly the updates 0, 1, 2, ... in order."""
    count = 0
    for message in messages:
        if message.get("method") != "session/update":
            continue
        if message["params"]["update"]["content"]["text"] != f"{count} ":
            raise BenchError(f"expected update {count}, received: {message}")
        count += 1
    if count != expected:
        raise BenchError(f"received {count} of {expected} updates")


def parse_lines(data: bytes) -> Iterator[Any]:
    return (json.loads(line) for line in data.split(b"\n") if line.startswith(b"{"))


def parse_frames(data: bytes) -> Iterator[Any]:
    """The payloads of unmasked text frames."""
    at = 0
    while at < len(data):
        opcode, size = data[at] & 15, data[at + 1]
        wide = {126: 2, 127: 8}.get(size, 0)
        at += 2 + wide
        if wide:
            size = int.from_bytes(data[at - wide : at], "big")
        if opcode == 1:
            yield json.loads(data[at : at + size])
        at += size


def upgrade_request(parts: SplitResult, headers: Mapping[str, str]) -> bytes:
    """The upgrade request of a WebSocket."""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = {
        "Host": parts.netloc,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **headers,
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def text_frame(value: Any) -> bytes:
    """A WebSocket text frame. The mask of zeros leaves the payload unchanged."""
    payload = json.dumps(value).encode()
    size = len(payload)
    head = bytes([0x81, 0x80 | size]) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


class Socket:
    """A minimal WebSocket client: sends frames, and returns raw bytes."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        # One buffer for all reads: a new buffer of this size would cost page faults.
        self._piece = memoryview(bytearray(PIECE_BYTES))
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(upgrade_request(parts, headers or {}))
        answer = b""
        while b"\r\n\r\n" not in answer:
            # One byte at a time, because the first frame may follow immediately.
            if not (byte := self._socket.recv(1)):
                raise BenchError(f"no WebSocket at {url}: {answer.decode()}")
            answer += byte
        if b" 101 " not in answer.split(b"\r\n")[0]:
            raise BenchError(f"no WebSocket at {url}: {answer.decode()}")

    def send(self, frame: bytes) -> None:
        self._socket.sendall(frame)

    def read(self) -> bytes:
        size = self._socket.recv_into(self._piece)
        return bytes(self._piece[:size])

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


# The part of ACP that a session requires.


def request(call_id: int, method: str, params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": call_id, "method": method, "params": params}


def prompt_request(call_id: int, session_id: str, text: str) -> dict[str, Any]:
    blocks = [{"type": "text", "text": text}]
    return request(call_id, "session/prompt", {"sessionId": session_id, "prompt": blocks})


def open_session(
    send: Callable[[Any], None], read: Callable[[], bytes], parse: Callable[[bytes], Iterator[Any]]
) -> str:
    """Initialize an agent and open a session. Returns the session's id."""
    send(request(0, "initialize", {"protocolVersion": 1, "clientCapabilities": {}}))
    read_turn(read, b'"protocolVersion"', 0)
    send(request(1, "session/new", {"cwd": "/", "mcpServers": []}))
    _, data = read_turn(read, b'"sessionId"', 0)
    return str(list(parse(data))[-1]["result"]["sessionId"])


class RawPipe:
    """(a) The agent's stdio, used by this process directly: the physical limit."""

    name = "the agent's pipe, raw"

    def __init__(self, argv: list[str], folder: Path) -> None:
        self._process = subprocess.Popen(
            argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin
        self._out = self._process.stdout.fileno()
        self._piece = memoryview(bytearray(PIECE_BYTES))
        self._ids = itertools.count(2)
        self._session_id = open_session(
            lambda message: self._send(self._line(message)), self._read, parse_lines
        )

    @staticmethod
    def _line(message: Any) -> bytes:
        return json.dumps(message).encode() + b"\n"

    def _send(self, line: bytes) -> None:
        self._in.write(line)

    def _read(self) -> bytes:
        size = os.readv(self._out, [self._piece])
        return bytes(self._piece[:size])

    def turn(self, prompt: str, updates: int) -> Turn:
        line = self._line(prompt_request(next(self._ids), self._session_id, prompt))
        began = time.perf_counter()
        self._send(line)
        turn, data = read_turn(self._read, ANSWER, began)
        check_updates(parse_lines(data), updates)
        return turn

    def settle(self) -> None:
        pass

    def close(self) -> None:
        with self._process:
            self._process.kill()


class HostAlone:
    """(b) The acpx host and the stdio proxy, without session, log and socket."""

    name = "the acpx host, driven directly"

    def __init__(self, argv: list[str], folder: Path, environ: Mapping[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._backend = HostBackend(
            node=NODE,
            data_dir=DataDir(folder),
            agents={"bench": AgentCommand(tuple(argv))},
            environ=environ,
            start_timeout=30,
            backpressure=_NoBackpressure(),
            limits=MessageLimits(message_bytes=17 << 20, bytes_per_app=34 << 20),
            sandbox=Sandbox(OFF, DataDir(folder)),
        )
        self._recorder = _Recorder()
        try:
            self._run(self._backend.start())
            spec = AgentSpec(key="bench", agent="bench", cwd=str(folder), permission="deny-all")
            self._agent = self._backend.agent(spec, self._recorder)
            self._run(self._agent.start())
        except BaseException:
            self.close()
            raise

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def turn(self, prompt: str, updates: int) -> Turn:
        blocks = json.dumps([{"type": "text", "text": prompt}]).encode()
        turn: Turn = self._run(self._turn(blocks))
        check_updates(map(json.loads, self._recorder.lines), updates)
        return turn

    async def _turn(self, blocks: bytes) -> Turn:
        recorder = self._recorder
        recorder.lines, recorder.first = [], 0.0
        began = time.perf_counter()
        await self._agent.prompt(blocks).done
        return Turn(recorder.first - began, time.perf_counter() - began)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            self._run(self._backend.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _NoBackpressure:
    """A backpressure that never applies."""

    has_capacity = True

    async def wait_for_capacity(self) -> None: ...


class _Recorder(AgentObserver):
    """Observes the agent instead of a session, and only records its messages."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.first = 0.0

    def notification_received(self, message: bytes, subagent: Subagent | None = None) -> None:
        if not self.lines:
            self.first = time.perf_counter()
        self.lines.append(message)


class Server:
    """``python -m server`` with its own data folder."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        argv: list[str],
        program: str | None = None,
        **settings: str,
    ) -> None:
        folder.mkdir(exist_ok=True)
        variables = {
            "DATA_DIR": str(folder / "data"),
            "PORT": "0",
            "ADMIN_TOKEN": ADMIN,
            "AGENTS": json.dumps({"bench": argv}),
            "DEFAULT_AGENT": "bench",
            # The received bytes are compared, so no heartbeat may come. A socket that is not
            # measured at the moment does not respond to pings either.
            "HEARTBEAT_SECS": "3600",
            **settings,
        }
        named = {f"CLAWDFORGE_{name}": value for name, value in variables.items()}
        self._log = folder / "server.log"
        began = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *(["-m", "server"] if program is None else [program])],
                # Not in the repository, which may contain a .env.
                cwd=folder,
                env={**environ, **named, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Only this program handles a Ctrl-C.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"is ready on" in line:
                self.start_secs = time.perf_counter() - began
                self.url = line.split()[-1].decode().rstrip("/")
                break
        else:
            self.close()
            raise BenchError(f"the server did not start:\n{self._log.read_text()}")
        self._token = ADMIN
        self._token = self.call("POST", "/admin/tokens", {"name": secrets.token_hex(8)})["token"]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self.headers, "Content-Type": "application/json"}
        http_request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(http_request, timeout=60) as response:
            return json.load(response)

    def cpu_secs(self) -> float:
        """The processor time that the server has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def create(self) -> str:
        return str(self.call("POST", "/sessions", {})["session_id"])

    def use_app_of(self, other: Server) -> None:
        """Use the app of another node of the same cluster."""
        self._token = other._token

    def live_agents(self) -> int:
        return int(self.call("GET", "/healthz")["live_agents"])

    def kill(self) -> None:
        """End the server as a crash does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        with self._process:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()


class Clawdforge:
    """The server with its durable log, through a client's WebSocket.

    Args:
        session_id: a session, which another node may run; None for a new one.
    """

    name = "clawdforge"

    def __init__(self, server: Server, session_id: str | None = None) -> None:
        self.session_id = session_id or server.create()
        url = f"{server.url}/sessions/{self.session_id}/ws"
        self.socket = Socket(url, server.headers)
        read_turn(self.socket.read, b'"ready"', 0)
        self._seq = 0

    @staticmethod
    def _frame(prompt: str) -> bytes:
        return text_frame({"type": "prompt", "prompt": prompt})

    def send_prompt(self, prompt: str) -> None:
        self.socket.send(self._frame(prompt))

    def run_unchecked(self, prompt: str) -> None:
        """Run a turn without checking its updates."""
        self.send_prompt(prompt)
        self.read_until(b'"turn_end"')

    def read_until(self, marker: bytes) -> bytes:
        """Read until the end of the frame with *marker*. Returns the last bytes; checks nothing."""
        tail, is_found = b"", False
        while not (is_found and tail.endswith(WHOLE)):
            if not (piece := self.socket.read()):
                raise BenchError(f"the stream ended during the turn, after {tail!r}")
            tail = tail[-256:] + piece
            is_found = is_found or marker in tail
        self._seq = 0  # the position is unknown now
        return tail

    def turn(self, prompt: str, updates: int) -> Turn:
        frame = self._frame(prompt)
        began = time.perf_counter()
        self.socket.send(frame)
        turn, data = read_turn(self.socket.read, b'"turn_end"', began)
        frames = list(parse_frames(data))
        if frames[-1].get("error"):
            raise BenchError(f"the turn failed: {frames[-1]}")
        entries = [frame for frame in frames if "seq" in frame]
        for entry in entries:
            # Before the first turn, there may be entries that this socket has not received.
            if self._seq and entry["seq"] != self._seq + 1:
                raise BenchError(f"expected entry {self._seq + 1}, received: {entry}")
            self._seq = entry["seq"]
        check_updates((entry["event"] for entry in entries if "event" in entry), updates)
        return turn

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self.socket.close()
