"""The turns of the mock agent: the steps of a script."""

from __future__ import annotations

import binascii
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .memory import Session
from .wire import (
    CancelledError,
    Json,
    Reply,
    RpcError,
    Switches,
    agent_state,
    flags,
    print_stderr,
    replies,
    send,
    send_update,
    text_chunk,
    write,
)

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object

Step = Callable[["Turn", Any], None]

OPTIONS = [
    {"optionId": kind, "name": kind.replace("_", " ").capitalize(), "kind": kind}
    for kind in ("allow_once", "allow_always", "reject_once", "reject_always")
]


GRANDCHILD = """
import json, os, signal, sys, time
options = json.loads(sys.argv[1])
if options.get("setsid"):
    os.setsid()
if options.get("double_fork"):
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
if options.get("ignore_sigterm"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(options["pid_file"] + ".tmp", "w") as file:
    file.write(str(os.getpid()))
os.replace(options["pid_file"] + ".tmp", options["pid_file"])
time.sleep(options.get("seconds", 1000))
"""


def script_of(text: str) -> list[Json] | None:
    """The steps of a prompt, or None for plain text."""
    if text.startswith("[Attached files]\n"):
        script = re.search(r"^\s*[{\[](?!Attached)", text, re.MULTILINE)
        text = text[script.start() :] if script else text
    plays = json.loads(Path(flags["plays"]).read_bytes()) if "plays" in flags else {}
    try:
        value = plays[text] if text in plays else json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("steps"), list):
        return list(value["steps"])
    steps = value if isinstance(value, list) else [value]
    return (
        steps
        if steps and all(isinstance(step, dict) and len(step) == 1 for step in steps)
        else None
    )


def with_index(value: Any, index: int) -> Any:
    """A copy with "{i}" replaced by the index."""
    if isinstance(value, str):
        return value.replace("{i}", str(index))
    if isinstance(value, list):
        return [with_index(item, index) for item in value]
    if isinstance(value, dict):
        return {key: with_index(item, index) for key, item in value.items()}
    return value


