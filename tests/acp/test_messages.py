"""The parts of ACP that do no I/O: JSON-RPC, parameters, translation and truncation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.acp import jsonrpc, translate
from server.acp.params import (
    InitializeParams,
    MetaOptions,
    NewSessionParams,
    SetConfigOptionParams,
    UrlOptions,
    read_params,
)
from server.acp.truncate import truncate_message
from server.errors import Error, ErrorCode

from ..support.harness import Json

IDS = st.one_of(
    st.none(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)


# JSON-RPC.


@settings(max_examples=50)
@given(IDS, st.one_of(st.none(), st.dictionaries(st.text(), JSON)), st.booleans())
def test_request_id_is_kept_as_written(request_id: Any, params: Json | None, spaced: bool) -> None:
    written = json.dumps(request_id, ensure_ascii=not spaced)
    space = " " if spaced else ""
    text = f'{{"id":{space}{written},"jsonrpc":"2.0","params":{json.dumps(params)},"method":"m"}}'
    message = jsonrpc.decode(text.encode("utf-8", "surrogatepass"))
    assert isinstance(message, jsonrpc.Request)
    assert message.id.decode() == written
    assert (message.method, message.params) == ("m", params)
    answer = jsonrpc.encode_result(message.id, {}).decode()
    assert answer == f'{{"jsonrpc":"2.0","id":{written},"result":{{}}}}'


@settings(max_examples=50)
@given(st.one_of(JSON.map(json.dumps).map(str.encode), st.binary()))
def test_arbitrary_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        jsonrpc.decode(data)
    except jsonrpc.JsonRpcError as error:
        told = json.loads(jsonrpc.encode_error(error.request_id, error))
    else:
        return
    assert told["id"] is None
    assert told["error"]["code"] in (jsonrpc.PARSE_ERROR, jsonrpc.INVALID_REQUEST)


def test_responses_and_notifications_are_distinguished() -> None:
    assert jsonrpc.decode(b'{"jsonrpc":"2.0","method":"m"}') == jsonrpc.Notification("m", None)
    assert jsonrpc.decode(b'{"jsonrpc":"2.0","id":3,"result":null}') == jsonrpc.Response(3, None)
    assert jsonrpc.decode(b'{"jsonrpc":"2.0","id":3,"error":{}}') == jsonrpc.Response(3, None)


def test_every_error_has_a_json_rpc_code() -> None:
    for code in ErrorCode:
        failure = jsonrpc.JsonRpcError.from_error(Error(code, "why", retry_after=3))
        assert failure.code in (-32602, -32603, -32000, -32002)
        assert failure.data["code"] == code
        assert failure.data["retryAfter"] == 3
    assert jsonrpc.JsonRpcError.from_error(Error("not_found", "")).code == -32002


# Parameters.


def test_parameters_are_checked() -> None:
    assert (
        read_params(InitializeParams, {"protocolVersion": 1, "new": {}}).session_options
        == MetaOptions()
    )
    meta = {"clawdforge": {"agent": "a", "maxMessageBytes": 1 << 20, "new": 1}, "other": 7}
    options = read_params(NewSessionParams, {"cwd": "/", "_meta": meta}).session_options
    assert options == MetaOptions(agent="a", max_message_bytes=1 << 20)
    assert options.with_defaults(UrlOptions(agent="b", model="c")) == MetaOptions(
        "a", "c", None, 1 << 20
    )
    bad: tuple[Any, ...] = (
        None,
        [],
        {"cwd": "/\0"},
        {"cwd": "/", "_meta": []},
        {"cwd": "/", "_meta": {"clawdforge": 7}},
    )
    for params in bad:
        with pytest.raises(jsonrpc.JsonRpcError) as failure:
            read_params(NewSessionParams, params)
        assert failure.value.code == jsonrpc.INVALID_PARAMS
    with pytest.raises(jsonrpc.JsonRpcError):
        read_params(
            SetConfigOptionParams,
            {"sessionId": "s", "configId": "c", "value": 7},
        )


# Translation.


def test_session_id_is_replaced_and_all_else_kept() -> None:
    update = b'{"sessionId":"kept" , "n":1.10}'
    raw = b'{"params" : {"a": 1e2,"sessionId":"theirs", "update":%b},"x":[ ]}' % update
    told = translate.AgentMessage(raw).with_session_id("ours")
    assert told == b'{"params":{"a":1e2,"sessionId":"ours","update":%b},"x":[ ]}' % update
    for untouched in (b'{"method":"m"}', b'{"method":"m","params":[1 ]}', b'{"params":{ "a":1}}'):
        assert translate.AgentMessage(untouched).with_session_id("ours") == untouched


def test_rewritten_message_equals_a_parsed_and_encoded_one() -> None:
    rewriter = translate.SessionIdRewriter("ours")
    params = b'{"sessionId":"th\\"eirs","update":{"n": 1}}'
    raw = b'{"jsonrpc":"2.0","method":"session/update","params":%b}' % params
    assert rewriter.rewrite(raw) is None
    rewriter.learn(translate.AgentMessage(raw))
    assert rewriter.rewrite(raw) == translate.AgentMessage(raw).with_session_id("ours")
    assert rewriter.rewrite(raw.replace(b"th", b"others")) is None


# Truncation.

LIMIT = 4096


def update(**fields: Any) -> bytes:
    params = {"sessionId": "s", "update": fields}
    return jsonrpc.encode_notification(translate.UPDATE, params)


@settings(max_examples=30)
@given(st.text(min_size=500, max_size=3000), st.sampled_from(["user", "agent"]))
def test_text_is_divided_into_chunks_with_the_same_text(text: str, role: str) -> None:
    content = {"type": "text", "text": text * 5, "annotations": {"priority": 1}}
    kind = f"{role}_message_chunk"
    message = update(sessionUpdate=kind, content=content, messageId="m")
    pieces = truncate_message(message, LIMIT, 7)
    assert all(len(piece) <= LIMIT for piece in pieces)
    read_back = [json.loads(piece)["params"]["update"] for piece in pieces]
    assert "".join(piece["content"].pop("text") for piece in read_back) == text * 5
    for piece in read_back:
        assert piece == {
            "sessionUpdate": kind,
            "content": {"type": "text", "annotations": {"priority": 1}},
            "messageId": "m",
        }


def test_message_within_the_limit_is_unchanged() -> None:
    message = update(sessionUpdate="plan", entries=[])
    assert truncate_message(message, len(message), 1) == [message]


@pytest.mark.parametrize(
    "fields",
    [
        {"rawInput": {"text": "x" * 9000}},
        {"rawOutput": list(range(9000))},
        {"rawOutput": {str(n): "x" * 50 for n in range(900)}},
        {"content": [{"type": "content", "content": {"type": "image", "data": "A" * 9000}}]},
    ],
)
def test_other_message_is_shortened_with_a_note(fields: Json) -> None:
    message = update(sessionUpdate="tool_call", toolCallId="t", title="x", **fields)
    (shortened,) = truncate_message(message, LIMIT, 7)
    assert len(shortened) <= LIMIT
    params = json.loads(shortened)["params"]
    assert params["_meta"] == {"clawdforge": {"shortened": True, "seq": 7}}
    assert params["update"]["toolCallId"] == "t"


def test_message_that_cannot_be_shortened_is_left_out() -> None:
    deep: Any = ["x" * 200] * 20
    for _ in range(3):
        deep = [deep] * 20
    assert truncate_message(update(sessionUpdate="tool_call", rawInput=deep), LIMIT, 7) == []
    assert truncate_message(jsonrpc.encode_result(b"1", "x" * 9000), LIMIT, 7) == []
