"""One session on a connection: a cursor in its log, and what this client waits for there.

What is answered in the log's order is answered here: a prompt, when its turn's
end has been reached; a load, when its replay has; a close, at the last entry. So
an answer comes after all the updates that belong before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..codec import parse_message
from ..errors import Error, session_closed
from ..sessions import entries
from ..sessions.event_log import Batch
from ..sessions.session import Session
from . import jsonrpc, translate
from .jsonrpc import RpcError
from .truncate import fit

Json = dict[str, Any]

ERROR_LENGTH = 10_000


class SessionSubscription:
    """A session as one client sees it.

    Args:
        cursor: the position behind which the client is told what happens.
        answered: told of each request that has been answered here.
        next_id: gives ids for requests to the client.
        limit: how large a message the client takes, in bytes.

    Attributes:
        prompts: the client's own turns that are not answered yet, by their index.
        asked: ids of the requests to the client for permissions, by the session's.
    """

    def __init__(
        self,
        session: Session,
        cursor: int,
        *,
        answered: Callable[[jsonrpc.Request], None],
        next_id: Callable[[], int],
        limit: int,
    ) -> None:
        self.session = session
        self.cursor = cursor
        self.prompts: dict[int, jsonrpc.Request] = {}
        self.asked: dict[str, int] = {}
        self._answered = answered
        self._next_id = next_id
        self._limit = limit
        self._replay_until = 0
        self._loads: list[jsonrpc.Request] = []
        self._closes: list[jsonrpc.Request] = []
        self._endings: dict[int, translate.AgentMessage] = {}
        self._prefix = translate.SessionIdRewriter(session.id)

    @property
    def has_more(self) -> bool:
        return self.cursor < self.session.log.head

    @property
    def is_over(self) -> bool:
        """The session is closed, and the client has been told all of it."""
        return self.session.is_over and self.cursor >= self.session.log.last

    # What the client asks.

    def replay(self, request: jsonrpc.Request) -> list[bytes]:
        """Begin anew; *request* is answered when the client has what there is now."""
        self.cursor = 0
        self._replay_until = self.session.log.head
        self._loads.append(request)
        return [] if self._replay_until else self._end_replay()

    def ask_pending(self) -> list[bytes]:
        """Ask for the permissions that wait, and of which this client does not know."""
        asking: list[bytes] = []
        for pending in self.session.permissions.pending():
            if pending["request_id"] not in self.asked:
                asking += self._ask(pending)
        return asking

    def answer_at_end(self, request: jsonrpc.Request) -> None:
        """Answer a ``session/close`` behind the session's last entry."""
        self._closes.append(request)

    def settings(self) -> Json:
        """What the agent offers, for an answer: only what it has told."""
        view = self.session.agent_view()
        offered = {
            "modes": view["modes"],
            "models": view["models"],
            "configOptions": view["config_options"],
        }
        return {key: value for key, value in offered.items() if value is not None}

    # What the log says.

    def tell(self, batch: Batch, budget: int) -> list[bytes]:
        """The messages for a batch's entries, until they have *budget* bytes; the cursor moves."""
        told: list[bytes] = []
        size = 0
        for seq, line in enumerate(batch.lines(), batch.first):
            messages: list[bytes] = []
            for message in self._tell(line, replaying=seq <= self._replay_until):
                messages += self._fitting(message, seq)
            self.cursor = seq
            if seq == self._replay_until:
                messages += self._end_replay()
            told += messages
            size += sum(map(len, messages))
            if size >= budget:
                break
        return told

    def _fitting(self, message: bytes, seq: int) -> list[bytes]:
        if len(message) <= self._limit:
            return [message]
        left_out = {"leftOut": {"seq": seq, "bytes": len(message)}}
        return fit(message, self._limit, seq) or [translate.news(self.session.id, **left_out)]

    def _tell(self, line: bytes, *, replaying: bool) -> list[bytes]:
        event = entries.event_of(line)
        if event is not None:
            return self._tell_event(line, event, replaying=replaying)
        entry = parse_message(line)
        assert entry is not None
        match entry["type"]:
            case "turn_start" if replaying or entry["turn_index"] not in self.prompts:
                return translate.user_chunks(self.session.id, entry["prompt"])
            case "turn_end":
                return self._tell_end(entry, replaying=replaying)
            case "permission_request" if not replaying:
                return self.ask_pending()
            case "permission_resolved" if entry["request_id"] in self.asked:
                withdrawn = {"requestId": self.asked.pop(entry["request_id"])}
                return [jsonrpc.notification("$/cancel_request", withdrawn)]
            case "session_closed":
                return self._tell_closed(entry)
        return []

    def _tell_event(self, line: bytes, event: bytes, *, replaying: bool) -> list[bytes]:
        if (swapped := self._prefix.swap(event)) is not None:
            return [swapped]
        notice = translate.AgentMessage(event)
        if notice.method is None:
            self._endings[entries.turn_index_of(line)] = notice
            return []
        if notice.method == translate.UPDATE:
            self._prefix.learn(notice)
        elif replaying:  # only the conversation is told again
            return []
        return [notice.told_as(self.session.id)]

    def _tell_end(self, entry: Json, *, replaying: bool) -> list[bytes]:
        index = entry["turn_index"]
        ending = self._endings.pop(index, None)
        request = self.prompts.pop(index, None)
        if request is not None:
            self._answered(request)
            answer = _answer(request, entry, ending)
            if len(answer) > self._limit:
                answer = _answer(request, entry, None)
            return [answer]
        if replaying:
            return []
        ended = {"turnIndex": index, "stopReason": entry["stop_reason"]}
        return [translate.news(self.session.id, turnEnd=ended)]

    def _tell_closed(self, entry: Json) -> list[bytes]:
        told = [translate.news(self.session.id, closed=entry["reason"])]
        for request in (*self._loads, *self._closes):
            self._answered(request)
        told += [jsonrpc.error(load.id, RpcError.of(session_closed())) for load in self._loads]
        told += [jsonrpc.result(close.id, {}) for close in self._closes]
        self._loads.clear()
        self._closes.clear()
        return told

    def _end_replay(self) -> list[bytes]:
        self._replay_until = 0
        answers = [jsonrpc.result(request.id, self.settings()) for request in self._loads]
        for request in self._loads:
            self._answered(request)
        self._loads.clear()
        return answers + self.ask_pending()

    def _ask(self, pending: Json) -> list[bytes]:
        """Ask the client for a permission; not with what does not even fit when shortened."""
        request_id = self._next_id()
        params = {**pending["request"], "sessionId": self.session.id}
        message = jsonrpc.request(request_id, "session/request_permission", params)
        if asking := fit(message, self._limit):
            self.asked[pending["request_id"]] = request_id
        return asking


