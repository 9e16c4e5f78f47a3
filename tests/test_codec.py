"""JSON encoding and decoding, and the messages of agents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.codec import dumps, loads, parse_message, parse_rpc

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=5), st.booleans())
def test_object_in_any_formatting_is_a_message(value: Any, escaped: bool) -> None:
    line = json.dumps(value, ensure_ascii=escaped, indent=1).replace("\n", " ").encode()
    assert parse_message(line) == value


@given(st.binary(max_size=60))
def test_any_bytes_can_be_parsed_without_an_exception(line: bytes) -> None:
    message = parse_message(line)
    assert message is None or isinstance(message, dict)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"null",
        b"1",
        b'"text"',
        b'[{"jsonrpc":"2.0"}]',
        b'{"half":',
        b'{"a":1} {"b":2}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\xbd"}',  # half a pair as bytes is not UTF-8
        b'\xef\xbb\xbf{"a":1}',
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":"tab\there"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_line_that_is_not_one_object_is_not_a_message(line: bytes) -> None:
    assert parse_message(line) is None


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (rb'{"text":"\ud83d"}', {"text": "\ud83d"}),
        (rb'{"text":"\ude00 and \ud83d\ude00"}', {"text": "\ude00 and 😀"}),
        (b' \t{ "a" : [ 1 , 2 ] }\r', {"a": [1, 2]}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (rb'{"\u0061":"\u0000"}', {"a": "\0"}),
    ],
)
def test_unusual_json_is_accepted(line: bytes, value: Any) -> None:
    assert parse_message(line) == value


@pytest.mark.parametrize(
    ("line", "is_message"),
    [
        (b'{"jsonrpc":"2.0","method":"m"}', True),
        (b'{"jsonrpc":"2.0","method":"m","id":"a"}', True),
        (b'{"jsonrpc":"2.0","id":1,"result":null}', True),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":""}}', True),
        (b'{"jsonrpc":"1.0","jsonrpc":"2.0","id":1.0,"result":{}}', True),
        (b'{"level":30,"id":1}', False),
        (b'{"id":1,"result":{}}', False),
        (b'{"method":"m"}', False),
        (b'{"jsonrpc":2.0,"method":"m"}', False),
        (b'{"jsonrpc":"2.0","method":null,"id":1,"result":{}}', False),
        (b'{"jsonrpc":"2.0","result":{}}', False),
        (b'{"jsonrpc":"2.0","id":1}', False),
        (b'{"jsonrpc":"2.0","id":true,"result":{}}', False),
        (b'{"jsonrpc":"2.0","id":[1],"result":{}}', False),
        (b'{"jsonrpc":"2.0","method":"m","id":{}}', False),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":null}', False),
        (b'[{"jsonrpc":"2.0","method":"m"}]', False),
    ],
)
def test_json_rpc_message_is_a_call_or_a_response(line: bytes, is_message: bool) -> None:
    assert (parse_rpc(line) is not None) is is_message


@pytest.mark.parametrize("number", [b"123456789012345678901234567890", b"1e400", b"0.1e-9"])
def test_number_of_any_size_is_accepted(number: bytes) -> None:
    assert parse_message(b'{"jsonrpc":"2.0","a":%b}' % number) is not None


@given(JSON)
def test_encoded_value_is_one_line_and_decodes_to_itself(value: Any) -> None:
    data = dumps(value)
    assert b"\n" not in data
    assert loads(data) == value


def test_unpaired_surrogate_is_preserved() -> None:
    assert dumps({"text": "\ud83d"}) == rb'{"text":"\ud83d"}'


def test_infinity_is_encoded_as_null_whatever_is_beside_it() -> None:
    infinity = float("inf")
    assert dumps({"n": infinity}) == b'{"n":null}'
    assert dumps({"n": [infinity, -infinity], "s": "\ud83d"}) == rb'{"n":[null,null],"s":"\ud83d"}'


def test_number_beyond_64_bits_is_encoded() -> None:
    assert dumps({"id": 2**70}) == b'{"id":%d}' % 2**70


def test_value_that_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError):
        dumps({"a": object()})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"NaN", b'{"a":1}x'])
def test_loads_is_strict(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(data)
