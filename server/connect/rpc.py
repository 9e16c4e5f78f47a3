"""JSON-RPC messages as ``connect`` reads and writes them: one JSON object, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codec import dumps, parse_message

PARSE_ERROR_CODE = -32700
INVALID_REQUEST_CODE = -32600
INVALID_PARAMS_CODE = -32602
NOT_FOUND_CODE = -32002
TOO_LARGE = "the message is larger than 4 MiB; the server accepts no more"
UPDATE_START = b'{"jsonrpc":"2.0","method":"session/update",'
"""The beginning of most messages of a server, which need not be parsed."""

RpcMessage = Mapping[str, Any]


def key(request_id: Any) -> bytes:
    """The normal form of a request's id."""
    return dumps(request_id)


def request_message(request_id: Any, method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def notification_message(method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})


def result_message(request_id: Any, value: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": request_id, "result": value})


def error_message(
    request_id: Any, code: int, message: str, *, retryable: bool | None = None
) -> bytes:
    described: dict[str, Any] = {"code": code, "message": message}
    if retryable is not None:
        described["data"] = {"retryable": retryable}
    return dumps({"jsonrpc": "2.0", "id": request_id, "error": described})


def with_id(response: RpcMessage, request_id: Any) -> bytes:
    """The result or error of *response* as the response to another request."""
    parts = {name: response[name] for name in ("result", "error") if name in response}
    return dumps({"jsonrpc": "2.0", "id": request_id, **parts})


def error_code(message: RpcMessage) -> int | None:
    """The code of an error response; None for a success."""
    described = message.get("error")
    code = described.get("code") if isinstance(described, dict) else None
    return code if isinstance(code, int) else None


def raw_error(raw_id: bytes, code: int, message: str) -> bytes:
    """An error response to a request whose id is known as JSON only."""
    described = dumps({"code": code, "message": message})
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (raw_id, described)


def as_one_line(message: bytes) -> bytes:
    """*message* as one line; a message of the server may have several."""
    if b"\n" not in message and b"\r" not in message:
        return message
    parsed = parse_message(message)
    return dumps(parsed) if parsed is not None else b""


def params_of(message: RpcMessage) -> dict[str, Any]:
    """The parameters of a request or notification; empty if they are not an object."""
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def extension_of(holder: Any) -> dict[str, Any]:
    """The fields of ``_meta.clawdforge`` in parameters or in a result."""
    meta = holder.get("_meta") if isinstance(holder, dict) else None
    extension = meta.get("clawdforge") if isinstance(meta, dict) else None
    return extension if isinstance(extension, dict) else {}


def with_extension(params: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """*params* with additional fields in ``_meta.clawdforge``; the client's other ones stay."""
    meta = params.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    return {**params, "_meta": {**meta, "clawdforge": {**extension_of(params), **fields}}}
