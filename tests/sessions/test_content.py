"""ACP content blocks: which prompts are accepted."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import Error
from server.sessions.content import check_content


def test_text_becomes_one_text_block() -> None:
    assert check_content("hi") == [{"type": "text", "text": "hi"}]


def test_blocks_of_every_kind_are_returned_unchanged() -> None:
    blocks = [
        {"type": "text", "text": "hi", "annotations": {"audience": ["user"]}, "_meta": {"k": 1}},
        {"type": "image", "data": "aGk=", "mimeType": "image/png", "uri": "file:///a.png"},
        {"type": "audio", "data": "aGk=", "mimeType": "audio/wav"},
        {"type": "resource", "resource": {"uri": "file:///a", "text": "", "mimeType": "text/x"}},
        {"type": "resource", "resource": {"uri": "file:///a", "blob": "aGk="}},
        {"type": "resource_link", "uri": "file:///a", "name": "a", "size": 3},
    ]
    assert check_content(blocks) == blocks


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("", "empty"),
        ([], "empty"),
        ([{"type": "text", "text": ""}], "empty"),
        (["hi"], "[0]"),
        ([{"text": "hi"}], "type"),
        ([{"type": "video"}], "type"),
        ([{"type": "text"}], "text"),
        ([{"type": "text", "text": 1}], "text"),
        ([{"type": "text", "text": "hi"}, {"type": "image", "data": "a b"}], "[1]"),
        ([{"type": "image", "data": "aGk=", "mimeType": "text/html"}], "mimeType"),
        ([{"type": "image", "data": "aGk=\n", "mimeType": "image/png"}], "data"),
        ([{"type": "audio", "data": "", "mimeType": "audio/wav"}], "data"),
        ([{"type": "resource", "resource": {"uri": "u"}}], "one of text and blob"),
        ([{"type": "resource", "resource": {"text": "t"}}], "uri"),
        ([{"type": "resource_link", "uri": "u"}], "name"),
    ],
    ids=repr,
)
def test_invalid_block_is_refused_by_index_and_field(prompt: Any, named: str) -> None:
    with pytest.raises(Error) as caught:
        check_content(prompt)
    assert caught.value.code == "bad_request"
    assert named in caught.value.message
