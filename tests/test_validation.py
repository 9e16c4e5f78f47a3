"""Validation errors as sentences."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from server.acp import params
from server.acp.jsonrpc import JsonRpcError
from server.errors import Error
from server.sessions.content import check_content
from server.validation import form, in_words
from server.web.request_values import from_json
from server.web.resources import modules
from server.ws import protocol


class Small(msgspec.Struct, forbid_unknown_fields=True):
    """Every kind of constraint."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=3)]
    path: Annotated[str, msgspec.Meta(pattern=form("^/", "an absolute path"))] = "/"
    other: Annotated[str, msgspec.Meta(pattern="^[x]*$")] = ""
    items: Annotated[list[int], msgspec.Meta(max_length=2)] = []
    share: Annotated[float, msgspec.Meta(gt=0, le=1.5)] | None = None
    mode: Literal["a", "b"] | None = None
    more: dict[str, int] = {}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "name: the field is missing"),
        ({"name": 1}, "name: must be text, not a whole number"),
        ({"name": ""}, "name: must not be empty"),
        ({"name": "abcd"}, "name: must have at most 3 characters"),
        ({"name": "a", "path": "x"}, "path: must be an absolute path"),
        ({"name": "a", "other": "y"}, "other: must be text of another form"),
        ({"name": "a", "items": [1, 2, 3]}, "items: must have at most 2 elements"),
        ({"name": "a", "items": ["x"]}, "items[0]: must be a whole number, not text"),
        ({"name": "a", "share": 0}, "share: must be more than 0"),
        ({"name": "a", "share": 2}, "share: must be at most 1.5"),
        ({"name": "a", "share": "x"}, "share: must be a number or null, not text"),
        ({"name": "a", "mode": "c"}, "mode: 'c' is not one of the values that are known"),
        ({"name": "a", "more": {"k": []}}, "more[…]: must be a whole number, not a list"),
        ({"name": "a", "zz": 1}, "zz: the field is not known"),
        ([], "must be an object, not a list"),
    ],
)
def test_validation_error_is_described_in_words(value: Any, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert(value, Small)
    assert in_words(refused.value) == words


def test_message_of_another_error_is_unchanged() -> None:
    assert in_words(ValueError("one of text and blob is needed")) == (
        "one of text and blob is needed"
    )


def test_long_value_is_not_repeated() -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert({"name": "a", "mode": "x" * 10_000}, Small)
    assert len(in_words(refused.value)) < 300


WRONG: tuple[Any, ...] = (
    None,
    1,
    1.5,
    True,
    "",
    "-x\n",
    "\0",
    [],
    [1],
    {},
    {"x": []},
    "x" * 70_000,
)
INTERNAL = ("regex", "`", "$.", "Expected", "Invalid value")


def refusals() -> list[str]:
    """The error of every wrong value of every field that a client may send."""
    told: list[str] = []
    readers: list[tuple[Any, Any]] = [(params, params.read_params)]
    readers += [(module, lambda struct, value: from_json(value, struct)) for module in modules()]
    for module, read in readers:
        for shape in vars(module).values():
            if not (isinstance(shape, type) and issubclass(shape, msgspec.Struct)):
                continue
            if not shape.__module__.startswith(("server.web.", "server.acp.")):
                continue  # a record of another package, which no client sends
            for field in shape.__struct_encode_fields__:
                for value in WRONG:
                    try:
                        read(shape, {field: value})
                    except (Error, JsonRpcError) as error:
                        told.append(error.message)
    for command in protocol.Command.__args__:
        kind = command.__struct_config__.tag
        for field in command.__struct_encode_fields__:
            for value in WRONG:
                try:
                    protocol.parse_command(msgspec.json.encode({"type": kind, field: value}))
                except Error as error:
                    told.append(error.message)
    blocks: list[Any] = [{"type": "image"}, {"type": "image", "data": "-", "mimeType": "x"}, {}, 1]
    blocks += [{"type": "resource", "resource": {"uri": "x"}}, {"type": "x"}]
    for block in blocks:
        with pytest.raises(Error) as refused:
            check_content([block])
        told.append(refused.value.message)
    return told


def test_messages_contain_no_regular_expression() -> None:
    told = refusals()
    assert len(told) > 200
    assert not [one for one in told if any(word in one for word in INTERNAL)]


@pytest.mark.parametrize(
    ("cwd", "is_absolute"),
    [
        ("/their/project", True),
        ("/", True),
        ("C:\\Users\\me", True),
        ("d:/work", True),
        ("\\\\server\\share", True),
        ("\\\\?\\C:\\x", True),
        ("home/me", False),
        ("C:", False),
        ("C:x", False),
        ("", False),
        ("~", False),
        ("/a\0b", False),
    ],
)
def test_absolute_path_of_any_system_is_a_valid_cwd(cwd: str, is_absolute: bool) -> None:
    if is_absolute:
        assert params.read_params(params.NewSessionParams, {"cwd": cwd}).cwd == cwd
    else:
        with pytest.raises(JsonRpcError):
            params.read_params(params.NewSessionParams, {"cwd": cwd})
