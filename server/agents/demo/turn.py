"""One prompt: its thread, the messages that it streams, and its permission requests."""

from __future__ import annotations

import os
import re
import threading

from .content import merge_chunks, title_of
from .replies import reply_to_prompt
from .rpc import RpcError, to_error
from .session import new_id, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, NoReturn

    from .rpc import Client, Json, Reply
    from .session import DemoSession

CONTEXT_SIZE = 200_000  # tokens, as reported to the client

PERMISSION_OPTIONS = [
    {"optionId": "allow_once", "name": "Allow", "kind": "allow_once"},
    {"optionId": "allow_always", "name": "Always allow", "kind": "allow_always"},
    {"optionId": "reject_once", "name": "Reject", "kind": "reject_once"},
    {"optionId": "reject_always", "name": "Always reject", "kind": "reject_always"},
]


class CancelledError(Exception):
    """The client cancelled the running turn."""


def read_pace() -> float:
    """The pause after each word, in seconds."""
    try:
        return max(0.0, float(os.environ.get("DEMO_PACE_MS", "18")) / 1000)
    except ValueError:
        return 0.018


PACE = read_pace()


class DemoTurn(threading.Thread):
    """Runs the script of one prompt, streams its output, and responds exactly once."""

    def __init__(self, client: Client, session: DemoSession, request_id: Any, prompt: Any) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.session = session
        self.request_id = request_id
        self.prompt: list[Json] = prompt
        self.stop_reason = "end_turn"
        self.pace = PACE / 4 if session.data["config"]["model"] == "demo-fast" else PACE
        self._cancelled = threading.Event()
        self._awaited_reply: Reply | None = None
        self._open_tools: set[str] = set()
        self._sent_blocks: list[Json] = []

    def run(self) -> None:
        response: Json
        try:
            self.begin()
            reply_to_prompt(self)
            response = {"result": {"stopReason": self.stop_reason}}
        except CancelledError:
            response = {"result": {"stopReason": "cancelled"}}
        except Exception as error:  # noqa: BLE001 - every request must be answered
            response = {"error": to_error(error)}
        self.finish()
        self.session.turn = None  # before the response: the next prompt may follow immediately
        self.client.send({"id": self.request_id, **response})

    def begin(self) -> None:
        data = self.session.data
        data["title"] = data["title"] or title_of(self.prompt)
        self.session.add_message("user", self.prompt)
        self.update("session_info_update", title=data["title"], updatedAt=data["updatedAt"])

    def finish(self) -> None:
        for tool_id in tuple(self._open_tools):
            self.end_tool(tool_id, "Stopped.", status="failed")
        if self._sent_blocks:
            self.session.add_message("agent", merge_chunks(self._sent_blocks))
        used = self.session.tokens("user") + self.session.tokens("agent")
        cost = {"amount": 0.0, "currency": "USD"}
        self.update("usage_update", used=used, size=CONTEXT_SIZE, cost=cost)

    def fail(self, message: str, details: str) -> NoReturn:
        raise RpcError(-32603, message, details)

    def cancel(self) -> None:
        """Called by the main thread: set the flag, then wake `ask`, which reads them in reverse."""
        self._cancelled.set()
        if (reply := self._awaited_reply) is not None:
            reply.done.set()

    def pause(self, words: float) -> None:
        """Sleep for the time that this number of words takes."""
        self.sleep(words * self.pace)

    def sleep(self, seconds: float) -> None:
        """Sleep; raises CancelledError if the turn is or becomes cancelled."""
        if self._cancelled.wait(seconds):
            raise CancelledError

    def ask(self, method: str, params: Json) -> Json:
        """Send a request and wait for the result, or until the turn is cancelled."""
        reply = self.client.request(method, {"sessionId": self.session.id, **params})
        self._awaited_reply = reply
        self.sleep(0)
        reply.done.wait()
        self._awaited_reply = None
        self.sleep(0)
        return reply.result

    def update(self, update: str, /, **fields: Any) -> None:
        self.client.update(self.session.id, update, **fields)

    def replace_file(self, path: Path, text: str) -> None:
        replace_file(path, text)

    def stream(self, kind: str, text: str) -> None:
        """Send a message word by word."""
        message_id = new_id()
        for word in re.findall(r"\s*\S+\s*", text):
            block = {"type": "text", "text": word}
            self.update(kind, content=block, messageId=message_id)
            if kind == "agent_message_chunk":
                self._sent_blocks.append(block)
            self.pause(1)

    def say(self, markdown: str) -> None:
        self.stream("agent_message_chunk", markdown.rstrip() + "\n\n")

    def show(self, block: Json) -> None:
        """Send a content block that is not text."""
        self.update("agent_message_chunk", content=block, messageId=new_id())
        self._sent_blocks.append(block)

    def think(self, *thoughts: str) -> None:
        level = self.session.data["config"]["thought_level"]
        if level != "off":
            kept = thoughts if level == "deep" else thoughts[:1]
            self.stream("agent_thought_chunk", "\n\n".join(kept))

    def start_tool(self, title: str, kind: str, status: str = "in_progress", **more: Any) -> str:
        """Start a tool call and return its id; `more` are further fields of ACP's `ToolCall`."""
        call = {"toolCallId": "call_" + new_id(), "title": title, "kind": kind, "status": status}
        self._open_tools.add(call["toolCallId"])
        self.update("tool_call", **call, **more)
        self.pause(10)
        return call["toolCallId"]

    def end_tool(self, tool_id: str, text: str, status: str = "completed", **more: Any) -> None:
        self._open_tools.discard(tool_id)
        shown = [{"type": "content", "content": {"type": "text", "text": text}}]
        call = {"toolCallId": tool_id, "status": status, "content": shown, "rawOutput": text}
        self.update("tool_call_update", **{**call, **more})

    def is_permitted(self, tool_id: str, title: str, kind: str) -> bool:
        """Request a permission, unless the mode or an earlier "always" has decided it.

        A dismissed request (outcome "cancelled") cancels the turn.
        """
        mode, always = self.session.data["config"]["mode"], self.session.data["always"]
        if mode != "ask":
            return bool(mode == "auto")
        if kind in always:
            return bool(always[kind])
        call = {"toolCallId": tool_id, "title": title, "kind": kind}
        params = {"toolCall": call, "options": PERMISSION_OPTIONS}
        outcome = self.ask("session/request_permission", params).get("outcome") or {}
        if outcome.get("outcome") == "cancelled":
            raise CancelledError
        choice = str(outcome.get("optionId"))
        if choice.endswith("_always"):
            always[kind] = choice == "allow_always"
            self.session.save()
        return choice.startswith("allow")
