"""The failure that a client receives for any exception, in each protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from server.acp.jsonrpc import JsonRpcError
from server.errors import CloseCode, DatabaseError, Error, ErrorCode, failure_of
from server.sessions.registry import SessionRegistry
from server.uploads.files import FileStore
from server.web.responses import error_response
from server.ws.disconnect import Disconnect
from server.ws.protocol import error_frame

from .support.acp_client import connect
from .support.client import Client
from .support.servers import LocalServer

SECRET = "a detail that no client may receive"
KNOWN = [Error(code, "a message") for code in ErrorCode]
UNKNOWN = [
    DatabaseError(SECRET, is_transient=True),
    DatabaseError(SECRET, is_transient=False),
    ValueError(SECRET),
    KeyError(SECRET),
    RuntimeError(SECRET),
    OSError(28, SECRET),
    ConnectionError(SECRET),
    TimeoutError(SECRET),
    MemoryError(SECRET),
    RecursionError(SECRET),
    asyncio.InvalidStateError(SECRET),
]


def logged(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The errors in the server's log."""
    return [one for one in caplog.records if one.levelname == "ERROR"]


def fail_with(error: Exception) -> Any:
    async def fail(*args: Any, **options: Any) -> Any:
        raise error

    return fail


def http_response(failure: Error) -> dict[str, Any]:
    response = error_response(failure, "a-request")
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    return {"code": body["code"], "number": response.status, "text": response.body.decode()}


def websocket_frame(failure: Error) -> dict[str, Any]:
    """An ``error`` frame; an event stream sends the same JSON."""
    body = json.loads(error_frame(failure))
    return {"code": body["code"], "number": body["retryable"], "text": json.dumps(body)}


def websocket_close(failure: Error) -> dict[str, Any]:
    disconnect = Disconnect.from_error(failure)
    return {"code": failure.code, "number": disconnect.code, "text": disconnect.reason}


def rpc_error(failure: Error) -> dict[str, Any]:
    error = JsonRpcError.from_error(failure)
    return {"code": error.data["code"], "number": error.code, "text": f"{error} {error.data}"}


PROTOCOLS: dict[Callable[[Error], dict[str, Any]], Callable[[ErrorCode], object]] = {
    http_response: lambda code: code.status,
    websocket_frame: lambda code: code.is_retryable,
    websocket_close: lambda code: code.close_code,
    rpc_error: lambda code: code.rpc_code,
}


@pytest.mark.parametrize("encode", PROTOCOLS, ids=lambda encode: encode.__name__)
@pytest.mark.parametrize("error", [*KNOWN, *UNKNOWN], ids=repr)
def test_every_exception_has_a_failure_in_every_protocol(
    error: Exception, encode: Callable[[Error], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    failure = failure_of(error, "a test", session="abc")
    encoded = encode(failure)
    expected = error.code if isinstance(error, Error) else ErrorCode.INTERNAL
    assert (encoded["code"], encoded["number"]) == (expected, PROTOCOLS[encode](expected))
    assert SECRET not in encoded["text"]
    assert [one.session for one in logged(caplog)] == ([] if error is failure else ["abc"])


def test_transient_database_error_is_logged_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for is_transient in (True, False):
        failure_of(DatabaseError("disk I/O error", is_transient=is_transient), "a test")
    assert [one.exc_info is None for one in logged(caplog)] == [True, False]


def test_error_code_equals_its_text() -> None:
    assert ErrorCode("conflict") is ErrorCode.CONFLICT
    assert str(ErrorCode.CONFLICT) == "conflict"
    assert Error("conflict", "taken").code is ErrorCode.CONFLICT
    with pytest.raises(ValueError, match="unknown"):
        Error("unknown", "")


def test_error_overrides_the_retryability_of_its_code() -> None:
    assert Error(ErrorCode.AGENT_FAILED, "").retryable
    assert not Error(ErrorCode.AGENT_FAILED, "", retryable=False).retryable


def test_close_codes_of_final_failures_forbid_a_reconnect() -> None:
    final = [code for code in ErrorCode if code.close_code >= 4500]
    assert not any(code.is_retryable for code in final)
    assert ErrorCode.INTERNAL.close_code is CloseCode.INTERNAL


@pytest.mark.parametrize("error", [ValueError(), KeyError(), RuntimeError(), ConnectionError()])
async def test_defect_during_an_upload_is_internal(
    server: LocalServer,
    client: Client,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(FileStore, "save", fail_with(error))
    form = aiohttp.FormData()
    form.add_field("file", b"x", filename="a.txt")
    status, reply = await client.call("POST", "/files", data=form)
    assert (status, reply["code"]) == (500, "internal")
    assert [one.request_id for one in logged(caplog)] == [reply["request_id"]]


async def test_defect_while_a_body_is_checked_is_internal(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = await client.create()

    def fail(value: Any) -> Any:
        raise ValueError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr("server.web.resources.turns.check_content", fail)
        status, reply = await client.turn(session, "hello")
    assert (status, reply["code"]) == (500, "internal")
    assert len(logged(caplog)) == 1


async def test_unreadable_database_closes_an_acp_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    acp = await connect(client)
    with monkeypatch.context() as patch:
        patch.setattr(
            SessionRegistry, "get", fail_with(DatabaseError("disk I/O error", is_transient=True))
        )
        await acp.notify("session/cancel", sessionId="x")
        assert await acp.until_closed() == 4000
    assert len(logged(caplog)) == 1


async def test_unreadable_database_closes_a_socket(
    server: LocalServer,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = await client.create()
    with monkeypatch.context() as patch:
        patch.setattr(
            SessionRegistry, "get", fail_with(DatabaseError("disk I/O error", is_transient=True))
        )
        socket = await server.anonymous().connect(session, ready=False)
        await socket.send("auth", token=client.token)
        assert await socket.until_closed() == 4000
        status, reply = await client.get(f"/sessions/{session}")
    assert (status, json.dumps(reply).count("I/O")) == (500, 0)
