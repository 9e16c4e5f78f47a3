"""The rooms behind ``/acp`` that do no I/O: JSON-RPC, messages made to fit, ACP's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.acp import jsonrpc, translate
from server.acp.params import Initialize, MetaWishes, NewSession, SetConfigOption, Wishes, read
from server.acp.truncate import fit
from server.errors import STATUS, Error

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
def test_a_request_is_read_and_its_id_kept_as_it_was_written(
    request_id: Any, params: Json | None, spaced: bool
) -> None:
    written = json.dumps(request_id, ensure_ascii=not spaced)
    space = " " if spaced else ""
    text = f'{{"id":{space}{written},"jsonrpc":"2.0","params":{json.dumps(params)},"method":"m"}}'
    message = jsonrpc.parse(text.encode("utf-8", "surrogatepass"))
    assert isinstance(message, jsonrpc.Request)
    assert message.id.decode() == written
    assert (message.method, message.params) == ("m", params)
    answer = jsonrpc.result(message.id, {}).decode()
    assert answer == f'{{"jsonrpc":"2.0","id":{written},"result":{{}}}}'


@settings(max_examples=50)
@given(st.one_of(JSON.map(json.dumps).map(str.encode), st.binary()))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        jsonrpc.parse(data)
    except jsonrpc.RpcError as error:
        told = json.loads(jsonrpc.error(error.request_id, error))
    else:
        return
    assert told["id"] is None
    assert told["error"]["code"] in (jsonrpc.PARSE_ERROR, jsonrpc.INVALID_REQUEST)


def test_answers_and_notifications_are_told_apart() -> None:
    assert jsonrpc.parse(b'{"jsonrpc":"2.0","method":"m"}') == jsonrpc.Notification("m", None)
    assert jsonrpc.parse(b'{"jsonrpc":"2.0","id":3,"result":null}') == jsonrpc.Response(3, None)
    assert jsonrpc.parse(b'{"jsonrpc":"2.0","id":3,"error":{}}') == jsonrpc.Response(3, None)


def test_every_error_of_ours_has_a_code_of_json_rpcs() -> None:
    for code in STATUS:
        failure = jsonrpc.RpcError.of(Error(code, "why", retry_after=3))
        assert failure.code in (-32602, -32603, -32000, -32002)
        assert failure.data["code"] == code
        assert failure.data["retryAfter"] == 3
    assert jsonrpc.RpcError.of(Error("not_found", "")).code == -32002


# Parameters.


def test_parameters_are_checked() -> None:
    assert read(Initialize, {"protocolVersion": 1, "new": {}}).wishes == MetaWishes()
    meta = {"clawdforge": {"agent": "a", "maxMessageBytes": 1 << 20, "new": 1}, "other": 7}
    wishes = read(NewSession, {"cwd": "/", "_meta": meta}).wishes
    assert wishes == MetaWishes(agent="a", max_message_bytes=1 << 20)
    assert wishes.over(Wishes(agent="b", model="c")) == MetaWishes("a", "c", None, 1 << 20)
    bad: tuple[Any, ...] = (
        None,
        [],
        {"cwd": "/\0"},
        {"cwd": "/", "_meta": []},
        {"cwd": "/", "_meta": {"clawdforge": 7}},
    )
    for params in bad:
        with pytest.raises(jsonrpc.RpcError) as failure:
            read(NewSession, params)
        assert failure.value.code == jsonrpc.INVALID_PARAMS
    with pytest.raises(jsonrpc.RpcError):
        read(SetConfigOption, {"sessionId": "s", "configId": "c", "type": "boolean", "value": True})


# What an agent wrote.


def test_only_the_session_id_is_changed() -> None:
    update = b'{"sessionId":"kept" , "n":1.10}'
    raw = b'{"params" : {"a": 1e2,"sessionId":"theirs", "update":%b},"x":[ ]}' % update
    told = translate.AgentMessage(raw).told_as("ours")
    assert told == b'{"params":{"a":1e2,"sessionId":"ours","update":%b},"x":[ ]}' % update
    for untouched in (b'{"method":"m"}', b'{"method":"m","params":[1 ]}', b'{"params":{ "a":1}}'):
        assert translate.AgentMessage(untouched).told_as("ours") == untouched


def test_the_short_way_gives_what_the_long_way_gives() -> None:
    prefix = translate.SessionIdRewriter("ours")
    params = b'{"sessionId":"th\\"eirs","update":{"n": 1}}'
    raw = b'{"jsonrpc":"2.0","method":"session/update","params":%b}' % params
    assert prefix.swap(raw) is None
    prefix.learn(translate.AgentMessage(raw))
    assert prefix.swap(raw) == translate.AgentMessage(raw).told_as("ours")
    assert prefix.swap(raw.replace(b"th", b"others")) is None


# What does not fit.

LIMIT = 4096


def update(**fields: Any) -> bytes:
    params = {"sessionId": "s", "update": fields}
    return jsonrpc.notification(translate.UPDATE, params)


@settings(max_examples=30)
@given(st.text(min_size=500, max_size=3000), st.sampled_from(["user", "agent"]))
def test_a_text_is_cut_into_chunks_that_say_the_same(text: str, role: str) -> None:
    content = {"type": "text", "text": text * 5, "annotations": {"priority": 1}}
    kind = f"{role}_message_chunk"
    message = update(sessionUpdate=kind, content=content, messageId="m")
    pieces = fit(message, LIMIT, 7)
    assert all(len(piece) <= LIMIT for piece in pieces)
    read_back = [json.loads(piece)["params"]["update"] for piece in pieces]
    assert "".join(piece["content"].pop("text") for piece in read_back) == text * 5
    for piece in read_back:
        assert piece == {
            "sessionUpdate": kind,
            "content": {"type": "text", "annotations": {"priority": 1}},
            "messageId": "m",
        }


def test_what_fits_is_left_alone() -> None:
    message = update(sessionUpdate="plan", entries=[])
    assert fit(message, len(message), 1) == [message]


@pytest.mark.parametrize(
    "fields",
    [
        {"rawInput": {"text": "x" * 9000}},
        {"rawOutput": list(range(9000))},
        {"rawOutput": {str(n): "x" * 50 for n in range(900)}},
        {"content": [{"type": "content", "content": {"type": "image", "data": "A" * 9000}}]},
    ],
)
def test_anything_else_is_shortened_and_says_so(fields: Json) -> None:
    message = update(sessionUpdate="tool_call", toolCallId="t", title="x", **fields)
    (shortened,) = fit(message, LIMIT, 7)
    assert len(shortened) <= LIMIT
    params = json.loads(shortened)["params"]
    assert params["_meta"] == {"clawdforge": {"shortened": True, "seq": 7}}
    assert params["update"]["toolCallId"] == "t"


def test_what_cannot_be_shortened_is_none() -> None:
    deep: Any = ["x" * 200] * 20
    for _ in range(3):
        deep = [deep] * 20
    assert fit(update(sessionUpdate="tool_call", rawInput=deep), LIMIT, 7) == []
    assert fit(jsonrpc.result(b"1", "x" * 9000), LIMIT, 7) == []
