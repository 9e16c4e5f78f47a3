"""A client on the official Python SDK, unmodified; every frame is held against its schema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import acp
from acp.connection import StreamDirection, StreamEvent
from acp.schema import AllowedOutcome, RequestPermissionResponse
from acp.ws import create_websocket_stream

from .acp_client import acp_url, check
from .harness import Client, Deadline, Json, script


class Me:
    """A client on the SDK; what it is told is kept by session.

    Attributes:
        decided: its user answers no permission request before that.
    """

    def __init__(self) -> None:
        self.decided = asyncio.Event()
        self.decided.set()
        self.texts: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self.tools: list[Any] = []
        self.asked: list[Any] = []
        self.arrived = asyncio.Condition()

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        kept = {"agent_message_chunk": self.texts, "user_message_chunk": self.users}
        if (texts := kept.get(update.session_update)) is not None:
            texts[session_id] = texts.get(session_id, "") + update.content.text
        elif update.session_update == "tool_call":
            self.tools.append(update)
        await self.tell()

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> RequestPermissionResponse:
        self.asked.append((session_id, tool_call.title))
        await self.tell()
        await self.decided.wait()
        (option,) = [one for one in options if one.kind == "allow_once"]
        outcome = AllowedOutcome(outcome="selected", option_id=option.option_id)
        return RequestPermissionResponse(outcome=outcome)

    async def tell(self) -> None:
        async with self.arrived:
            self.arrived.notify_all()

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        async with Deadline(what), self.arrived:
            await self.arrived.wait_for(condition)

    async def until_text(self, session_id: str, text: str) -> None:
        await self.until(f"the text {text!r}", lambda: text in self.texts.get(session_id, ""))


class Recorder:
    """Holds every frame against the schema as the SDK sees it.

    Attributes:
        asked, withdrawn: ids of the server's requests.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.asked: list[Any] = []
        self.withdrawn: asyncio.Queue[Any] = asyncio.Queue()
        self._methods: dict[Any, str] = {}

    def __call__(self, event: StreamEvent) -> None:
        message = event.message
        if event.direction is StreamDirection.OUTGOING:
            if "method" in message and "id" in message:
                self._methods[message["id"]] = message["method"]
            return
        if message.get("method") == "session/request_permission":
            self.asked.append(message["id"])
        elif message.get("method") == "$/cancel_request":
            self.withdrawn.put_nowait(message["params"]["requestId"])
        self.sizes.append(len(json.dumps(message, separators=(",", ":"))))
        check(message, None if "method" in message else self._methods[message["id"]])


async def dial(client: Client, me: Me) -> tuple[Any, Recorder]:
    transport = await create_websocket_stream(acp_url(client), headers=client.headers())
    recorder = Recorder()
    agent = acp.connect_to_agent(cast(Any, me), transport, observers=[recorder])
    initialized = await agent.initialize(protocol_version=acp.PROTOCOL_VERSION)
    assert initialized.agent_capabilities is not None
    assert initialized.agent_capabilities.load_session is True
    return agent, recorder


def steps(*them: Json) -> list[Any]:
    return [acp.text_block(script(*them))]
