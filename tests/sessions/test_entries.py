"""Log entries as bytes, and the raw ACP messages in them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sessions import entries

TS = 1767225600000
CHUNK = b'{"jsonrpc":"2.0","method":"session/update","params":{"text":"hello"}}'
ODD = (
    b' { "method" :\t"_vendor/thing",  "params":'
    rb'{"half":"\ud83d","big":123456789012345678901234567890} }  '
)


def entry(kind: str, seq: int, turn_index: int, fields: bytes) -> bytes:
    return entries.entry(kind, seq, TS, turn_index, fields)


@pytest.mark.parametrize("message", [CHUNK, ODD, b'{"a":",\\"event\\":{}"}', b'{"event":1}'])
def test_raw_message_of_an_event_is_read_back_unchanged(message: bytes) -> None:
    assert entries.event_of(entry("event", 1, 1, entries.event_fields(message))) == message


def test_other_entries_have_no_raw_message() -> None:
    fields = entries.turn_start_fields(b'[{"type":"text","text":",\\"event\\":1"}]', None, "new")
    assert entries.event_of(entry("turn_start", 1, 1, fields)) is None


def test_turn_index_is_read_from_the_head_of_an_entry() -> None:
    fields = entries.event_fields(b'{"turn_index":9}')
    assert entries.turn_index_of(entry("event", 1, 12, fields)) == 12


@given(st.text(), st.text())
def test_subagent_of_an_event_is_read_back(child: str, call: str) -> None:
    fields = entries.event_fields(CHUNK, {"session_id": child, "tool_call_id": call})
    line = entry("event", 1, 1, fields)
    assert entries.event_of(line) == CHUNK
    assert entries.is_of_subagent(line)
    assert entries.subagent_session_of(line) == child
    assert entries.turn_index_of(line) == 1
    message = json.dumps({"a": ',"subagent":{}', "subagent": {"session_id": "s"}}).encode()
    other = entry("event", 2, 1, entries.event_fields(message))
    assert not entries.is_of_subagent(other)
    assert entries.subagent_session_of(other) is None


@given(st.text(), st.text())
def test_arbitrary_client_text_is_escaped(client_id: str, request_id: str) -> None:
    start = entry("turn_start", 1, 1, entries.turn_start_fields(b"[]", client_id, "new"))
    assert json.loads(start)["id"] == client_id
    asked = entry("permission_request", 2, 1, entries.agent_request_fields(request_id, b"{}", 0))
    assert json.loads(asked)["request_id"] == request_id
