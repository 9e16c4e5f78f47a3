"""An ACP client that knows only JSON, and holds everything it is told against ACP's own schema."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped]
from aiohttp import WSMsgType

from .harness import PATIENCE, ROOT, Client, Json

SCHEMA = ROOT / "node_modules" / "@agentclientprotocol" / "sdk" / "schema" / "v1" / "schema.json"
HELLO: Json = {"protocolVersion": 1, "clientCapabilities": {}}


@functools.cache
def definitions() -> Json:
    loaded: Json = json.loads(SCHEMA.read_text("utf-8"))
    return loaded


@functools.cache
def validator(kind: str, method: str) -> Any:
    """Checks what the schema calls the *kind* (Request, Response, Notification) of *method*."""
    found = [
        name
        for name, part in definitions()["$defs"].items()
        if part.get("x-method") == method and name.endswith(kind)
    ]
    assert len(found) == 1, (kind, method, found)
    root = {"$ref": f"#/$defs/{found[0]}", "$defs": definitions()["$defs"]}
    return jsonschema.Draft202012Validator(root)


def check(message: Json, answered: str | None) -> None:
    """Hold a message of the server's against the schema.

    Args:
        answered: the method of the request that it answers.
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
    elif answered is not None and not answered.startswith("session/set_model"):
        validator("Response", answered).validate(message["result"])
        assert message.keys() == {"jsonrpc", "id", "result"}


class AnswerError(Exception):
    """The server answered with an error."""

    def __init__(self, error: Json) -> None:
        super().__init__(error["message"])
        self.code = error["code"]
        self.data: Any = error.get("data")


class AcpClient:
    """A client on one connection.

    Attributes:
        messages: all that the server has sent, in order.
        frames: the same, as it was written.
    """

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, *, strict: bool) -> None:
        self.ws = ws
        self.messages: list[Json] = []
        self.frames: list[str] = []
        self._strict = strict
        self._seen = 0
        self._ids = itertools.count()
        self._methods: dict[Any, str] = {}
        self._answers: dict[str, Json] = {}

    async def send(self, **message: Any) -> None:
        await self.ws.send_str(json.dumps({"jsonrpc": "2.0", **message}))

    async def ask(self, method: str, params: Json) -> int:
        """Send a request; its id."""
        request_id = next(self._ids)
        self._methods[request_id] = method
        await self.send(id=request_id, method=method, params=params)
        return request_id

    async def notify(self, method: str, **params: Any) -> None:
        await self.send(method=method, params=params)

    async def next(self) -> Json | None:
        """The next message that nobody has waited for yet; None once the socket is closed."""
        if self._seen == len(self.messages):
            async with asyncio.timeout(PATIENCE):
                frame = await self.ws.receive()
            if frame.type is not WSMsgType.TEXT:
                return None
            message = json.loads(frame.data)
            self.frames.append(frame.data)
            if self._strict:
                answered = None if message.get("id") is None else self._methods.get(message["id"])
                check(message, answered)
            self.messages.append(message)
            if "method" not in message:
                self._answers[repr(message["id"])] = message
        self._seen += 1
        return self.messages[self._seen - 1]

    async def until(self, **fields: Any) -> Json:
        """The next message with these fields; others are passed over."""
        while (message := await self.next()) is not None:
            if fields.items() <= message.items():
                return message
        raise AssertionError(f"closed with {self.ws.close_code} before {fields}: {self.messages}")

    async def until_update(self, kind: str) -> Json:
        """The next update of that kind."""
        while True:
            message = await self.until(method="session/update")
            update: Json = message["params"]["update"]
            if update["sessionUpdate"] == kind:
                return update

    async def until_text(self, text: str) -> Json:
        """The next chunk of the agent's that contains *text*."""
        while True:
            update = await self.until_update("agent_message_chunk")
            if text in update["content"].get("text", ""):
                return update

    async def answer_to(self, request_id: Any) -> Any:
        """The result for a request that was sent.

        Raises:
            AnswerError: it is an error.
        """
        # 0 is not False, and 1 is not 1.0.
        while repr(request_id) not in self._answers:
            if await self.next() is None:
                raise AssertionError(f"closed with {self.ws.close_code}: {self.messages}")
        answer = self._answers.pop(repr(request_id))
        if "error" in answer:
            raise AnswerError(answer["error"])
        return answer["result"]

    async def call(self, method: str, **params: Any) -> Any:
        return await self.answer_to(await self.ask(method, params))

    async def new_session(self, **params: Any) -> str:
        created = await self.call("session/new", **{"cwd": "/", "mcpServers": [], **params})
        return str(created["sessionId"])

    async def prompt(self, session_id: str, text: str) -> Any:
        return await self.answer_to(await self.start_prompt(session_id, text))

    async def start_prompt(self, session_id: str, text: str) -> int:
        prompt = [{"type": "text", "text": text}]
        return await self.ask("session/prompt", {"sessionId": session_id, "prompt": prompt})

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

    def conversation(self) -> list[Json]:
        """The updates that tell what was said and done."""
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
    hello: Json | None = HELLO,
    **options: Any,
) -> AcpClient:
    """An ACP connection of that app's; initialized, unless *hello* is None."""
    headers = {**client.headers(), **options.pop("headers", {})}
    ws = await client.http.ws_connect(
        acp_url(client, query), headers=headers, max_msg_size=0, **options
    )
    client.keep(ws)
    acp = AcpClient(ws, strict=strict)
    if hello is not None:
        await acp.call("initialize", **hello)
    return acp
