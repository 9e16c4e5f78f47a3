"""JSON-RPC on stdin and stdout, with its errors and the checks of its parameters."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]


class RpcError(Exception):
    """A failure that the client receives as a JSON-RPC error."""

    def __init__(self, code: int, message: str, details: str) -> None:
        super().__init__(message)
        self.error: Json = {"code": code, "message": message, "data": {"details": details}}


def invalid_params(why: str) -> RpcError:
    return RpcError(-32602, "Invalid params", why)


def unknown_session(session_id: str) -> RpcError:
    return RpcError(-32002, "Resource not found", f"no such session: {session_id}")


def to_error(error: Exception) -> Json:
    """Convert an exception to a JSON-RPC error; log the traceback of an unexpected one."""
    if isinstance(error, RpcError):
        return error.error
    import traceback

    traceback.print_exception(error)
    return {"code": -32603, "message": "Internal error", "data": {"details": repr(error)}}


class Client:
    """The client at the other end of stdin and stdout: one JSON-RPC message per line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._replies: dict[Any, Reply] = {}

    def send(self, message: Json) -> None:
        """Write one message; exit silently if the client has closed the pipe."""
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
        """Send a request; the returned reply is filled when the client responds."""
        reply = Reply()
        with self._lock:
            self._requests += 1
            request_id = self._requests
            self._replies[request_id] = reply
        self.send({"id": request_id, "method": method, "params": params})
        return reply

    def set_reply(self, message: Json) -> None:
        """Pass the client's response to the waiting thread; ignore an unknown or late response."""
        request_id, result = message["id"], message.get("result")
        reply = self._replies.pop(request_id, None) if isinstance(request_id, int) else None
        if reply is not None:
            reply.result = result if isinstance(result, dict) else {}
            reply.done.set()


class Reply:
    """The response to a request; `result` stays empty on an error or a cancellation."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: Json = {}


def require(params: Json, name: str, kind: type) -> Any:
    """The parameter `name`; -32602 if it is missing or not of type `kind`."""
    if not isinstance(params.get(name), kind):
        raise invalid_params(f"{name} must be of type {kind.__name__}")
    return params[name]


def cwd_of(params: Json) -> Path:
    cwd = Path(require(params, "cwd", str))
    if not cwd.is_absolute() or not cwd.is_dir():
        raise invalid_params(f"cwd must be the absolute path of a folder: {cwd}")
    return cwd


# The required fields of each type of content block.
BLOCK_FIELDS: dict[Any, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("data", "mimeType"),
    "audio": ("data", "mimeType"),
    "resource_link": ("uri", "name"),
    "resource": ("uri",),
}


def check_block(block: Any) -> None:
    """Reject a content block that lacks a required field of its type."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind not in BLOCK_FIELDS:
        raise invalid_params(f"not a content block: {kind!r}")
    holder = require(block, "resource", dict) if kind == "resource" else block
    for name in BLOCK_FIELDS[kind]:
        require(holder, name, str)
    if kind == "resource":
        require(holder, "text" if "text" in holder else "blob", str)
