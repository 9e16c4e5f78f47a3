"""What a client is told of an exception, in each protocol; a defect is logged."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from server.errors import CLOSE_CODES, RPC_CODES, STATUS, DatabaseError, Error
from server.sessions.registry import SessionRegistry
from server.storage.failures import failure_of
from server.uploads.files import FileStore

from ..support.acp_client import connect
from ..support.harness import Client, LocalServer


def logged(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The errors of the server's log."""
    return [one for one in caplog.records if one.levelname == "ERROR"]


def fail_with(error: Exception) -> Any:
    async def fail(*args: Any, **options: Any) -> Any:
        raise error

    return fail


def test_every_code_of_the_tables_is_one_of_ours() -> None:
    assert CLOSE_CODES.keys() <= STATUS.keys()
    assert RPC_CODES.keys() <= STATUS.keys()


def test_a_known_failure_is_told_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    error = Error("conflict", "taken")
    assert failure_of(error, "a test") is error
    assert not logged(caplog)


@pytest.mark.parametrize(
    "error", [ValueError("secret"), KeyError("secret"), DatabaseError("secret", is_transient=True)]
)
def test_a_defect_is_internal_and_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failure = failure_of(error, "a test", session="abc")
    assert failure.code == "internal"
    assert "secret" not in failure.message
    assert len(logged(caplog)) == 1
    assert logged(caplog)[0].session == "abc"


@pytest.mark.parametrize("error", [ValueError(), KeyError(), RuntimeError(), ConnectionError()])
async def test_a_defect_during_an_upload_is_not_the_clients_mistake(
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


async def test_a_defect_while_a_body_is_checked_is_not_the_clients_mistake(
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


async def test_an_unreadable_database_ends_an_acp_connection_with_a_code(
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


async def test_an_unreadable_database_refuses_a_socket_with_a_code(
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