def _answer(request: jsonrpc.Request, end: Json, ending: translate.AgentMessage | None) -> bytes:
    """The answer to a prompt: the agent's own where it counts, else what the server knows.

    Args:
        end: the turn's ``turn_end``.
        ending: how the agent answered the prompt, if it did.
    """
    result = ending.part("result") if ending is not None else None
    error = ending.part("error") if ending is not None else None
    stop_reason = end["stop_reason"]
    if stop_reason != "error":
        if result is not None and (parse_message(result) or {}).get("stopReason") == stop_reason:
            return jsonrpc.raw_result(request.id, result)
        return jsonrpc.result(request.id, {"stopReason": stop_reason})
    told = end["error"]
    if error is not None and told["code"] == "agent_failed" and _is_error(parse_message(error)):
        return jsonrpc.raw_error(request.id, error)
    message = told["message"][:ERROR_LENGTH]  # it may be the agent's
    fields = {name: part for name, part in told.items() if name == "auth_methods"}
    failure = RpcError.of(Error(told["code"], message, retryable=told["retryable"], fields=fields))
    data = (parse_message(error) or {}).get("data") if error is not None else None
    if isinstance(data, dict):  # what the agent adds for its own clients
        failure.data = {**data, **failure.data}
    return jsonrpc.error(request.id, failure)


def _is_error(value: Json | None) -> bool:
    return (
        value is not None
        and isinstance(value.get("code"), int)
        and isinstance(value.get("message"), str)
    )
