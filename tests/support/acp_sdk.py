"""A client on the official Python SDK. It validates every frame against ACP's JSON schema.

Functions import the SDK, which takes a second in each process that collects the tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from .acp_client import acp_url, validate
from .harness import Client, Deadline, Json, script

if TYPE_CHECKING:
    from acp.connection import StreamEvent
    from acp.schema import RequestPermissionResponse


class SdkClient:
    """A client on the SDK. It records messages by session.

    Attributes:
        decided: permission requests are not answered until it is set.
    """

    def __init__(self) -> None:
        self.decided = asyncio.Event()
        self.decided.set()
        self.texts: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self.tools: list[Any] = []
        self.asked: list[Any] = []
        self.changed = asyncio.Condition()

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        recorded = {"agent_message_chunk": self.texts, "user_message_chunk": self.users}
        if (texts := recorded.get(update.session_update)) is not None:
            texts[session_id] = texts.get(session_id, "") + update.content.text
        elif update.session_update == "tool_call":
            self.tools.append(update)
        await self.notify()

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> RequestPermissionResponse:
        from acp.schema import AllowedOutcome, RequestPermissionResponse

        self.asked.append((session_id, tool_call.title))
        await self.notify()
        await self.decided.wait()
        (option,) = [one for one in options if one.kind == "allow_once"]
        outcome = AllowedOutcome(outcome="selected", option_id=option.option_id)
        return RequestPermissionResponse(outcome=outcome)

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        async with Deadline(what), self.changed:
            await self.changed.wait_for(condition)

    async def until_text(self, session_id: str, text: str) -> None:
        await self.until(f"the text {text!r}", lambda: text in self.texts.get(session_id, ""))


class Recorder:
    """Validates every frame.

    Attributes:
        sizes: of the frames of the server, in bytes.
        asked, withdrawn: ids of the server's permission requests, and of those it has cancelled.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.asked: list[Any] = []
        self.withdrawn: asyncio.Queue[Any] = asyncio.Queue()
        self._methods: dict[Any, str] = {}

    def __call__(self, event: StreamEvent) -> None:
        from acp.connection import StreamDirection

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
        validate(message, None if "method" in message else self._methods[message["id"]])


async def connect_sdk(client: Client, sdk_client: SdkClient) -> tuple[Any, Recorder]:
    import acp
    from acp.ws import create_websocket_stream

    transport = await create_websocket_stream(acp_url(client), headers=client.headers())
    recorder = Recorder()
    agent = acp.connect_to_agent(cast(Any, sdk_client), transport, observers=[recorder])
    initialized = await agent.initialize(protocol_version=acp.PROTOCOL_VERSION)
    assert initialized.agent_capabilities is not None
    assert initialized.agent_capabilities.load_session is True
    return agent, recorder


def text_block(text: str) -> Any:
    import acp

    return acp.text_block(text)


def script_blocks(*steps: Json) -> list[Any]:
    return [text_block(script(*steps))]
