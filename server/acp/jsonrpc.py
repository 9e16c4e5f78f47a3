"""JSON-RPC 2.0 as ACP speaks it, one message a frame: to and from bytes, without I/O.

Ids are kept as the client wrote them, so that they are echoed exactly, whatever
number or string they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from ..codec import dumps, loads_bounded, parse_message
from ..errors import RPC_CODES, Error

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
AUTH_REQUIRED = -32000
RESOURCE_NOT_FOUND = -32002
REQUEST_CANCELLED = -32800


class RpcError(Exception):
    """A failure as JSON-RPC tells it.

    Args:
        request_id: JSON of the id that it answers; ``null`` where none could be told.
    """

    def __init__(
        self, code: int, message: str, *, data: Any = None, request_id: bytes = b"null"
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.request_id = request_id

    @classmethod
    def of(cls, error: Error) -> RpcError:
        """One of our own; ``data`` has its code and whether asking again can help."""
        data: dict[str, Any] = {"code": error.code, "retryable": error.retryable}
        if error.retry_after is not None:
            data["retryAfter"] = error.retry_after
        if "auth_methods" in error.fields:
            data["authMethods"] = error.fields["auth_methods"]
        return cls(RPC_CODES.get(error.code, INTERNAL_ERROR), error.message, data=data)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A call that waits for an answer.

    Attributes:
        id: JSON of its id, as it was written.
        key: the same, in one spelling: by it the client may cancel the request.
    """

    id: bytes
    key: bytes
    method: str
    params: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Notification:
    method: str
    params: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """An answer to a request of ours; ``result`` is None where it is an error."""

    id: Any
    result: Any


Message = Request | Notification | Response


class _Head(msgspec.Struct, frozen=True):
    id: msgspec.Raw = msgspec.Raw(b"null")


def parse(data: bytes) -> Message:
    """Read one message.

    Raises:
        RpcError: it is none: -32700 where it is not JSON, else -32600.
    """
    try:
        value = loads_bounded(data)
    except ValueError:
        raise _refusal(data) from None
    if isinstance(value, list):
        raise RpcError(INVALID_REQUEST, "batches are not supported")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, "not a JSON-RPC 2.0 message")
    if "id" in value and not _is_id(value["id"]):
        raise RpcError(INVALID_REQUEST, "id: must be a string, a number or null")
    if "method" not in value:
        if "id" not in value or ("result" in value) == ("error" in value):
            raise RpcError(INVALID_REQUEST, "neither a request nor a response")
        return Response(value["id"], value.get("result"))
    method, params = value["method"], value.get("params")
    if not isinstance(method, str) or not isinstance(params, (dict, list, type(None))):
        raise RpcError(INVALID_REQUEST, "method: must be a string, and params an object")
    if "id" not in value:
        return Notification(method, params)
    return Request(
        bytes(msgspec.json.decode(data, type=_Head).id), key_of(value["id"]), method, params
    )


def key_of(request_id: Any) -> bytes:
    """An id in one spelling."""
    return dumps(request_id)


def _is_id(value: Any) -> bool:
    return isinstance(value, (str, int, float, type(None))) and not isinstance(value, bool)


def _refusal(data: bytes) -> RpcError:
    """What is wrong with *data*, which could not be read.

    Half a surrogate pair is JSON, but no text that an agent could be sent.
    """
    value = parse_message(data) if b"\\ud" in data.lower() else None
    if value is None or not _is_id(value.get("id")):
        return RpcError(PARSE_ERROR, "not JSON, or nested too deeply")
    return RpcError(
        INVALID_PARAMS,
        "half a surrogate pair is no character",
        request_id=dumps(value.get("id")),
    )


def result(request_id: bytes, value: Any) -> bytes:
    return raw_result(request_id, dumps(value))


def raw_result(request_id: bytes, value: bytes) -> bytes:
    """*value* is JSON already."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, value)


def raw_error(request_id: bytes, error: bytes) -> bytes:
    """*error* is JSON already."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, error)


def error(request_id: bytes, failure: RpcError) -> bytes:
    told = {"code": failure.code, "message": failure.message}
    if failure.data is not None:
        told["data"] = failure.data
    return raw_error(request_id, dumps(told))


def request(request_id: int, method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def notification(method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})
