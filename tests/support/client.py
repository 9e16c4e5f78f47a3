"""A client of the server: REST calls, and session sockets that record their frames."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp import WSMsgType

from .waiting import Deadline, eventually

ADMIN = "admin-token-of-the-tests"

Json = dict[str, Any]


class Socket:
    """The client's side of a session's socket. It records every frame.

    Attributes:
        frames: all received frames, in order.
    """

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.frames: list[Json] = []
        self._seen = 0

    @property
    def close_code(self) -> int | None:
        """The close code, or None while the socket is open."""
        return self.ws.close_code

    def clear(self) -> None:
        """Forget all recorded frames."""
        self.frames.clear()
        self._seen = 0

    def prepend(self, frames: list[Json]) -> None:
        """Insert frames of an earlier connection before the recorded ones."""
        self.frames[:0] = frames
        self._seen = len(self.frames)

    async def send(self, kind: str, **fields: Any) -> None:
        await self.ws.send_str(json.dumps({"type": kind, **fields}))

    async def next(self) -> Json | None:
        """The next frame that was not returned yet; None once the socket is closed."""
        if self._seen == len(self.frames):
            async with Deadline(f"a frame; the last was {self.frames[-1:]}"):
                message = await self.ws.receive()
            if message.type is not WSMsgType.TEXT:
                return None
            self.frames.append(json.loads(message.data))
        self._seen += 1
        return self.frames[self._seen - 1]

    async def until(self, kind: str, **fields: Any) -> Json:
        """The next frame with this type and these fields. Other frames are skipped."""
        while (frame := await self.next()) is not None:
            if frame["type"] == kind and fields.items() <= frame.items():
                return frame
        kinds = [frame["type"] for frame in self.frames]
        raise AssertionError(f"closed with {self.close_code} before {kind} {fields}: {kinds}")

    async def until_text(self, text: str) -> Json:
        """The next event whose message chunk contains *text*."""
        while (frame := await self.next()) is not None:
            if frame["type"] == "event" and text in chunk_text(frame):
                return frame
        raise AssertionError(f"closed with {self.close_code} before the text {text!r}")

    async def until_closed(self) -> int:
        """Read until the socket is closed. Returns the close code."""
        while await self.next() is not None:
            pass
        assert self.close_code is not None
        return self.close_code

    async def turn(self, prompt: Any, **fields: Any) -> Json:
        """Send a prompt, and return the ``turn_end`` of its turn."""
        await self.send("prompt", prompt=prompt, **fields)
        accepted = await self.until("accepted")
        return await self.until("turn_end", turn_index=accepted["turn_index"])

    @property
    def entries(self) -> list[Json]:
        """The log entries among the frames."""
        return [frame for frame in self.frames if "seq" in frame]

    def text(self, turn_index: int | None = None) -> str:
        """The agent's message in a turn (or in all turns)."""
        return "".join(
            chunk_text(frame)
            for frame in self.entries
            if frame["type"] == "event" and turn_index in (None, frame["turn_index"])
        )

    def contexts(self) -> list[str]:
        """The ``context`` of each turn that has started."""
        return [entry["context"] for entry in self.entries if entry["type"] == "turn_start"]

    async def close(self) -> None:
        await self.ws.close()


def chunk_text(frame: Json) -> str:
    """The text of an ``event`` entry with an ``agent_message_chunk``, else an empty string."""
    update = frame.get("event", {}).get("params", {}).get("update", {})
    if update.get("sessionUpdate") != "agent_message_chunk":
        return ""
    return str(update.get("content", {}).get("text", ""))


def texts_of(events: list[Json]) -> str:
    """The agent's message in the ``events`` of a REST turn."""
    return "".join(chunk_text({"event": event}) for event in events)


def failure(response: tuple[int, Json], status: int, code: str) -> str:
    """Check that a REST response is a failure in the standard format. Returns its message."""
    assert response[0] == status, response
    assert response[1]["ok"] is False
    assert response[1]["code"] == code
    assert response[1]["error"]
    return str(response[1]["error"])


