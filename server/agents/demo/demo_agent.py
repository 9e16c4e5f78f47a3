"""The bundled demo agent: a real ACP agent (protocol version 1) with no model and no account.

    python -I -S server/agents/demo/demo_agent.py          # or: python -m server.agents.demo

It answers from a script (`demo_script.py`, beside it), but all around the words is real: the
thoughts, plans, tool calls and permissions are true ACP messages, and a file that it says it wrote
is written. It uses the standard library only and imports nothing of the server, so that it starts
in a few milliseconds and serves as an example of an ACP agent.

Memory: a conversation lives in `<cwd>/.demo-agent/<sessionId>.json`. The session's own folder is
the one place that is always writable for it (HOME may be read-only), and it goes when the session
goes. The file is replaced whole, by rename, when a prompt arrives, when its turn ends and when a
setting changes: a `kill -9` loses at most the half-said answer. In a folder that cannot be written
to the agent works as well, and remembers as long as it runs.

Environment: `DEMO_PACE_MS` is the pause after each word (18; 0 for tests).

Threads: the main one reads stdin and answers at once. Each turn has one of its own, which may
sleep or wait for a permission; `Turn.cancel` wakes it from either.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from itertools import groupby
from pathlib import Path

TYPE_CHECKING = False  # known to type checkers by its name; importing typing takes longer than json
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from server.agents.demo import demo_script

    Json = dict[str, Any]
else:  # a script's own folder is not on the path of an isolated interpreter (-I)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import demo_script

    del sys.path[0]

VERSION = "1.0"
CONTEXT_SIZE = 200_000
STATE_FOLDER = ".demo-agent"
MAX_STORED_BLOCK = 100_000
MAX_STORED_MESSAGES = 1_000
PENDING: Json = {}  # what a method returns that answers later, by itself

# A config option is (name, ACP category, values); a value is (value, name, description).
CONFIG = {
    "mode": (
        "Mode",
        "mode",
        (
            ("ask", "Ask", "Asks before it edits a file or runs a command"),
            ("auto", "Auto", "Edits and runs without asking"),
            ("plan", "Plan", "Only reads: edits nothing, runs nothing"),
        ),
    ),
    "model": (
        "Model",
        "model",
        (
            ("demo", "Demo", "Speaks at a reader's pace"),
            ("demo-fast", "Demo Fast", "The same words, four times as fast"),
        ),
    ),
    "thought_level": (
        "Thinking",
        "thought_level",
        (
            ("brief", "Brief", "One thought before each answer"),
            ("deep", "Deep", "Thinks aloud"),
            ("off", "Off", "No thoughts"),
        ),
    ),
}
PERMISSION_OPTIONS = [
    {"optionId": "allow_once", "name": "Allow", "kind": "allow_once"},
    {"optionId": "allow_always", "name": "Always allow", "kind": "allow_always"},
    {"optionId": "reject_once", "name": "Reject", "kind": "reject_once"},
    {"optionId": "reject_always", "name": "Always reject", "kind": "reject_always"},
]


class CancelledError(Exception):
    """The client cancelled the running turn."""


class RpcError(Exception):
    """A failure that the client is told as it is, as a JSON-RPC error."""

    def __init__(self, code: int, message: str, details: str) -> None:
        super().__init__(message)
        self.error: Json = {"code": code, "message": message, "data": {"details": details}}


def invalid_params(why: str) -> RpcError:
    return RpcError(-32602, "Invalid params", why)


def unknown_session(session_id: str) -> RpcError:
    return RpcError(-32002, "Resource not found", f"no such session: {session_id}")


def error_of(error: Exception) -> Json:
    """The JSON-RPC error for an exception; one that nobody foresaw is told to stderr in full."""
    if isinstance(error, RpcError):
        return error.error
    import traceback

    traceback.print_exception(error)
    return {"code": -32603, "message": "Internal error", "data": {"details": repr(error)}}


def new_id() -> str:
    return os.urandom(16).hex()


def replace_file(path: Path, text: str) -> None:
    """Write by rename: a reader sees the old or the new, and a symbolic link is not followed."""
    new = path.with_name(path.name + ".tmp")
    new.write_text(text, encoding="utf-8", errors="replace")
    new.replace(path)


class Client:
    """The other end of stdio: one JSON-RPC message a line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._replies: dict[Any, Reply] = {}

    def send(self, message: Json) -> None:
        """Write one message; a client that is gone ends the process without a word."""
        line = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False, separators=(",", ":"))
        data = memoryview(line.encode("utf-8", "replace") + b"\n")
        try:
            with self._lock:
                while data:
                    data = data[os.write(1, data) :]
        except OSError:
            os._exit(0)

    def update(self, session_id: str, update: str, /, **fields: Any) -> None:
        params = {"sessionId": session_id, "update": {"sessionUpdate": update, **fields}}
        self.send({"method": "session/update", "params": params})

    def request(self, method: str, params: Json) -> Reply:
        """Ask the client something; the reply fills in when it answers."""
        reply = Reply()
        with self._lock:
            self._requests += 1
            request_id = self._requests
            self._replies[request_id] = reply
        self.send({"id": request_id, "method": method, "params": params})
        return reply

    def take_reply(self, message: Json) -> None:
        """Hand the client's answer to whoever waits; an unknown or late one is nobody's."""
        request_id, result = message["id"], message.get("result")
        reply = self._replies.pop(request_id, None) if isinstance(request_id, int) else None
        if reply is not None:
            reply.result = result if isinstance(result, dict) else {}
            reply.done.set()


