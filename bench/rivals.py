"""The rivals with programs of their own: acpx prompt, stdio-to-ws and sandbox-agent."""

from __future__ import annotations

import itertools
import json
import os
import select
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import ROOT
from targets import (
    ANSWER,
    NODE,
    PIECE_BYTES,
    QUIET_SECS,
    RIVALS,
    UPDATE,
    BenchError,
    Socket,
    Turn,
    check_updates,
    open_session,
    parse_frames,
    parse_lines,
    prompt_request,
    read_turn,
    request,
    text_frame,
)


class AcpxPrompt:
    """(c) ``acpx prompt``: one process for each turn, with a warm queue owner."""

    name = "`acpx prompt`"

    def __init__(self, argv: list[str], folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._command = [
            *(NODE, str(ROOT / "node_modules" / "acpx" / "dist" / "cli.js")),
            *("--format", "json", "--json-strict", "--approve-all"),
            *("--agent", shlex.join(argv), "--cwd", str(folder)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._call("sessions", "ensure", "--name", "bench")
        self.turn("hi", 1)  # starts the queue owner and the agent
        self.settle()

    def _call(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command, *arguments], env=self._environ, capture_output=True, check=False
        )
        if done.returncode:
            raise BenchError(f"acpx {shlex.join(arguments)}: {done.stderr.decode()}")

    def turn(self, prompt: str, updates: int) -> Turn:
        last = self._process
        began = time.perf_counter()
        process = self._process = subprocess.Popen(
            [*self._command, "prompt", "-s", "bench", "-f", "-"],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(prompt.encode())
        process.stdin.close()
        out = process.stdout.fileno()
        turn, data = read_turn(lambda: os.read(out, PIECE_BYTES), ANSWER, began)
        check_updates(parse_lines(data), updates)
        if last is not None:
            _finish(last)
        return turn

    def settle(self) -> None:
        """Wait for the process, which exits a second after its turn."""
        if self._process is not None:
            _finish(self._process)
            self._process = None

    def close(self) -> None:
        self.settle()
        self._call("sessions", "close", "bench")


def _finish(process: subprocess.Popen[bytes]) -> None:
    with process:
        assert process.stdout is not None
        while os.read(process.stdout.fileno(), PIECE_BYTES):
            pass


class StdioToWs:
    """(d) stdio-to-ws from npm: a bridge without sessions, log or authentication."""

    name = "`stdio-to-ws`"

    def __init__(self, argv: list[str], folder: Path, environ: Mapping[str, str]) -> None:
        port = free_port()
        script = RIVALS / "stdio-to-ws" / "dist" / "main.js"
        self._process = subprocess.Popen(
            [NODE, str(script), "--quiet", "--port", str(port), shlex.join(argv)],
            cwd=folder,
            env=environ,
            # It prints every message in spite of --quiet.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.url = f"ws://127.0.0.1:{port}/"
        try:
            self._line = self.connect()
        except BaseException:
            self.close()
            raise

    def connect(self) -> BridgedAgent:
        """Open another socket, which has an agent of its own."""
        return BridgedAgent(_connect(self.url))

    def turn(self, prompt: str, updates: int) -> Turn:
        return self._line.turn(prompt, updates)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        with self._process:
            self._process.terminate()


class BridgedAgent:
    """A session of an agent, through a socket that carries its lines."""

    def __init__(self, line: Socket) -> None:
        self.socket = line
        self._ids = itertools.count(2)
        self._session_id = open_session(
            lambda message: line.send(text_frame(message)), line.read, parse_frames
        )

    def _frame(self, prompt: str) -> bytes:
        return text_frame(prompt_request(next(self._ids), self._session_id, prompt))

    def send_prompt(self, prompt: str) -> None:
        self.socket.send(self._frame(prompt))

    def turn(self, prompt: str, updates: int) -> Turn:
        frame = self._frame(prompt)
        began = time.perf_counter()
        self.socket.send(frame)
        turn, data = read_turn(self.socket.read, ANSWER, began)
        check_updates(parse_frames(data), updates)
        return turn


class SandboxAgent:
    """(f) @sandbox-agent/cli: ACP over HTTP, updates as server-sent events."""

    name = "`sandbox-agent`"

    def __init__(self, argv: list[str], folder: Path, environ: Mapping[str, str]) -> None:
        # It only runs agents that it knows by name, and finds them on the PATH.
        program = folder / "opencode"
        program.write_text(f"#!/bin/sh\nexec {shlex.join(argv)}\n", "utf-8")
        program.chmod(0o755)
        port = free_port()
        binary = RIVALS / "@sandbox-agent" / "cli-linux-x64" / "bin" / "sandbox-agent"
        binary.chmod(0o755)
        self._process = subprocess.Popen(
            [str(binary), "server", "--no-token", "--no-telemetry", "--port", str(port)],
            cwd=folder,
            env={**environ, "PATH": f"{folder}:{environ['PATH']}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._host = f"127.0.0.1:{port}"
        self._ids = itertools.count(2)
        self.lost = 0
        try:
            self._posts = self._open()
            self._call(request(0, "initialize", {"protocolVersion": 1, "clientCapabilities": {}}))
            opened = self._call(request(1, "session/new", {"cwd": "/", "mcpServers": []}))
            self._session_id = opened["result"]["sessionId"]
            self._events = self._open()
            self._events.sendall(
                f"GET /v1/acp/bench HTTP/1.1\r\nHost: {self._host}\r\n"
                "Accept: text/event-stream\r\n\r\n".encode()
            )
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += self._events.recv(PIECE_BYTES)
        except BaseException:
            self.close()
            raise

    def _open(self) -> socket.socket:
        name, _, port = self._host.partition(":")
        for _ in range(100):
            try:
                line = socket.create_connection((name, int(port)), timeout=30)
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return line
            except ConnectionRefusedError:
                time.sleep(0.05)
        raise BenchError("sandbox-agent does not listen")

    def _post(self, message: Any) -> bytes:
        body = json.dumps(message).encode()
        head = (
            f"POST /v1/acp/bench?agent=opencode HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def _call(self, message: Any) -> Any:
        self._posts.sendall(self._post(message))
        return self._read_response()

    def _read_response(self) -> Any:
        answer = b""
        while not answer.endswith(b"}"):
            if not (piece := self._posts.recv(PIECE_BYTES)):
                raise BenchError(f"sandbox-agent closed the connection: {answer!r}")
            answer += piece
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    def turn(self, prompt: str, updates: int) -> Turn:
        """Run a turn. Updates that the rival loses are counted in :attr:`lost`."""
        post = self._post(prompt_request(next(self._ids), self._session_id, prompt))
        began = time.perf_counter()
        self._posts.sendall(post)
        count, tail, first, ended = 0, b"", 0.0, 0.0
        while count < updates:
            if select.select([self._events], [], [], QUIET_SECS)[0]:
                piece = tail + self._events.recv(PIECE_BYTES)
                ended = time.perf_counter() - began
                count += piece.count(UPDATE)
                tail = piece[1 - len(UPDATE) :]
                first = first or (ended if count else 0.0)
            elif select.select([self._posts], [], [], 0)[0]:
                break  # the response has arrived, and no more updates
        self._read_response()
        self.lost += updates - count
        return Turn(first, ended)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        with self._process:
            self._process.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _connect(url: str) -> Socket:
    for _ in range(100):
        try:
            return Socket(url)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise BenchError(f"no server listens at {url}")
