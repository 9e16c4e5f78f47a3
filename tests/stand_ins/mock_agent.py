"""The scriptable mock agent: a real ACP agent (protocol version 1) that follows its prompt.

    python -I -S tests/stand_ins/mock_agent.py [flags]

The reply to plain text is one chunk, `echo: <text>` (one line per block; a block that is not text
is `[image]` and so on). A prompt whose text is JSON is a script:

    {"steps": [{"say": "hi"}, {"wait_for": "cancel"}]}     or the list alone, or a single step

Each step is an object with one key. Paths are relative to the session's cwd. `[Attached files]`
and the paths below it, or other blocks, may precede the script. An unknown step ends the turn with
an error (-32602).

Output
    {"say": TEXT | JSON}        an agent_message_chunk; a value that is not a string is sent as JSON
    {"think": TEXT}             an agent_thought_chunk
    {"update": {…}}             a session/update with just this update, known kind or not
    {"notify": {"method": M, "params": {…}}}     any notification, unchanged
    {"chunk": N}                one agent_message_chunk of N bytes of text
    {"burst": {"count": N, "text": T, "kind": K, "batch": 1000, "pause_ms": 0}}
                                N chunks with the texts "0:T", "1:T", …, one write per batch
    {"raw": TEXT | {"text": T | "base64": B, "newline": true}}    bytes on stdout; without a newline
                                the line is incomplete and the next message is lost
    {"bad_utf8": true}          a session/update with a byte that is not UTF-8
    {"stderr": TEXT}            a line on stderr
    {"repeat": {"times": N, "steps": […]}}       "{i}" in any string becomes 0, 1, …
Reports (each sends one chunk of JSON)
    {"echo": true}              the received content blocks
    {"history": true}           the texts of all prompts of this session, also to earlier processes
    {"report": true}            {pid, ppid, pgid, sid, cwd, argv, env: [names], fds, initialize,
                                opened: [method, params] of the request that opened the session,
                                session: {sessionId, cwd, params of session/new, config}}
    {"env": [NAME, …]}          {NAME: value or null}
Requests
    {"permission": true | {"title", "kind", "options", "toolCall": {…}}}
                                session/request_permission; sends {"permission": outcome}; an
                                outcome "cancelled" then ends the turn as cancelled. A list makes
                                all requests at once and sends {"permissions": [outcome, …]}
    {"write": PATH}             writes a file, after a permission request if the mode is "ask";
                                sends {"mode": M, "asked": b, "wrote": b}
    {"elicit": PARAMS}          elicitation/create; sends {"elicitation": result or error}. A list
                                makes all requests at once and sends {"elicitations": […]}. With
                                "withdraw": true in PARAMS the agent cancels its own request
    {"request": {"method": M, "params": {…}}}    any request (sessionId is added); sends
                                {"response": {"result" | "error": …}}
Waiting
    {"sleep": MS}
    {"gate": PATH}              until the file exists
    {"touch": PATH}             create that file
    {"wait_for": "cancel"}      then continue; the turn ends as "cancelled" unless a step ends it
    {"hang": true}              forever
    {"ignore_cancel": true}     from here on this process ignores session/cancel (does not hang)
  A cancel interrupts sleep, gate, hang, permission, elicit, request, burst and repeat, and no other
  step.
Ending
    {"stop": REASON}            respond {"stopReason": REASON} immediately; default "end_turn"
    {"result": {…}}             respond with any result
    {"error": {"code", "message", "data"}}       respond with an error
    {"late": {"delay_ms": MS, "steps": […]}}     run these after the response
    {"exit": CODE}              end the process without a response
    {"crash": "SIGKILL"}        die of a signal
Changing
    {"mode": M}                 change the mode and send current_mode_update
Misbehaving
    {"spawn": {"pid_file": P, "setsid": b, "double_fork": b, "ignore_sigterm": b, "clear_env": b,
               "hold_stdout": b, "seconds": 1000}}       a grandchild; continues when P has its pid
              {…, "hostile": KIND}   the same with hostile.py
    {"ignore_sigterm": true}
    {"ignore_eof": true}        keep running when stdin ends
    {"stop_reading": true}      stop reading stdin after the next message
    {"close_stdout": true}      close stdout and keep running

Flags
    --no-load           does not offer session/load
    --resume            offers session/resume
    --close             offers session/close
    --fork              offers session/fork
    --delete[=PATH]     offers session/delete, which appends the session's id to the file; without
                        PATH it gets no response
    --directories       accepts additional directories
    --mcp               accepts MCP servers over HTTP and SSE
    --plays=PATH        a JSON file that maps prompt texts to steps; such a prompt runs its steps
    --text-only         supports no image, audio or embedded context
    --commands          sends its commands after session/new, session/load and session/resume
    --modes             offers modes (ask, code) and config options (model, thought_level)
    --auto              with --modes: starts in a third mode, auto
    --resets            session/load and session/resume restore the first mode and the first value
                        of each option
    --models            offers the model with session/set_model, and not as an option
    --boolean           with --modes: offers an option that is true or false (verbose), if the
                        client announces them
    --options-only      offers the mode as an option, and not with session/set_mode
    --quiet             session/load and session/resume do not return the settings
    --model-sets-mode   a change of the model restores the first mode
    --refuse-mode=MODE  session/set_mode returns an error for that mode
    --pretend-mode      session/set_mode succeeds without a change of the mode
    --hang-mode         session/set_mode gets no response
    --set-file=PATH     appends a line METHOD=VALUE for each request to set something
    --fail-load[=CODE]  session/load and session/resume return an error (-32603)
    --fail-fork[=CODE]  session/fork returns an error (-32603)
    --fail-new[=CODE]   session/new returns an error (-32603; -32000 is "authentication required")
    --system-echo       the reply to plain text starts with a chunk `system: <JSON>`: the system
                        prompt of session/new (`systemPrompt` or `_meta.systemPrompt`)
    --login             offers a login method
    --login-file=PATH   offers the methods mock-login, mock-slow (which never responds) and
                        mock-terminal, and logout. It is logged in while the file exists; without it
                        session/new and session/load return -32000
    --steering          offers `_session/steering`: the turn says `steered: <text>`, and the text is
                        added to the history. The text {"steer": KIND} is handled in another way:
                        "refuse": an error; "failed": not added; "hang": no response; "exit": the
                        process ends; "late": the turn ends first; "end": the turn ends right after
                        it, in the same write; "after": as "end", with the responses swapped;
                        "starts": as "late", and the agent works on it by itself
    --die-at-start[=CODE]       exits at once (1)
    --silent            reads and never responds
    --slow-start=MS     waits before it reads stdin
    --stderr=TEXT       a line on stderr at the start
    --banner=TEXT       a line on stdout at the start, like an agent that announces an update
    --pid-file=PATH     appends a line with its pid at each start
    --ignore-eof, --ignore-sigterm      as the steps, from the start

Memory: the prompts and the text output (`say`, echo) are in `$MOCK_STATE_DIR/<sessionId>.json`, or
in `.mock-agent` in the session's cwd. They are stored before a prompt runs and again before its
response: session/load (which replays them) and session/resume have the context after any crash.
"""

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

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from typing import Any, NoReturn
else:
    Any = object

