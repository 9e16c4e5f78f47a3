"""An ACP client without a library. It validates every message against ACP's JSON schema."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
from aiohttp import WSMsgType

from server.acp.connection import AcpConnection

from .harness import ROOT, TIMEOUT_SECS, Client, Json, LocalServer

SCHEMA = ROOT / "node_modules" / "@agentclientprotocol" / "sdk" / "schema" / "v1" / "schema.json"
INITIALIZE: Json = {"protocolVersion": 1, "clientCapabilities": {}}


@functools.cache
def definitions() -> Json:
    loaded: Json = json.loads(SCHEMA.read_text("utf-8"))
    return loaded


@functools.cache
def validator(kind: str, method: str) -> jsonschema_rs.Draft202012Validator:
    """A validator of the *kind* (Request, Response or Notification) of *method*."""
    found = [
        name
        for name, part in definitions()["$defs"].items()
        if part.get("x-method") == method and name.endswith(kind)
    ]
    assert len(found) == 1, (kind, method, found)
    root = {"$ref": f"#/$defs/{found[0]}", "$defs": definitions()["$defs"]}
    return jsonschema_rs.Draft202012Validator(root)


def validate(message: Json, request_method: str | None) -> None:
    """Validate a message of the server.

    Args:
        request_method: the method of the request to which the message is the response.
    """
    assert message["jsonrpc"] == "2.0", message
    if "method" in message:
        kind = "Request" if "id" in message else "Notification"
        validator(kind, message["method"]).validate(message["params"])
        assert message.keys() <= {"jsonrpc", "id", "method", "params"}
    elif "error" in message:
        error = message["error"]
        assert isinstance(error["code"], int), message
        assert isinstance(error["message"], str), message
        assert message.keys() == {"jsonrpc", "id", "error"}
    elif request_method is not None and not request_method.startswith(
        ("session/set_model", "session/set_title", "session/fork", "_")
    ):
        validator("Response", request_method).validate(message["result"])
        assert message.keys() == {"jsonrpc", "id", "result"}


class ResponseError(Exception):
    """An error response of the server."""

    def __init__(self, error: Json) -> None:
        super().__init__(error["message"])
        self.code = error["code"]
        self.data: Any = error.get("data")


class AcpClient:
    """A client on one connection.

    Args:
        strict: validate the messages of the server.

    Attributes:
        messages: all messages of the server, in order.
        frames: the same messages as text.
    """

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, *, strict: bool) -> None:
        self.ws = ws
        self.messages: list[Json] = []
        self.frames: list[str] = []
        self._strict = strict
        self._seen = 0
        self._ids = itertools.count()
        self._methods: dict[Any, str] = {}
        self._responses: dict[str, Json] = {}

    async def send(self, **message: Any) -> None:
        await self.ws.send_str(json.dumps({"jsonrpc": "2.0", **message}))

    async def request(self, method: str, params: Json) -> int:
        """Send a request, and return its id."""
        request_id = next(self._ids)
        self._methods[request_id] = method
        await self.send(id=request_id, method=method, params=params)
        return request_id

    async def notify(self, method: str, **params: Any) -> None:
        await self.send(method=method, params=params)

    async def next(self) -> Json | None:
        """The next message that was not returned yet; None once the socket is closed."""
        if self._seen == len(self.messages):
            async with asyncio.timeout(TIMEOUT_SECS):
                frame = await self.ws.receive()
            if frame.type is not WSMsgType.TEXT:
                return None
            message = json.loads(frame.data)
            self.frames.append(frame.data)
            if self._strict:
                method = None if message.get("id") is None else self._methods.get(message["id"])
                validate(message, method)
            self.messages.append(message)
            if "method" not in message:
                self._responses[repr(message["id"])] = message
        self._seen += 1
        return self.messages[self._seen - 1]

    async def until(self, **fields: Any) -> Json:
        """The next message with these fields. Other messages are skipped."""
        while (message := await self.next()) is not None:
            if fields.items() <= message.items():
                return message
        raise AssertionError(f"closed with {self.ws.close_code} before {fields}: {self.messages}")

    async def until_update(self, kind: str) -> Json:
        """The next ``session/update`` of this kind."""
        while True:
            message = await self.until(method="session/update")
            update: Json = message["params"]["update"]
            if update["sessionUpdate"] == kind:
                return update

    async def until_text(self, text: str) -> Json:
        """The next message chunk that contains *text*."""
        while True:
            update = await self.until_update("agent_message_chunk")
            if text in update["content"].get("text", ""):
                return update

    async def response_to(self, request_id: Any) -> Any:
        """The result of a request.

        Raises:
            ResponseError: the response is an error.
        """
        # The key is repr(id): 0 is not False, and 1 is not 1.0.
        while repr(request_id) not in self._responses:
            if await self.next() is None:
                raise AssertionError(f"closed with {self.ws.close_code}: {self.messages}")
        response = self._responses.pop(repr(request_id))
        if "error" in response:
            raise ResponseError(response["error"])
        return response["result"]

    async def call(self, method: str, **params: Any) -> Any:
        return await self.response_to(await self.request(method, params))

    async def new_session(self, **params: Any) -> str:
        created = await self.call("session/new", **{"cwd": "/", "mcpServers": [], **params})
        return str(created["sessionId"])

    async def prompt(self, session_id: str, text: str) -> Any:
        return await self.response_to(await self.start_prompt(session_id, text))

    async def start_prompt(self, session_id: str, text: str) -> int:
        prompt = [{"type": "text", "text": text}]
        return await self.request("session/prompt", {"sessionId": session_id, "prompt": prompt})

    async def allow(self) -> Json:
        """Answer the next permission request with its first option. Returns the request."""
        request = await self.until(method="session/request_permission")
        option = request["params"]["options"][0]["optionId"]
        outcome = {"outcome": "selected", "optionId": option}
        await self.send(id=request["id"], result={"outcome": outcome})
        return request

    async def until_closed(self) -> int | None:
        while await self.next() is not None:
            pass
        return self.ws.close_code

    def updates(self, session_id: str | None = None) -> list[Json]:
        return [
            message["params"]["update"]
            for message in self.messages
            if message.get("method") == "session/update"
            and session_id in (None, message["params"]["sessionId"])
        ]

    def conversation_updates(self) -> list[Json]:
        """All updates except those of commands and session info."""
        kinds = ("available_commands_update", "session_info_update")
        return [update for update in self.updates() if update["sessionUpdate"] not in kinds]

    def text(self, session_id: str | None = None, kind: str = "agent_message_chunk") -> str:
        return "".join(
            update["content"].get("text", "")
            for update in self.updates(session_id)
            if update["sessionUpdate"] == kind
        )


def acp_url(client: Client, query: str = "") -> str:
    return f"{client.url.replace('http', 'ws', 1)}/acp{query}"


async def connect(
    client: Client,
    query: str = "",
    *,
    strict: bool = True,
    initialize: Json | None = INITIALIZE,
    **options: Any,
) -> AcpClient:
    """Open an ACP connection of the client's app. *initialize* are the parameters, or None."""
    headers = {**client.headers(), **options.pop("headers", {})}
    ws = await client.http.ws_connect(
        acp_url(client, query), headers=headers, max_msg_size=0, **options
    )
    client.close_later(ws)
    acp = AcpClient(ws, strict=strict)
    if initialize is not None:
        await acp.call("initialize", **initialize)
    return acp


def connection_of(server: LocalServer, acp: AcpClient) -> AcpConnection:
    """The server's side of a connection."""
    connection_id = acp.ws._response.headers["Acp-Connection-Id"]
    for connection in server.services.sockets.connections:
        if connection.name.endswith(connection_id):
            assert isinstance(connection, AcpConnection)
            return connection
    raise LookupError(connection_id)


async def code_of(acp: AcpClient, method: str, **params: Any) -> int:
    """The code of the error with which the server responds to a request."""
    with pytest.raises(ResponseError) as failure:
        await acp.call(method, **params)
    return int(failure.value.code)


def of_session(session: str, **params: Any) -> Json:
    """The params of ``session/load`` and the like."""
    return {"sessionId": session, "cwd": "/", "mcpServers": [], **params}