class Reply:
    """A client's answer to come; `result` stays empty if it is an error, or if none comes."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: Json = {}


class Session:
    """One conversation and its settings.

    `data` is what is stored: `{sessionId, title, updatedAt, config: {id: value}, system, name,
    facts: [text], always: {kind: bool}, messages: [{role: "user"|"agent", content: [block]}]}`
    """

    def __init__(self, session_id: str, cwd: Path, stored: Json | None = None) -> None:
        self.id = session_id
        self.cwd = cwd
        self.turn: Turn | None = None
        self._lock = threading.Lock()
        self.data: Json = {
            "sessionId": session_id,
            "title": None,
            "updatedAt": None,
            "config": {key: values[0][0] for key, (_, _, values) in CONFIG.items()},
            "system": None,
            "name": None,
            "facts": [],
            "always": {},
            "messages": [],
            **(stored or {}),
        }

    @classmethod
    def load(cls, session_id: str, cwd: Path) -> Session:
        """Read a stored session; -32002 if there is none, or none that can be read."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", session_id):  # it becomes part of a path
            raise unknown_session(session_id)
        try:
            return cls(session_id, cwd, dict(json.loads(path_of(session_id, cwd).read_bytes())))
        except (OSError, ValueError, TypeError) as error:
            raise unknown_session(f"{session_id} ({error})") from error

    def save(self) -> None:
        """Store all of it. Without fsync: a killed process loses nothing by that."""
        self.data["updatedAt"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        path = path_of(self.id, self.cwd)
        try:
            with self._lock:
                if not path.parent.is_dir():
                    path.parent.mkdir(0o700)
                    replace_file(path.parent / ".gitignore", "*\n")
                replace_file(path, json.dumps(self.data, ensure_ascii=False))
        except OSError as error:
            sys.stderr.write(f"demo agent: the conversation is not stored: {error}\n")

    def add_message(self, role: str, content: list[Json]) -> None:
        kept = [
            block
            if len(json.dumps(block)) < MAX_STORED_BLOCK
            else {"type": "text", "text": demo_script.describe(block)}
            for block in content
        ]
        messages = [*self.data["messages"], {"role": role, "content": kept}]
        self.data["messages"] = messages[-MAX_STORED_MESSAGES:]
        self.save()

    def messages_of(self, role: str) -> list[list[Json]]:
        """What one side said so far, in order, as content blocks."""
        return [said["content"] for said in self.data["messages"] if said["role"] == role]

    def tokens(self, role: str) -> int:
        """A rough count: four characters a token."""
        return sum(len(json.dumps(content)) for content in self.messages_of(role)) // 4

    def set_option(self, client: Client, key: str, value: Any) -> None:
        """Change a setting, store it and tell the client, whoever asked for it."""
        if key not in CONFIG or value not in [known for known, _, _ in CONFIG[key][2]]:
            raise invalid_params(f"{key!r} cannot be {value!r}")
        self.data["config"][key] = value
        self.save()
        if key == "mode":
            client.update(self.id, "current_mode_update", currentModeId=value)
        client.update(self.id, "config_option_update", configOptions=self.config_options())

    def config_options(self) -> list[Json]:
        """`SessionConfigOption[]`: mode, model and thought level."""
        return [
            {
                "id": key,
                "name": name,
                "category": category,
                "type": "select",
                "currentValue": self.data["config"][key],
                "options": [{"value": v, "name": n, "description": d} for v, n, d in values],
            }
            for key, (name, category, values) in CONFIG.items()
        ]

    def modes(self) -> Json:
        """`SessionModeState`: the mode again, for clients that do not know config options."""
        modes = [{"id": v, "name": n, "description": d} for v, n, d in CONFIG["mode"][2]]
        return {"currentModeId": self.data["config"]["mode"], "availableModes": modes}


def path_of(session_id: str, cwd: Path) -> Path:
    return cwd / STATE_FOLDER / f"{session_id}.json"


class Turn(threading.Thread):
    """One prompt: runs its script, streams what it says, and answers exactly once."""

    def __init__(self, client: Client, session: Session, request_id: Any, prompt: Any) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.session = session
        self.request_id = request_id
        self.prompt: list[Json] = prompt
        self.stop_reason = "end_turn"
        self.pace = PACE / 4 if session.data["config"]["model"] == "demo-fast" else PACE
        self._cancelled = threading.Event()
        self._waits_for: Reply | None = None
        self._open_tools: set[str] = set()
        self._said: list[Json] = []

    def run(self) -> None:
        answer: Json
        try:
            self.begin()
            demo_script.run(self)
            answer = {"result": {"stopReason": self.stop_reason}}
        except CancelledError:
            answer = {"result": {"stopReason": "cancelled"}}
        except Exception as error:  # noqa: BLE001 - the prompt has to be answered whatever happens
            answer = {"error": error_of(error)}
        self.finish()
        self.session.turn = None  # before the answer: the next prompt may follow it at once
        self.client.send({"id": self.request_id, **answer})

    def begin(self) -> None:
        data = self.session.data
        data["title"] = data["title"] or demo_script.title_of(self.prompt)
        self.session.add_message("user", self.prompt)
        self.update("session_info_update", title=data["title"], updatedAt=data["updatedAt"])

    def finish(self) -> None:
        for tool_id in tuple(self._open_tools):
            self.end_tool(tool_id, "Stopped.", status="failed")
        if self._said:
            self.session.add_message("agent", join_chunks(self._said))
        used = self.session.tokens("user") + self.session.tokens("agent")
        cost = {"amount": 0.0, "currency": "USD"}
        self.update("usage_update", used=used, size=CONTEXT_SIZE, cost=cost)

    def fail(self, message: str, details: str) -> NoReturn:
        raise RpcError(-32603, message, details)

    def cancel(self) -> None:
        """From the reading thread: first the flag, then the waiter; `ask` does the reverse."""
        self._cancelled.set()
        if (reply := self._waits_for) is not None:
            reply.done.set()

    def pause(self, words: float) -> None:
        """Wait as long as so many words take."""
        self.sleep(words * self.pace)

    def sleep(self, seconds: float) -> None:
        if self._cancelled.wait(seconds):
            raise CancelledError

    def ask(self, method: str, params: Json) -> Json:
        """Ask the client and wait for its answer, or for the turn to be cancelled."""
        reply = self.client.request(method, {"sessionId": self.session.id, **params})
        self._waits_for = reply
        self.sleep(0)
        reply.done.wait()
        self._waits_for = None
        self.sleep(0)
        return reply.result

    def update(self, update: str, /, **fields: Any) -> None:
        self.client.update(self.session.id, update, **fields)

    def replace_file(self, path: Path, text: str) -> None:
        replace_file(path, text)

    def stream(self, kind: str, text: str) -> None:
        """Send a message word by word."""
        message_id = new_id()
        for word in re.findall(r"\s*\S+\s*", text):
            block = {"type": "text", "text": word}
            self.update(kind, content=block, messageId=message_id)
            if kind == "agent_message_chunk":
                self._said.append(block)
            self.pause(1)

    def say(self, markdown: str) -> None:
        self.stream("agent_message_chunk", markdown.rstrip() + "\n\n")

    def show(self, block: Json) -> None:
        """Answer with something that is not text."""
        self.update("agent_message_chunk", content=block, messageId=new_id())
        self._said.append(block)

    def think(self, *thoughts: str) -> None:
        level = self.session.data["config"]["thought_level"]
        if level != "off":
            kept = thoughts if level == "deep" else thoughts[:1]
            self.stream("agent_thought_chunk", "\n\n".join(kept))

    def start_tool(self, title: str, kind: str, status: str = "in_progress", **more: Any) -> str:
        """Begin a tool call: `more` are fields of ACP's `ToolCall`. Returns its id."""
        call = {"toolCallId": "call_" + new_id(), "title": title, "kind": kind, "status": status}
        self._open_tools.add(call["toolCallId"])
        self.update("tool_call", **call, **more)
        self.pause(10)
        return call["toolCallId"]

    def end_tool(self, tool_id: str, text: str, status: str = "completed", **more: Any) -> None:
        self._open_tools.discard(tool_id)
        shown = [{"type": "content", "content": {"type": "text", "text": text}}]
        call = {"toolCallId": tool_id, "status": status, "content": shown, "rawOutput": text}
        self.update("tool_call_update", **{**call, **more})

    def may(self, tool_id: str, title: str, kind: str) -> bool:
        """Ask the user, unless the mode, or an earlier answer for good, has decided it.

        A question that is dismissed ("cancelled") ends the turn: to go on would be a guess.
        """
        mode, always = self.session.data["config"]["mode"], self.session.data["always"]
        if mode != "ask":
            return bool(mode == "auto")
        if kind in always:
            return bool(always[kind])
        call = {"toolCallId": tool_id, "title": title, "kind": kind}
        params = {"toolCall": call, "options": PERMISSION_OPTIONS}
        outcome = self.ask("session/request_permission", params).get("outcome") or {}
        if outcome.get("outcome") == "cancelled":
            raise CancelledError
        choice = str(outcome.get("optionId"))
        if choice.endswith("_always"):
            always[kind] = choice == "allow_always"
            self.session.save()
        return choice.startswith("allow")


def join_chunks(chunks: list[Json]) -> list[Json]:
    """The same content in as few blocks as can be."""
    content: list[Json] = []
    for kind, blocks in groupby(chunks, key=lambda block: block["type"]):
        if kind == "text":
            content.append({"type": "text", "text": "".join(block["text"] for block in blocks)})
        else:
            content.extend(blocks)
    return content


class Agent:
    """Answers the client's requests; `METHODS` is the whole table."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.sessions: dict[str, Session] = {}
        self.after_answer: list[Callable[[], None]] = []

    def handle_line(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self.client.send({"id": None, "error": {"code": -32700, "message": "Parse error"}})
            return
        if isinstance(message, dict) and isinstance(message.get("method"), str):
            self.handle_call(message)
        elif isinstance(message, dict) and ("result" in message or "error" in message):
            self.client.take_reply({"id": None, **message})
        else:
            self.client.send({"id": None, "error": {"code": -32600, "message": "Invalid request"}})

    def handle_call(self, message: Json) -> None:
        """Answer a request at once, but for a prompt, which answers when its turn ends."""
        request_id = message.get("id")
        try:
            answer: Json = {"result": self.call(message["method"], message, request_id)}
        except Exception as error:  # noqa: BLE001 - a request has to be answered whatever happens
            answer = {"error": error_of(error)}
        if "id" in message and answer.get("result") is not PENDING:
            self.client.send({"id": request_id, **answer})
        while self.after_answer:
            self.after_answer.pop(0)()

    def call(self, method: str, message: Json, request_id: Any) -> Json:
        if method not in METHODS:
            raise RpcError(-32601, "Method not found", method)
        params = message.get("params", {})
        if not isinstance(params, dict):
            raise invalid_params("params must be an object")
        return METHODS[method](self, params, request_id)

    def initialize(self, params: Json, _: Any) -> Json:
        field(params, "protocolVersion", int)
        return {
            "protocolVersion": 1,
            "agentCapabilities": {
                "loadSession": True,
                "promptCapabilities": {"image": True, "audio": True, "embeddedContext": True},
                "mcpCapabilities": {"http": False, "sse": False},
                "sessionCapabilities": {"resume": {}, "close": {}},
            },
            "agentInfo": {"name": "clawdforge-demo", "title": "Demo", "version": VERSION},
            "authMethods": [],
        }

    def authenticate(self, params: Json, _: Any) -> Json:
        return {}

    def new_session(self, params: Json, _: Any) -> Json:
        session = Session(new_id(), folder(params))
        meta = params.get("_meta")
        session.data["system"] = meta.get("systemPrompt") if isinstance(meta, dict) else None
        session.save()
        return {"sessionId": session.id, **self.adopt(session)}

    def load_session(self, params: Json, _: Any) -> Json:
        """Tell the client the whole conversation again, then answer."""
        session = self.find_or_load(params)
        for message in session.data["messages"]:
            for block in message["content"]:
                self.client.update(session.id, f"{message['role']}_message_chunk", content=block)
        return self.adopt(session)

    def resume_session(self, params: Json, _: Any) -> Json:
        """As load, without the telling: cheaper, so clients like acpx prefer it."""
        return self.adopt(self.find_or_load(params))

    def close_session(self, params: Json, _: Any) -> Json:
        """Stop its turn and forget it here; what is stored stays, for a later load."""
        self.cancel(params, None)
        del self.sessions[params["sessionId"]]
        return {}

    def set_mode(self, params: Json, _: Any) -> Json:
        self.session(params).set_option(self.client, "mode", field(params, "modeId", str))
        return {}

    def set_config_option(self, params: Json, _: Any) -> Json:
        session = self.session(params)
        session.set_option(self.client, field(params, "configId", str), params.get("value"))
        return {"configOptions": session.config_options()}

    def prompt(self, params: Json, request_id: Any) -> Json:
        session = self.session(params)
        for block in field(params, "prompt", list):
            check_block(block)
        if session.turn is not None:
            raise RpcError(-32600, "Invalid request", "a turn is running in this session")
        session.turn = Turn(self.client, session, request_id, params["prompt"])
        session.turn.start()
        return PENDING

    def cancel(self, params: Json, _: Any) -> Json:
        if (turn := self.session(params).turn) is not None:
            turn.cancel()
        return {}

    def cancel_request(self, params: Json, _: Any) -> Json:
        for session in self.sessions.values():
            turn = session.turn
            if turn is not None and turn.request_id == params.get("requestId"):
                turn.cancel()
        return {}

    def session(self, params: Json) -> Session:
        session_id = field(params, "sessionId", str)
        if session_id not in self.sessions:
            raise unknown_session(session_id)
        return self.sessions[session_id]

    def find_or_load(self, params: Json) -> Session:
        session_id, cwd = field(params, "sessionId", str), folder(params)
        known = self.sessions.get(session_id)
        return known if known and known.cwd == cwd else Session.load(session_id, cwd)

    def adopt(self, session: Session) -> Json:
        """Make it known, and offer the commands as soon as the client knows it too."""
        self.sessions[session.id] = session
        kind, commands = "available_commands_update", demo_script.available_commands()
        self.after_answer.append(
            lambda: self.client.update(session.id, kind, availableCommands=commands)
        )
        return {"modes": session.modes(), "configOptions": session.config_options()}


def field(params: Json, name: str, kind: type) -> Any:
    if not isinstance(params.get(name), kind):
        raise invalid_params(f"{name} must be of type {kind.__name__}")
    return params[name]


def folder(params: Json) -> Path:
    cwd = Path(field(params, "cwd", str))
    if not cwd.is_absolute() or not cwd.is_dir():
        raise invalid_params(f"cwd must be the absolute path of a folder: {cwd}")
    return cwd


# What each type of content block cannot do without.
BLOCK_FIELDS: dict[Any, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("data", "mimeType"),
    "audio": ("data", "mimeType"),
    "resource_link": ("uri", "name"),
    "resource": ("uri",),
}


def check_block(block: Any) -> None:
    """Refuse a content block that lacks what its type needs."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind not in BLOCK_FIELDS:
        raise invalid_params(f"not a content block: {kind!r}")
    holder = field(block, "resource", dict) if kind == "resource" else block
    for name in BLOCK_FIELDS[kind]:
        field(holder, name, str)
    if kind == "resource":
        field(holder, "text" if "text" in holder else "blob", str)


def read_pace() -> float:
    try:
        return max(0.0, float(os.environ.get("DEMO_PACE_MS", "18")) / 1000)
    except ValueError:
        return 0.018


PACE = read_pace()
METHODS: dict[str, Callable[[Agent, Json, Any], Json]] = {
    "initialize": Agent.initialize,
    "authenticate": Agent.authenticate,
    "session/new": Agent.new_session,
    "session/load": Agent.load_session,
    "session/resume": Agent.resume_session,
    "session/close": Agent.close_session,
    "session/set_mode": Agent.set_mode,
    "session/set_config_option": Agent.set_config_option,
    "session/prompt": Agent.prompt,
    "session/cancel": Agent.cancel,
    "$/cancel_request": Agent.cancel_request,
}


def main() -> NoReturn:
    """Serve stdin until it ends; a turn that still runs then has nobody to talk to."""
    for number in (signal.SIGTERM, signal.SIGINT):  # whoever started us may have ignored them
        signal.signal(number, signal.SIG_DFL)
    for fd in (0, 1):
        os.set_blocking(fd, True)
    agent = Agent(Client())
    for line in sys.stdin.buffer:
        if not line.isspace():
            agent.handle_line(line)
    os._exit(0)


if __name__ == "__main__":
    main()
