"""Messages of the mock agent, and the state of its process."""

from __future__ import annotations

import json
import os
import sys
import threading

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object

Json = dict[str, Any]

flags: dict[str, str] = {}
agent_state: Json = {"initialize": None, "opened": None}


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


def print_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
