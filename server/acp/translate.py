"""Translates log entries to ACP's notifications. Nothing here does I/O.

An agent's message is passed on as the agent wrote it, except that its session id is replaced.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ..codec import dumps, parse_message
from . import jsonrpc
from .params import NAMESPACE

UPDATE = "session/update"
_UPDATE_PREFIX = b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":%b,'
_Fields = dict[str, msgspec.Raw]


class AgentMessage:
    """A message that an agent wrote, parsed only as deep as needed.

    Attributes:
        method: None for the response that ends a turn.
    """

    def __init__(self, message: bytes) -> None:
        self._message = message
        try:
            self._fields = msgspec.json.decode(message, type=_Fields)
            method = self._fields.get("method")
            self.method = None if method is None else msgspec.json.decode(method, type=str)
        except msgspec.MsgspecError:  # an unpaired surrogate
            value = parse_message(message) or {}
            self._fields = {key: msgspec.Raw(dumps(part)) for key, part in value.items()}
            self.method = value.get("method")

    def part(self, name: str) -> bytes | None:
        """The raw JSON of one field, or None."""
        value = self._fields.get(name)
        return None if value is None else bytes(value)

    def with_session_id(self, session_id: str) -> bytes:
        """The message with another session id; everything else stays as the agent wrote it."""
        params = self.part("params")
        if params is None or not params.startswith(b"{"):
            return self._message
        try:
            fields = msgspec.json.decode(params, type=_Fields)
        except msgspec.MsgspecError:
            value = parse_message(params) or {}
            fields = {key: msgspec.Raw(dumps(part)) for key, part in value.items()}
        if "sessionId" not in fields:
            return self._message
        fields["sessionId"] = msgspec.Raw(dumps(session_id))
        return _join({**self._fields, "params": msgspec.Raw(_join(fields))})


def _join(fields: Mapping[str, msgspec.Raw]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (dumps(key), bytes(part)) for key, part in fields.items())


class SessionIdRewriter:
    """Replaces the session id at the beginning of an update, without parsing it.

    Args:
        session_id: this server's id of the session.

    Attributes:
        agent_id: the agent's own id of it, once it is known.
    """

    def __init__(self, session_id: str) -> None:
        self._new_prefix = _UPDATE_PREFIX % dumps(session_id)
        self.agent_id: str | None = None
        self._agent_prefix: bytes | None = None

    def learn(self, message: AgentMessage) -> None:
        """Learn the agent's own session id from a message that was parsed."""
        params = parse_message(message.part("params") or b"")
        if params is not None and isinstance(params.get("sessionId"), str):
            self.agent_id = params["sessionId"]
            self._agent_prefix = _UPDATE_PREFIX % dumps(self.agent_id)

    def rewrite(self, message: bytes) -> bytes | None:
        """*message* with the new id, or None if it must be parsed."""
        if self._agent_prefix is None or not message.startswith(self._agent_prefix):
            return None
        return self._new_prefix + message[len(self._agent_prefix) :]


def update(session_id: str, fields: Mapping[str, Any]) -> bytes:
    """A ``session/update`` that the server itself sends."""
    return jsonrpc.encode_notification(UPDATE, {"sessionId": session_id, "update": fields})


def user_chunks(session_id: str, prompt: Iterable[Any]) -> list[bytes]:
    """The updates for a prompt that another client sent."""
    return [
        update(session_id, {"sessionUpdate": "user_message_chunk", "content": block})
        for block in prompt
    ]


def info_update(session_id: str, **extension: Any) -> bytes:
    """A ``session_info_update`` with an extension of ACP in its ``_meta``."""
    fields = {"sessionUpdate": "session_info_update", "_meta": {NAMESPACE: extension}}
    return update(session_id, fields)


def iso_time(unix_secs: float) -> str:
    moment = datetime.datetime.fromtimestamp(unix_secs, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
