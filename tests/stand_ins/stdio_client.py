"""A small ACP client for tests, which drives one agent over stdio.

    with StdioAgent([sys.executable, "agent.py"], cwd) as agent:
        session = agent.open_session()
        turn = agent.prompt(session, "hello")
        assert turn.result["stopReason"] == "end_turn"

It waits for messages and never for a time. Each message from the agent is checked against the
official JSON schema of ACP if the npm package that contains it is installed
(`node_modules/@agentclientprotocol/sdk`).
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jsonschema_rs import Draft202012Validator

Json = dict[str, Any]

TIMEOUT = 20.0
PROJECT = Path(__file__).resolve().parents[2]
SCHEMA_FILE = PROJECT / "node_modules/@agentclientprotocol/sdk/schema/v1/schema.json"

# The result of each of the agent's methods, by the name of its schema.
RESULTS = {
    "initialize": "InitializeResponse",
    "authenticate": "AuthenticateResponse",
    "session/new": "NewSessionResponse",
    "session/load": "LoadSessionResponse",
    "session/resume": "ResumeSessionResponse",
    "session/close": "CloseSessionResponse",
    "session/set_mode": "SetSessionModeResponse",
    "session/set_config_option": "SetSessionConfigOptionResponse",
    "session/prompt": "PromptResponse",
}
CALLS = {
    "session/update": "SessionNotification",
    "session/request_permission": "RequestPermissionRequest",
    "fs/read_text_file": "ReadTextFileRequest",
    "fs/write_text_file": "WriteTextFileRequest",
}


@dataclass
class Turn:
    """The response to a request and the messages before it."""

    answer: Json
    messages: list[Json] = field(default_factory=list)

    @property
    def result(self) -> Json:
        assert "result" in self.answer, self.answer
        return dict(self.answer["result"])

    @property
    def error(self) -> Json:
        assert "error" in self.answer, self.answer
        return dict(self.answer["error"])

    @property
    def updates(self) -> list[Json]:
        return updates_of(self.messages)

    def of_kind(self, kind: str) -> list[Json]:
        return [update for update in self.updates if update["sessionUpdate"] == kind]

    @property
    def text(self) -> str:
        """The text of the agent's message."""
        return text_of(self.updates, "agent_message_chunk")

    @property
    def thoughts(self) -> str:
        return text_of(self.updates, "agent_thought_chunk")


def updates_of(messages: list[Json]) -> list[Json]:
    return [m["params"]["update"] for m in messages if m.get("method") == "session/update"]


def text_of(updates: list[Json], kind: str) -> str:
    blocks = [update["content"] for update in updates if update["sessionUpdate"] == kind]
    return "".join(block["text"] for block in blocks if block["type"] == "text")