_sockets: WeakKeyDictionary[aiohttp.ClientSession, list[aiohttp.ClientWebSocketResponse]] = (
    WeakKeyDictionary()
)


class Client:
    """The client of one app. REST calls return ``(status, body)``."""

    def __init__(self, url: str, token: str | None, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.token = token
        self.http = http

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}

    async def call(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> tuple[int, Json]:
        headers = {**self.headers(), **options.pop("headers", {})}
        if body is not None:
            options["data"] = body if isinstance(body, (bytes, str)) else json.dumps(body)
        async with self.http.request(
            method, self.url + path, headers=headers, **options
        ) as response:
            data = await response.read()
            self.last_headers = response.headers
            return response.status, json.loads(data) if data else {}

    async def get(self, path: str, **options: Any) -> tuple[int, Json]:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Json]:
        return await self.call("POST", path, body if body is not None else {}, **options)

    async def delete(self, path: str) -> tuple[int, Json]:
        return await self.call("DELETE", path)

    async def create(self, agent: str = "mock", **body: Any) -> str:
        """Create a session, and return its id."""
        status, reply = await self.post("/sessions", {"agent": agent, **body})
        assert status == 200, reply
        return str(reply["session_id"])

    async def turn(self, session_id: str, prompt: Any, **body: Any) -> tuple[int, Json]:
        return await self.post(f"/sessions/{session_id}/turn", {"prompt": prompt, **body})

    async def events(self, session_id: str, after: int = 0) -> list[Json]:
        """All log entries after *after*."""
        entries: list[Json] = []
        while True:
            status, reply = await self.get(f"/sessions/{session_id}/events?after={after}")
            assert status == 200, reply
            entries += reply["entries"]
            if not reply["entries"] or entries[-1]["seq"] >= reply["head"]:
                return entries
            after = entries[-1]["seq"]

    async def state(self, session_id: str) -> Json:
        status, reply = await self.get(f"/sessions/{session_id}")
        assert status == 200, reply
        return reply

    async def until_hibernated(self, session_id: str) -> None:
        """Wait until the session has no agent process."""

        async def is_hibernated() -> bool:
            return bool((await self.state(session_id))["agent_state"] == "hibernated")

        await eventually("the session to hibernate", is_hibernated)

    async def until_live(self, session_id: str) -> None:
        """Wait until the session's agent runs."""

        async def is_live() -> bool:
            return bool((await self.state(session_id))["agent_state"] == "live")

        await eventually("the agent to start", is_live)

    def close_later(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Close *ws* in :meth:`close_sockets`."""
        _sockets.setdefault(self.http, []).append(ws)

    async def close_sockets(self) -> None:
        """Close all sockets that were opened so far."""
        for ws in _sockets.pop(self.http, []):
            await ws.close()

    async def connect(
        self, session_id: str, *, after: int | None = None, ready: bool = True, **options: Any
    ) -> Socket:
        """Open a session's socket, and wait for its ``ready`` frame if *ready*."""
        query = "" if after is None else f"?after={after}"
        headers = {**self.headers(), **options.pop("headers", {})}
        ws = await self.http.ws_connect(
            f"{self.url}/sessions/{session_id}/ws{query}",
            headers=headers,
            max_msg_size=0,
            **options,
        )
        socket = Socket(ws)
        self.close_later(ws)
        if ready:
            await socket.until("ready")
        return socket


@contextlib.asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session that closes its WebSockets at the end."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=180)) as http:
        try:
            yield http
        finally:
            await Client("", None, http).close_sockets()


async def new_client(url: str, http: aiohttp.ClientSession, name: str = "app") -> Client:
    """A client with a new token."""
    status, reply = await Client(url, ADMIN, http).post("/admin/tokens", {"name": name})
    assert status == 200, reply
    return Client(url, reply["token"], http)
