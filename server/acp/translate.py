"""What a session's log says, in ACP's words: notifications from entries, without I/O.

An agent's message is passed on as it wrote it; only its `sessionId` becomes ours.
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
_UPDATE_HEAD = b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":%b,'
_Fields = dict[str, msgspec.Raw]


class AgentMessage:
    """A message that an agent wrote, looked at as deep as is needed and no deeper.

    Attributes:
        method: None for the answer that ends a turn.
    """

    def __init__(self, message: bytes) -> None:
        self._message = message
        try:
            self._fields = msgspec.json.decode(message, type=_Fields)
            method = self._fields.get("method")
            self.method = None if method is None else msgspec.json.decode(method, type=str)
        except msgspec.MsgspecError:  # half a surrogate pair
            value = parse_message(message) or {}
            self._fields = {key: msgspec.Raw(dumps(part)) for key, part in value.items()}
            self.method = value.get("method")

    def part(self, name: str) -> bytes | None:
        """One field, as it was written."""
        found = self._fields.get(name)
        return None if found is None else bytes(found)

    def told_as(self, session_id: str) -> bytes:
        """The message with our session id in place of the agent's; all else as it was written."""
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
    """The way most updates begin, for those that need not be looked at: their id is swapped.

    Args:
        session_id: ours.
    """

    def __init__(self, session_id: str) -> None:
        self._ours = _UPDATE_HEAD % dumps(session_id)
        self._theirs: bytes | None = None

    def learn(self, notice: AgentMessage) -> None:
        """Note the agent's own id from a notice that was looked at."""
        params = parse_message(notice.part("params") or b"")
        if params is not None and isinstance(params.get("sessionId"), str):
            self._theirs = _UPDATE_HEAD % dumps(params["sessionId"])

    def swap(self, message: bytes) -> bytes | None:
        """*message* with our id, or None where it does not begin so."""
        if self._theirs is None or not message.startswith(self._theirs):
            return None
        return self._ours + message[len(self._theirs) :]


def update(session_id: str, fields: Mapping[str, Any]) -> bytes:
    """A ``session/update`` of our own."""
    return jsonrpc.notification(UPDATE, {"sessionId": session_id, "update": fields})


def user_chunks(session_id: str, prompt: Iterable[Any]) -> list[bytes]:
    """A prompt that came from elsewhere."""
    return [
        update(session_id, {"sessionUpdate": "user_message_chunk", "content": block})
        for block in prompt
    ]


def news(session_id: str, **ours: Any) -> bytes:
    """Something that ACP has no word for, in the ``_meta`` of a ``session_info_update``."""
    fields = {"sessionUpdate": "session_info_update", "_meta": {NAMESPACE: ours}}
    return update(session_id, fields)


def iso_time(unix_secs: float) -> str:
    moment = datetime.datetime.fromtimestamp(unix_secs, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