class Turn(threading.Thread):
    """Runs the script of one prompt and sends its response."""

    def __init__(self, session: Session, request_id: Any, prompt: list[Json]) -> None:
        super().__init__(daemon=True)
        self.session = session
        self.request_id = request_id
        self.prompt = prompt
        texts = [
            block["text"] if block["type"] == "text" else f"[{block['type']}]" for block in prompt
        ]
        self.text = "\n".join(texts)
        self.stop_reason = "end_turn"
        self.answer: Json | None = None  # of a step that ends the turn
        self.said: list[str] = []
        self.late: list[Json] = []
        self.is_quiet = False  # another thread sends the response
        self._is_finished = False
        self._cancel = threading.Event()
        self._awaited_replies: list[Reply] = []

    def run(self) -> None:
        self.session.add("prompts", self.text)
        self.session.add("messages", {"role": "user", "text": self.text})
        answer = self.answer_of(script_of(self.text))
        self.session.add("messages", {"role": "agent", "text": "".join(self.said)})
        self.session.turn = None  # before the response: the next prompt may follow immediately
        if self.is_quiet:
            return
        send({"id": self.request_id, **answer})
        for late in self.late:
            time.sleep(late.get("delay_ms", 0) / 1000)
            self.run_steps(late["steps"])

    def answer_of(self, steps: list[Json] | None) -> Json:
        try:
            if steps is None and len(self.prompt) > 1:  # after a system prompt
                steps = script_of(str(self.prompt[-1].get("text")))
            if steps is None:
                self.echo_text()
            else:
                self.run_steps(steps)
            if self.answer is None:
                self.check()
        except CancelledError:
            self.stop_reason = "end_turn" if self._is_finished else "cancelled"
        except RpcError as error:
            return {"error": error.error}
        except Exception as error:  # noqa: BLE001 - a test must see that its script is wrong
            return {"error": {"code": -32602, "message": f"bad script: {error!r}"}}
        return self.answer or {"result": {"stopReason": self.stop_reason}}

    def echo_text(self) -> None:
        if "system-echo" in flags:
            params = self.session.data["params"]
            system = params.get("systemPrompt") or (params.get("_meta") or {}).get("systemPrompt")
            self.say("system: " + json.dumps(system))
        self.say("echo: " + self.text)

    def run_steps(self, steps: list[Json]) -> None:
        for step in steps:
            ((name, value),) = step.items()
            if name not in STEPS:
                raise RpcError(-32602, f"unknown step {name!r}", "known: " + ", ".join(STEPS))
            STEPS[name](self, value)
            if self.answer is not None:
                return

    def cancel(self) -> None:
        """Called by the main thread: set the flag, then wake `ask`, which reads them in reverse."""
        if Switches.ignore_cancel:
            return
        self._cancel.set()
        for reply in list(self._awaited_replies):
            reply.done.set()

    def finish(self) -> None:
        """End the turn during a step that a cancel interrupts, and wait for its end."""
        self._is_finished = True
        self._cancel.set()
        self.join()

    def check(self) -> None:
        if self._cancel.is_set():
            raise CancelledError

    def sleep(self, seconds: float | None) -> None:
        """Sleep, at most until a cancel; None is forever."""
        self._cancel.wait(seconds)
        self.check()

    def path(self, path: str) -> Path:
        return Path(self.session.cwd) / path

    def update(self, update: Json) -> None:
        send_update(self.session.id, update)

    def say(self, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self.said.append(text)
        self.update(text_chunk("agent_message_chunk", text))

    def ask(self, calls: list[tuple[str, Json]]) -> list[Json]:
        """Send requests and wait for all responses, `{result}` or `{error}` each."""
        waits = [Reply() for _ in calls]
        self._awaited_replies = waits
        for reply, (method, params) in zip(waits, calls, strict=True):
            request_id = "mock-" + os.urandom(4).hex()
            replies[request_id] = reply
            params = {"sessionId": self.session.id, **params}
            is_withdrawn = params.pop("withdraw", False)
            send({"id": request_id, "method": method, "params": params})
            if is_withdrawn:
                send({"method": "$/cancel_request", "params": {"requestId": request_id}})
        self.check()
        for reply in waits:
            reply.done.wait()
            self.check()
        messages = [reply.message or {} for reply in waits]
        return [{k: v for k, v in m.items() if k in ("result", "error")} for m in messages]

    # ---- steps that need more than one line

    def chunk(self, size: int) -> None:
        """Send a chunk that is joined from bytes, since encoding 70 MiB as JSON is slow."""
        head, tail = self.framed_chunk("agent_message_chunk", "")
        write(head + b"x" * size + tail)

    def framed_chunk(self, kind: str, text: str) -> tuple[bytes, bytes]:
        """The line of a chunk in two parts; more text can be inserted between them."""
        params = {"sessionId": self.session.id, "update": text_chunk(kind, "\x00" + text)}
        message = {"jsonrpc": "2.0", "method": "session/update", "params": params}
        head, _, tail = json.dumps(message, ensure_ascii=False).encode().partition(b"\\u0000")
        return head, tail + b"\n"

    def burst(self, options: Json) -> None:
        kind = options.get("kind", "agent_message_chunk")
        head, tail = self.framed_chunk(kind, ":" + options.get("text", "x"))
        count, batch = options["count"], options.get("batch", 1000)
        for start in range(0, count, batch):
            numbers = [b"%d" % number for number in range(start, min(start + batch, count))]
            write(head + (tail + head).join(numbers) + tail)
            self.sleep(options.get("pause_ms", 0) / 1000)

    def raw(self, value: str | Json) -> None:
        options = {"text": value} if isinstance(value, str) else value
        encoded = options.get("base64")
        data = options["text"].encode() if encoded is None else binascii.a2b_base64(encoded)
        write(data + (b"\n" if options.get("newline", True) else b""))

    def bad_utf8(self, _: Any) -> None:
        head, tail = self.framed_chunk("agent_message_chunk", "")
        write(head + b"bad \xff byte" + tail)

    def repeat(self, options: Json) -> None:
        for index in range(options["times"]):
            self.run_steps(with_index(options["steps"], index))
            if self.answer is not None:
                return
            self.check()

    def report(self, _: Any) -> None:
        session = {"sessionId": self.session.id, "cwd": self.session.cwd, **self.session.data}
        self.say(
            {
                "pid": os.getpid(),
                "ppid": os.getppid(),
                "pgid": os.getpgrp(),
                "sid": os.getsid(0),
                "cwd": str(Path.cwd()),
                "argv": sys.argv,
                "env": sorted(os.environ),
                "fds": sorted(int(fd.name) for fd in Path("/dev/fd").iterdir()),
                "initialize": agent_state["initialize"],
                "opened": agent_state["opened"],
                "session": {k: v for k, v in session.items() if k not in ("prompts", "messages")},
            }
        )

    def permission(self, value: Any) -> None:
        many = value if isinstance(value, list) else [value]
        calls = [("session/request_permission", permission_params(item)) for item in many]
        outcomes = [
            (answer.get("result") or {}).get("outcome", answer) for answer in self.ask(calls)
        ]
        single = not isinstance(value, list)
        self.say({"permission": outcomes[0]} if single else {"permissions": outcomes})
        if {"outcome": "cancelled"} in outcomes and not Switches.ignore_cancel:
            raise CancelledError

    def write(self, path: str) -> None:
        asked = self.session.data["mode"] == "ask"
        allowed = not asked
        if asked:
            (answer,) = self.ask([("session/request_permission", permission_params(True))])
            outcome = (answer.get("result") or {}).get("outcome") or {}
            allowed = str(outcome.get("optionId")).startswith("allow")
        if allowed:
            self.path(path).touch()
        self.say({"mode": self.session.data["mode"], "asked": asked, "wrote": allowed})

    def elicit(self, value: Any) -> None:
        many = value if isinstance(value, list) else [value]
        answers = self.ask([("elicitation/create", params) for params in many])
        results = [answer.get("result", answer) for answer in answers]
        if isinstance(value, list):
            self.say({"elicitations": results})
        else:
            self.say({"elicitation": results[0]})

    def request(self, call: Json) -> None:
        (answer,) = self.ask([(call["method"], call.get("params", {}))])
        self.say({"response": answer})

    def gate(self, path: str) -> None:
        while not self.path(path).exists():
            self.sleep(0.002)

    def touch(self, path: str) -> None:
        self.path(path).touch()

    def wait_for(self, what: str) -> None:
        if what != "cancel":
            raise RpcError(-32602, f"cannot wait for {what!r}")
        self._cancel.wait()
        self._cancel.clear()  # this step consumes it: it does not interrupt the next steps
        self.stop_reason = "cancelled"

    def delay(self, value: Json | list[Json]) -> None:
        self.late.append({"steps": value} if isinstance(value, list) else value)

    def spawn(self, options: Json) -> None:
        import subprocess

        pid_file = self.path(options.get("pid_file", "grandchild.pid"))
        pid_file.unlink(missing_ok=True)
        options = {**options, "pid_file": str(pid_file)}
        output = None if options.get("hold_stdout") else subprocess.DEVNULL
        program = ["-c", GRANDCHILD, json.dumps(options)]
        if "hostile" in options:
            hostile = Path(__file__).parents[1] / "hostile.py"
            program = [str(hostile), options["hostile"], str(pid_file)]
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", *program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={} if options.get("clear_env") else None,
        )
        agent_state.setdefault("children", []).append(child)
        if options.get("double_fork"):
            child.wait()
        while not pid_file.exists():
            time.sleep(0.002)

    def close_stdout(self, _: Any) -> None:
        Switches.ignore_eof = True
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 1)  # the descriptor must not be reused


