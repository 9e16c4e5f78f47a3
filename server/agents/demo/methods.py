"""The ACP methods that the demo agent supports."""

from __future__ import annotations

import json

from .commands import available_commands
from .rpc import RpcError, check_block, cwd_of, invalid_params, require, to_error, unknown_session
from .session import DemoSession, new_id
from .turn import DemoTurn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .rpc import Client, Json

VERSION = "1.0"
DEFERRED: Json = {}  # returned by a method whose response follows later


class DemoAgent:
    """Responds to the client's requests; `METHODS` is the table of its methods."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.sessions: dict[str, DemoSession] = {}
        self.after_response: list[Callable[[], None]] = []

    def handle_line(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self.client.send({"id": None, "error": {"code": -32700, "message": "Parse error"}})
            return
        if isinstance(message, dict) and isinstance(message.get("method"), str):
            self.handle_call(message)
        elif isinstance(message, dict) and ("result" in message or "error" in message):
            self.client.set_reply({"id": None, **message})
        else:
            self.client.send({"id": None, "error": {"code": -32600, "message": "Invalid request"}})

    def handle_call(self, message: Json) -> None:
        """Call a method and send its response; a prompt's response follows when its turn ends."""
        request_id = message.get("id")
        try:
            response: Json = {"result": self.call(message["method"], message, request_id)}
        except Exception as error:  # noqa: BLE001 - every request must be answered
            response = {"error": to_error(error)}
        if "id" in message and response.get("result") is not DEFERRED:
            self.client.send({"id": request_id, **response})
        while self.after_response:
            self.after_response.pop(0)()

    def call(self, method: str, message: Json, request_id: Any) -> Json:
        if method not in METHODS:
            raise RpcError(-32601, "Method not found", method)
        params = message.get("params", {})
        if not isinstance(params, dict):
            raise invalid_params("params must be an object")
        return METHODS[method](self, params, request_id)

    def initialize(self, params: Json, _: Any) -> Json:
        require(params, "protocolVersion", int)
        return {
            "protocolVersion": 1,
            "agentCapabilities": {
                "loadSession": True,
                "promptCapabilities": {"image": True, "audio": True, "embeddedContext": True},
                "mcpCapabilities": {"http": False, "sse": False},
                "sessionCapabilities": {"resume": {}, "fork": {}, "close": {}},
            },
            "agentInfo": {"name": "clawdforge-demo", "title": "Demo", "version": VERSION},
            "authMethods": [],
        }

    def authenticate(self, params: Json, _: Any) -> Json:
        return {}

    def new_session(self, params: Json, _: Any) -> Json:
        session = DemoSession(new_id(), cwd_of(params))
        meta = params.get("_meta")
        session.data["system"] = meta.get("systemPrompt") if isinstance(meta, dict) else None
        session.save()
        return {"sessionId": session.id, **self.register(session)}

    def load_session(self, params: Json, _: Any) -> Json:
        """Send the whole conversation to the client, then respond."""
        session = self.find_or_load(params)
        for message in session.data["messages"]:
            for block in message["content"]:
                self.client.update(session.id, f"{message['role']}_message_chunk", content=block)
        return self.register(session)

    def resume_session(self, params: Json, _: Any) -> Json:
        """As load, without sending the conversation; clients such as acpx prefer it."""
        return self.register(self.find_or_load(params))

    def fork_session(self, params: Json, _: Any) -> Json:
        """Continue a copy of the conversation, which may be in another folder."""
        source = self.session(params)
        copy = json.loads(json.dumps(source.data))
        fork_id = new_id()
        fork = DemoSession(fork_id, cwd_of(params), {**copy, "sessionId": fork_id})
        fork.save()
        self.sessions[fork.id] = fork
        return {
            "sessionId": fork.id,
            "modes": fork.modes(),
            "configOptions": fork.config_options(),
        }

    def close_session(self, params: Json, _: Any) -> Json:
        """Cancel the turn and drop the session from memory; its file stays, for a later load."""
        self.cancel(params, None)
        del self.sessions[params["sessionId"]]
        return {}

    def set_mode(self, params: Json, _: Any) -> Json:
        self.session(params).set_option(self.client, "mode", require(params, "modeId", str))
        return {}

    def set_config_option(self, params: Json, _: Any) -> Json:
        session = self.session(params)
        session.set_option(self.client, require(params, "configId", str), params.get("value"))
        return {"configOptions": session.config_options()}

    def prompt(self, params: Json, request_id: Any) -> Json:
        session = self.session(params)
        for block in require(params, "prompt", list):
            check_block(block)
        if session.turn is not None:
            raise RpcError(-32600, "Invalid request", "a turn is running in this session")
        session.turn = DemoTurn(self.client, session, request_id, params["prompt"])
        session.turn.start()
        return DEFERRED

    def cancel(self, params: Json, _: Any) -> Json:
        if (turn := self.session(params).turn) is not None:
            turn.cancel()
        return {}

    def cancel_request(self, params: Json, _: Any) -> Json:
        for session in self.sessions.values():
            turn = session.turn
            if turn is not None and turn.request_id == params.get("requestId"):
                turn.cancel()
        return {}

    def session(self, params: Json) -> DemoSession:
        session_id = require(params, "sessionId", str)
        if session_id not in self.sessions:
            raise unknown_session(session_id)
        return self.sessions[session_id]

    def find_or_load(self, params: Json) -> DemoSession:
        session_id, cwd = require(params, "sessionId", str), cwd_of(params)
        session = self.sessions.get(session_id)
        return session if session and session.cwd == cwd else DemoSession.load(session_id, cwd)

    def register(self, session: DemoSession) -> Json:
        """Register the session; after the response, send its commands to the client."""
        self.sessions[session.id] = session
        kind, commands = "available_commands_update", available_commands()
        self.after_response.append(
            lambda: self.client.update(session.id, kind, availableCommands=commands)
        )
        return {"modes": session.modes(), "configOptions": session.config_options()}


METHODS: dict[str, Callable[[DemoAgent, Json, Any], Json]] = {
    "initialize": DemoAgent.initialize,
    "authenticate": DemoAgent.authenticate,
    "session/new": DemoAgent.new_session,
    "session/load": DemoAgent.load_session,
    "session/resume": DemoAgent.resume_session,
    "session/fork": DemoAgent.fork_session,
    "session/close": DemoAgent.close_session,
    "session/set_mode": DemoAgent.set_mode,
    "session/set_config_option": DemoAgent.set_config_option,
    "session/prompt": DemoAgent.prompt,
    "session/cancel": DemoAgent.cancel,
    "$/cancel_request": DemoAgent.cancel_request,
}