class StdioAgent:
    """One agent process.

    `on_request` handles the agent's requests: it returns a result, or None to send no response.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        env: dict[str, str] | None = None,
        *,
        check_schema: bool = True,
    ) -> None:
        self.cwd = cwd
        self.check_schema = check_schema
        self.on_request: Callable[[Json], Json | None] | None = None
        self.bad_lines: list[bytes] = []
        self.stderr: list[str] = []
        self._messages: queue.SimpleQueue[Json | None] = queue.SimpleQueue()
        self._next_id = 0
        self._methods: dict[int, str] = {}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_stdout, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Wait for the agent to end, close its pipes and return its exit code."""
        code = self.process.wait(TIMEOUT)
        self.close_stdin()
        for thread, pipe in zip(
            self._threads, (self.process.stdout, self.process.stderr), strict=True
        ):
            thread.join(TIMEOUT)
            if pipe is not None and not thread.is_alive():  # a grandchild may hold it open
                pipe.close()
        return code

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                self.bad_lines.append(line)
                continue
            self._messages.put(message)
        self._messages.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line.decode(errors="replace"))

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, message: Json) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def notify(self, method: str, params: Json) -> None:
        self.send({"method": method, "params": params})

    def start(self, method: str, params: Json) -> int:
        """Send a request and return its id."""
        self._next_id += 1
        self._methods[self._next_id] = method
        self.send({"id": self._next_id, "method": method, "params": params})
        return self._next_id

    def answer(self, request: Json, result: Json) -> None:
        self.send({"id": request["id"], "result": result})

    def next_message(self) -> Json:
        """The next message; EOFError at the end of the agent's stdout."""
        message = self._messages.get(timeout=TIMEOUT)
        if message is None:
            self._messages.put(None)
            raise EOFError(f"exit code {self.process.poll()}; stderr: {''.join(self.stderr)}")
        if self.check_schema:
            self._check(message)
        if "method" in message and "id" in message and self.on_request is not None:
            result = self.on_request(message)
            if result is not None:
                self.answer(message, result)
        return message

    def until(self, wanted: Callable[[Json], bool]) -> list[Json]:
        """All messages up to the first that `wanted` accepts, which is the last of the list."""
        messages = [self.next_message()]
        while not wanted(messages[-1]):
            messages.append(self.next_message())
        return messages

    def until_update(self, kind: str) -> Json:
        """Wait for an update of a kind."""

        def wanted(message: Json) -> bool:
            return any(update["sessionUpdate"] == kind for update in updates_of([message]))

        return updates_of(self.until(wanted))[-1]

    def until_call(self, method: str) -> Json:
        """Wait for a request or a notification of the agent."""
        return self.until(lambda message: message.get("method") == method)[-1]

    def finish(self, request_id: int) -> Turn:
        """Wait for the response to a request."""

        def is_answer(message: Json) -> bool:
            return message.get("id") == request_id and "method" not in message

        *messages, answer = self.until(is_answer)
        return Turn(answer, messages)

    def request(self, method: str, params: Json) -> Turn:
        return self.finish(self.start(method, params))

    def call(self, method: str, params: Json) -> Json:
        """Send a request that must succeed; return its result."""
        return self.request(method, params).result

    def initialize(self) -> Json:
        return self.call("initialize", {"protocolVersion": 1, "clientCapabilities": {}})

    def open_session(self, **more: Any) -> str:
        """Initialize, open a session and wait for its commands."""
        self.initialize()
        params = {"cwd": str(self.cwd), "mcpServers": [], **more}
        session_id: str = self.call("session/new", params)["sessionId"]
        self.until_update("available_commands_update")
        return session_id

    def load_session(self, session_id: str, method: str = "session/load") -> Turn:
        """Initialize and load a stored session; the returned turn contains the replay."""
        self.initialize()
        params = {"sessionId": session_id, "cwd": str(self.cwd), "mcpServers": []}
        return self.request(method, params)

    def start_prompt(self, session_id: str, prompt: str | list[Json]) -> int:
        blocks = [{"type": "text", "text": prompt}] if isinstance(prompt, str) else prompt
        return self.start("session/prompt", {"sessionId": session_id, "prompt": blocks})

    def prompt(self, session_id: str, prompt: str | list[Json]) -> Turn:
        return self.finish(self.start_prompt(session_id, prompt))

    def cancel(self, session_id: str) -> None:
        self.notify("session/cancel", {"sessionId": session_id})

    def _check(self, message: Json) -> None:
        if "method" in message:
            name = CALLS.get(message["method"])
            part = message.get("params")
        elif "error" in message:
            name, part = "Error", message["error"]
        else:
            name, part = RESULTS.get(self._methods[message["id"]]), message["result"]
        if name is not None:
            assert message["jsonrpc"] == "2.0"
            check_schema(part, name)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition that no message reports: the state of a file or of a process."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@cache
def schema_of(name: str) -> Draft202012Validator | None:
    """The validator of the ACP type `name`; None if the schema is not installed."""
    if not SCHEMA_FILE.is_file():
        return None
    definitions = json.loads(SCHEMA_FILE.read_bytes())["$defs"]
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions})


def check_schema(value: Any, name: str) -> None:
    if (schema := schema_of(name)) is not None:
        schema.validate(value)