def permission_params(value: Any) -> Json:
    options = value if isinstance(value, dict) else {}
    title, kind = options.get("title", "Do it"), options.get("kind", "edit")
    call = {"toolCallId": "call-" + os.urandom(4).hex(), "title": title, "kind": kind}
    call.update(options.get("toolCall", {}))
    return {"toolCall": call, "options": options.get("options", OPTIONS)}


def answer_with(key: str) -> Step:
    def step(turn: Turn, value: Any) -> None:
        turn.answer = {"result": {"stopReason": value}} if key == "stop" else {key: value}

    return step


def switch_on(name: str) -> Step:
    return lambda _, value: setattr(Switches, name, bool(value))


STEPS: dict[str, Step] = {
    "say": Turn.say,
    "think": lambda turn, text: turn.update(text_chunk("agent_thought_chunk", text)),
    "update": Turn.update,
    "notify": lambda _, message: send(message),
    "chunk": Turn.chunk,
    "burst": Turn.burst,
    "raw": Turn.raw,
    "bad_utf8": Turn.bad_utf8,
    "stderr": lambda _, text: print_stderr(text),
    "repeat": Turn.repeat,
    "echo": lambda turn, _: turn.say(turn.prompt),
    "history": lambda turn, _: turn.say(turn.session.data["prompts"]),
    "report": Turn.report,
    "env": lambda turn, names: turn.say({name: os.environ.get(name) for name in names}),
    "permission": Turn.permission,
    "write": Turn.write,
    "mode": lambda turn, mode: turn.session.set_mode(mode),
    "elicit": Turn.elicit,
    "request": Turn.request,
    "sleep": lambda turn, ms: turn.sleep(ms / 1000),
    "gate": Turn.gate,
    "touch": Turn.touch,
    "wait_for": Turn.wait_for,
    "hang": lambda turn, _: turn.sleep(None),
    "ignore_cancel": switch_on("ignore_cancel"),
    "stop": answer_with("stop"),
    "result": answer_with("result"),
    "error": answer_with("error"),
    "late": Turn.delay,
    "exit": lambda _, code: os._exit(code),
    # To this thread: a signal to the process may reach another, and this one would run on.
    "crash": lambda _, name: signal.raise_signal(signal.Signals[name]),
    "spawn": Turn.spawn,
    "ignore_sigterm": switch_on("ignore_sigterm"),
    "ignore_eof": switch_on("ignore_eof"),
    "stop_reading": switch_on("stop_reading"),
    "close_stdout": Turn.close_stdout,
}