Json = dict[str, Any]
Step = Callable[["Turn", Any], None]

DEFERRED: Json = {}  # returned by a method whose response follows later
OPTIONS = [
    {"optionId": kind, "name": kind.replace("_", " ").capitalize(), "kind": kind}
    for kind in ("allow_once", "allow_always", "reject_once", "reject_always")
]
CONFIG = {"model": ("mock-small", "mock-large"), "thought_level": ("low", "high")}
MODES = ("ask", "code")
SET_METHODS = ("session/set_mode", "session/set_model", "session/set_config_option")


def modes() -> tuple[str, ...]:
    return ("auto", *MODES) if "auto" in flags else MODES


def first_settings() -> Json:
    return {"mode": modes()[0], "config": {key: values[0] for key, values in CONFIG.items()}}


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


class CancelledError(Exception):
    """The client cancelled the turn during a step that a cancel interrupts."""


class RpcError(Exception):
    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": {"details": details}}


class Switches:
    """The enabled kinds of misbehaviour, for the whole process."""

    ignore_cancel = False
    ignore_sigterm = False
    ignore_eof = False
    stop_reading = False


# ---- the wire

write_lock = threading.Lock()
replies: dict[Any, Reply] = {}


class Reply:
    """The response to a request; `message` stays None if a cancel arrives first."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.message: Json | None = None


def write(data: bytes) -> None:
    view = memoryview(data)
    try:
        with write_lock:
            while view:
                view = view[os.write(1, view) :]
    except OSError:
        if not Switches.ignore_eof:
            os._exit(0)


def send(message: Json) -> None:
    line = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False)
    write(line.encode("utf-8", "replace") + b"\n")


def send_update(session_id: str, update: Json) -> None:
    params = {"sessionId": session_id, "update": update}
    send({"method": "session/update", "params": params})


def text_chunk(kind: str, text: str) -> Json:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": text}}


# ---- the memory


class Session:
    """One conversation. `data` is what its file tells:

    `{prompts: [text], messages: [{role, text}], params, mode, config}`

    The first line of the file has all of it, as it was saved last. Each further line has one value
    that was added since, so that a turn of a long conversation takes no longer than the first.
    """

    def __init__(self, session_id: str, cwd: str, data: Json) -> None:
        self.id = session_id
        self.cwd = cwd
        self.data = data
        self.turn: Turn | None = None
        self._lock = threading.Lock()  # a setting may be stored during a turn

    @classmethod
    def new(cls, params: Json) -> Session:
        data = {"prompts": [], "messages": [], "params": params, **first_settings()}
        session = cls(os.urandom(16).hex(), params["cwd"], data)
        session.save()
        return session

    @classmethod
    def load(cls, session_id: str, cwd: str) -> Session:
        try:
            saved, *added = state_file(session_id, cwd).read_bytes().splitlines()
        except OSError as error:
            raise RpcError(-32002, "Resource not found", str(error)) from error
        data = json.loads(saved)
        for line in added:
            name, value = json.loads(line)
            data[name].append(value)
        return cls(session_id, cwd, data)

    def save(self) -> None:
        path = state_file(self.id, self.cwd)
        new = path.with_suffix(".tmp")
        with self._lock:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parent / ".gitignore").write_text("*\n")
            new.write_text(json.dumps(self.data) + "\n")
            new.replace(path)

    def add(self, name: str, value: Any) -> None:
        """Store another one of the `prompts` or `messages`."""
        with self._lock:
            self.data[name].append(value)
            with state_file(self.id, self.cwd).open("a") as file:
                file.write(json.dumps([name, value]) + "\n")

    def settings(self) -> Json:
        """The `modes` and `configOptions` of a result, with --modes."""
        if "modes" not in flags:
            return {}
        settings: Json = {"configOptions": self.config_options()}
        if "options-only" not in flags:
            offered = [{"id": mode, "name": mode.capitalize()} for mode in modes()]
            settings["modes"] = {"currentModeId": self.data["mode"], "availableModes": offered}
        if "models" in flags:
            models = [{"modelId": name, "name": name} for name in CONFIG["model"]]
            current = self.data["config"]["model"]
            settings["models"] = {"currentModelId": current, "availableModels": models}
        return settings

    def config_options(self) -> list[Json]:
        config = {**self.data["config"], "mode": self.data["mode"]}
        offered = {**CONFIG, "mode": modes()}
        switch = {"id": "verbose", "name": "Verbose", "type": "boolean"}
        switches = [{**switch, "currentValue": bool(config.get("verbose"))}]
        left_out = ("model" if "models" in flags else "", "" if "options-only" in flags else "mode")
        return [
            {
                "id": key,
                "name": key.replace("_", " ").capitalize(),
                "category": key,
                "type": "select",
                "currentValue": config[key],
                "options": [{"value": value, "name": value} for value in values],
            }
            for key, values in offered.items()
            if key not in left_out
        ] + (switches if has_switches() else [])

    def set_mode(self, mode: str) -> None:
        self.data["mode"] = mode
        self.save()
        send_update(self.id, {"sessionUpdate": "current_mode_update", "currentModeId": mode})


def has_switches() -> bool:
    capabilities = (agent_state["initialize"] or {}).get("clientCapabilities", {})
    announced = capabilities.get("session", {}).get("configOptions", {}).get("boolean")
    return "boolean" in flags and announced is not None


def state_file(session_id: str, cwd: str) -> Path:
    folder = os.environ.get("MOCK_STATE_DIR") or Path(cwd) / ".mock-agent"
    return Path(folder) / f"{Path(session_id).name}.json"


# ---- scripts


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
            hostile = Path(__file__).parent / "hostile.py"
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


def print_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


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


# ---- the agent

flags: dict[str, str] = {}
sessions: dict[str, Session] = {}
agent_state: Json = {"initialize": None, "opened": None}


def initialize(params: Json, _: Any) -> Json:
    agent_state["initialize"] = params
    rich = "text-only" not in flags
    return {
        "protocolVersion": 1,
        "agentCapabilities": {
            "loadSession": "no-load" not in flags,
            "promptCapabilities": {"image": rich, "audio": rich, "embeddedContext": rich},
            "sessionCapabilities": {
                **{name: {} for name in ("resume", "close", "fork", "delete") if name in flags},
                **({"additionalDirectories": {}} if "directories" in flags else {}),
            },
            **({"mcpCapabilities": {"http": True, "sse": True}} if "mcp" in flags else {}),
            **({"auth": {"logout": {}}} if "login-file" in flags else {}),
        },
        "agentInfo": {"name": "mock-agent", "version": "1"},
        "authMethods": auth_methods(),
        **({"_meta": {"steering": {"supported": True}}} if "steering" in flags else {}),
    }


def auth_methods() -> list[Json]:
    if "login-file" in flags:
        return [
            {"id": "mock-login", "name": "Log in"},
            {"id": "mock-slow", "name": "Wait for a person"},
            {"id": "mock-terminal", "name": "In a terminal", "type": "terminal"},
        ]
    return [{"id": "mock-login", "name": "Log in"}] if "login" in flags else []


def authenticate(params: Json, _: Any) -> Json:
    if "login-file" in flags:
        if params["methodId"] == "mock-slow":
            return DEFERRED
        Path(flags["login-file"]).touch()
    return {}


def log_out(params: Json, _: Any) -> Json:
    Path(flags["login-file"]).unlink(missing_ok=True)
    return {}


def check_login() -> None:
    if "login-file" in flags and not Path(flags["login-file"]).exists():
        raise RpcError(-32000, "Authentication required")


def new_session(params: Json, _: Any) -> Json:
    fail_if("fail-new")
    check_login()
    agent_state["opened"] = ["session/new", params]
    session = Session.new(params)
    return {"sessionId": session.id, **register(session)}


def load_session(params: Json, _: Any) -> Json:
    if "no-load" in flags:
        raise RpcError(-32601, "Method not found")
    return restore_session(params, replay=True)


def resume_session(params: Json, _: Any) -> Json:
    if "resume" not in flags:
        raise RpcError(-32601, "Method not found")
    return restore_session(params, replay=False)


def fork_session(params: Json, _: Any) -> Json:
    if "fork" not in flags:
        raise RpcError(-32601, "Method not found")
    fail_if("fail-fork")
    known = sessions.get(params["sessionId"])
    source = known or Session.load(params["sessionId"], params["cwd"])
    data = json.loads(json.dumps(source.data))
    session = Session(os.urandom(16).hex(), params["cwd"], data)
    session.save()
    return {"sessionId": session.id, **register(session)}


def delete_session(params: Json, _: Any) -> Json:
    if "delete" not in flags:
        raise RpcError(-32601, "Method not found")
    if not flags["delete"]:
        return DEFERRED
    with Path(flags["delete"]).open("a") as file:
        file.write(f"{session_of(params).id}\n")
    return {}


def restore_session(params: Json, *, replay: bool) -> Json:
    fail_if("fail-load")
    check_login()
    agent_state["opened"] = ["session/load" if replay else "session/resume", params]
    session = Session.load(params["sessionId"], params["cwd"])
    for message in session.data["messages"] if replay else ():
        send_update(session.id, text_chunk(f"{message['role']}_message_chunk", message["text"]))
    if "resets" in flags:
        session.data.update(first_settings())
    settings = register(session)
    return {} if "quiet" in flags else settings


def register(session: Session) -> Json:
    sessions[session.id] = session
    return session.settings()


def fail_if(flag: str) -> None:
    if flag in flags:
        message = f"the mock was started with --{flag}"
        raise RpcError(int(flags[flag] or -32603), message, "there is no more to it")


def close_session(params: Json, _: Any) -> Json:
    cancel(params, None)
    del sessions[params["sessionId"]]
    return {}


def set_mode(params: Json, _: Any) -> Json:
    session = session_of(params)
    mode = params["modeId"]
    is_known = "modes" in flags and "options-only" not in flags and mode in modes()
    if not is_known or mode == flags.get("refuse-mode"):
        raise RpcError(-32602, "Invalid params", f"unknown mode {mode}")
    if "hang-mode" in flags:
        return DEFERRED
    session.set_mode(session.data["mode"] if "pretend-mode" in flags else mode)
    return {}


def set_model(params: Json, _: Any) -> Json:
    session = session_of(params)
    if "models" not in flags or params["modelId"] not in CONFIG["model"]:
        raise RpcError(-32602, "Invalid params", f"unknown model {params['modelId']}")
    session.data["config"]["model"] = params["modelId"]
    session.save()
    return {}


def set_config_option(params: Json, _: Any) -> Json:
    session = session_of(params)
    key, value = params["configId"], params["value"]
    offered = {option["id"]: option.get("options", ()) for option in session.config_options()}
    choices = [choice["value"] for choice in offered.get(key, ())]
    if key == "verbose" and has_switches() and params.get("type") == "boolean":
        choices = [True, False]
    if "modes" not in flags or value not in choices:
        raise RpcError(-32602, "Invalid params", f"{key!r} cannot be {value!r}")
    if key == "mode":
        session.data["mode"] = value
    else:
        session.data["config"][key] = value
    if key == "model" and "model-sets-mode" in flags:
        session.set_mode(modes()[0])
    session.save()
    options = session.config_options()
    send_update(session.id, {"sessionUpdate": "config_option_update", "configOptions": options})
    return {"configOptions": options}


def prompt(params: Json, request_id: Any) -> Json:
    session = session_of(params)
    if session.turn is not None:
        raise RpcError(-32600, "Invalid request", "a turn is running in this session")
    session.turn = Turn(session, request_id, params["prompt"])
    session.turn.start()
    return DEFERRED


def steer(params: Json, request_id: Any) -> Json:
    if "steering" not in flags:
        raise RpcError(-32601, "Method not found", "_session/steering")
    session = session_of(params)
    text = "\n".join(block.get("text", f"[{block['type']}]") for block in params["prompt"])
    steps = script_of(text)
    kind = str(steps[0].get("steer", "inject")) if steps else "inject"
    if kind == "refuse":
        raise RpcError(-32602, "Invalid params", "the mock refuses it")
    if kind == "failed":
        return {"outcome": "failed"}
    if kind == "hang":
        return DEFERRED
    if kind == "exit":
        os._exit(3)
    if kind in ("late", "starts") and session.turn is not None:
        session.turn.finish()
    if kind == "starts":
        session.add("prompts", text)
        send_update(session.id, text_chunk("agent_message_chunk", f"by itself: {text}"))
        return {"outcome": "startedNewTurn"}
    if session.turn is None:
        assert params["_meta"]["steering"]["idleBehavior"] == "promptRequired"
        return {"outcome": "promptRequired", "reason": "noRunningTurn"}
    session.add("prompts", text)
    session.turn.say(f"steered: {text}")
    if kind in ("end", "after"):
        turn = session.turn
        turn.is_quiet = True
        turn.finish()
        both = [
            {"jsonrpc": "2.0", "id": request_id, "result": {"outcome": "injected"}},
            {"jsonrpc": "2.0", "id": turn.request_id, "result": {"stopReason": "end_turn"}},
        ]
        lines = both if kind == "end" else both[::-1]
        write("".join(json.dumps(line) + "\n" for line in lines).encode())
        return DEFERRED
    return {"outcome": "injected"}


def cancel(params: Json, _: Any) -> Json:
    if params["sessionId"] not in sessions:  # of a subagent
        send_update(params["sessionId"], text_chunk("agent_message_chunk", "cancelled"))
        return {}
    if (turn := session_of(params).turn) is not None:
        turn.cancel()
    return {}


def session_of(params: Json) -> Session:
    if params["sessionId"] not in sessions:
        raise RpcError(-32002, "Resource not found", params["sessionId"])
    return sessions[params["sessionId"]]


METHODS: dict[str, Callable[[Json, Any], Json]] = {
    "initialize": initialize,
    "authenticate": authenticate,
    "logout": log_out,
    "session/new": new_session,
    "session/load": load_session,
    "session/resume": resume_session,
    "session/fork": fork_session,
    "session/close": close_session,
    "session/delete": delete_session,
    "session/set_mode": set_mode,
    "session/set_model": set_model,
    "session/set_config_option": set_config_option,
    "session/prompt": prompt,
    "session/cancel": cancel,
    "_session/steering": steer,
}


def handle_line(line: bytes) -> None:
    try:
        message = json.loads(line)
    except ValueError:
        send({"id": None, "error": {"code": -32700, "message": "Parse error"}})
        return
    if "method" in message:
        handle_call(message)
    elif (reply := replies.pop(message.get("id"), None)) is not None:
        reply.message = message
        reply.done.set()


def handle_call(message: Json) -> None:
    method, request_id = message["method"], message.get("id")
    try:
        if method not in METHODS:
            raise RpcError(-32601, "Method not found", method)
        params = message.get("params", {})
        if "set-file" in flags and method in SET_METHODS:
            value = next(params[name] for name in ("modeId", "modelId", "value") if name in params)
            with Path(flags["set-file"]).open("a") as file:
                file.write(f"{method.rpartition('/')[2]}={value}\n")
        answer: Json = {"result": METHODS[method](params, request_id)}
    except RpcError as error:
        answer = {"error": error.error}
    except (KeyError, TypeError, AttributeError) as error:
        answer = {"error": {"code": -32602, "message": "Invalid params", "data": repr(error)}}
    if "id" in message and answer.get("result") is not DEFERRED:
        send({"id": request_id, **answer})
    opens = method in ("session/new", "session/load", "session/resume") and "result" in answer
    if "commands" in flags and opens:
        commands = [{"name": "mock", "description": "Does nothing"}]
        update = {"sessionUpdate": "available_commands_update", "availableCommands": commands}
        send_update(answer["result"].get("sessionId") or message["params"]["sessionId"], update)


def parse_flags(arguments: list[str]) -> dict[str, str]:
    """Parse `--name`, `--name=value` and, for a flag that needs a value, `--name value`."""
    known = set(re.findall(r"--([a-z][a-z-]+)", (__doc__ or "").partition("\nFlags\n")[2]))
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in known:
            sys.exit(f"mock agent: unknown flag {argument}")
        if not equals and name in ("slow-start", "stderr", "banner", "pid-file"):
            value = next(rest, "")
        found[name] = value
    return found


def on_sigterm(number: int, _: Any) -> None:
    if not Switches.ignore_sigterm:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def main() -> NoReturn:
    flags.update(parse_flags(sys.argv[1:]))
    signal.signal(signal.SIGTERM, on_sigterm)
    Switches.ignore_sigterm = "ignore-sigterm" in flags
    Switches.ignore_eof = "ignore-eof" in flags
    if "pid-file" in flags:
        with Path(flags["pid-file"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    if "stderr" in flags:
        print_stderr(flags["stderr"])
    if "banner" in flags:
        write(flags["banner"].encode() + b"\n")
    if "die-at-start" in flags:
        os._exit(int(flags["die-at-start"] or 1))
    time.sleep(int(flags.get("slow-start", 0)) / 1000)
    for line in sys.stdin.buffer:
        if "silent" not in flags and not line.isspace():
            handle_line(line)
        if Switches.stop_reading:
            break
    if not (Switches.ignore_eof or Switches.stop_reading):
        os._exit(0)
    while True:  # not `signal.pause`, which would miss a signal just before the call
        time.sleep(0.05)


if __name__ == "__main__":
    main()
