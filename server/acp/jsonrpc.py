"""JSON-RPC 2.0 as ACP uses it, one message per text frame. Nothing here does I/O.

Request ids are kept as the client wrote them, so that responses repeat them exactly.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..codec import dumps, loads_bounded, parse_message
from ..errors import RPC_INVALID_PARAMS, Error

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = RPC_INVALID_PARAMS
REQUEST_CANCELLED = -32800


class JsonRpcError(Exception):
    """A JSON-RPC error.

    Args:
        request_id: the JSON of the id of the request; ``null`` if it could not be read.
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
    def from_error(cls, error: Error) -> JsonRpcError:
        """The JSON-RPC error for *error*; ``data`` has its code and whether a retry can help."""
        data: dict[str, Any] = {"code": error.code, "retryable": error.retryable}
        if error.retry_after is not None:
            data["retryAfter"] = error.retry_after
        if "auth_methods" in error.fields:
            data["authMethods"] = error.fields["auth_methods"]
        if "resets_at" in error.fields:
            data["resetsAt"] = error.fields["resets_at"]
        return cls(error.code.rpc_code, error.message, data=data)


class Request(msgspec.Struct, frozen=True):
    """A request of the client.

    Attributes:
        id: the JSON of its id, as the client wrote it.
        key: the same in a normal form, by which the client may cancel the request.
    """

    id: bytes
    key: bytes
    method: str
    params: Any


class Notification(msgspec.Struct, frozen=True):
    method: str
    params: Any


class Response(msgspec.Struct, frozen=True):
    """The client's response to a request of the server; ``result`` is None for an error."""

    id: Any
    result: Any


Message = Request | Notification | Response


class _IdOnly(msgspec.Struct, frozen=True):
    id: msgspec.Raw = msgspec.Raw(b"null")


def decode(data: bytes) -> Message:
    """Read one message.

    Raises:
        JsonRpcError: -32700 if *data* is not JSON; -32600 if it is not a JSON-RPC message.
    """
    try:
        value = loads_bounded(data)
    except ValueError:
        raise _unreadable_message(data) from None
    if isinstance(value, list):
        raise JsonRpcError(INVALID_REQUEST, "batches are not supported")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise JsonRpcError(INVALID_REQUEST, "not a JSON-RPC 2.0 message")
    if "id" in value and not _is_request_id(value["id"]):
        raise JsonRpcError(INVALID_REQUEST, "id: must be a string, a number or null")
    if "method" not in value:
        if "id" not in value or ("result" in value) == ("error" in value):
            raise JsonRpcError(INVALID_REQUEST, "neither a request nor a response")
        return Response(value["id"], value.get("result"))
    method, params = value["method"], value.get("params")
    if not isinstance(method, str) or not isinstance(params, (dict, list, type(None))):
        raise JsonRpcError(INVALID_REQUEST, "method: must be a string, and params an object")
    if "id" not in value:
        return Notification(method, params)
    return Request(
        bytes(msgspec.json.decode(data, type=_IdOnly).id), key_of(value["id"]), method, params
    )


def key_of(request_id: Any) -> bytes:
    """The normal form of a request id."""
    return dumps(request_id)


def _is_request_id(value: Any) -> bool:
    return isinstance(value, (str, int, float, type(None))) and not isinstance(value, bool)


def _unreadable_message(data: bytes) -> JsonRpcError:
    """The error for *data* that the codec rejects.

    An unpaired surrogate is JSON, but it cannot be sent to an agent as UTF-8.
    """
    value = parse_message(data) if b"\\ud" in data.lower() else None
    if value is None or not _is_request_id(value.get("id")):
        return JsonRpcError(PARSE_ERROR, "not JSON, or nested too deeply")
    return JsonRpcError(
        INVALID_PARAMS,
        "unpaired surrogate in a string",
        request_id=dumps(value.get("id")),
    )


def encode(message: Request | Notification) -> bytes:
    """A message of a client, for another node."""
    params = b"" if message.params is None else b',"params":%b' % dumps(message.params)
    request_id = b'"id":%b,' % message.id if isinstance(message, Request) else b""
    return b'{"jsonrpc":"2.0",%b"method":%b%b}' % (request_id, dumps(message.method), params)


def encode_response(request_id: int, result: Any) -> bytes:
    """The response of a client, for another node; an error if *result* is None."""
    outcome = {"error": {}} if result is None else {"result": result}
    return dumps({"jsonrpc": "2.0", "id": request_id, **outcome})


def encode_result(request_id: bytes, value: Any) -> bytes:
    return encode_raw_result(request_id, dumps(value))


def encode_raw_result(request_id: bytes, value: bytes) -> bytes:
    """A response with the JSON *value* as its result."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, value)


def encode_raw_error(request_id: bytes, error: bytes) -> bytes:
    """A response with the JSON *error* as its error."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, error)


def encode_error(request_id: bytes, error: JsonRpcError) -> bytes:
    fields = {"code": error.code, "message": error.message}
    if error.data is not None:
        fields["data"] = error.data
    return encode_raw_error(request_id, dumps(fields))


def encode_request(request_id: int, method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def encode_notification(method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})
