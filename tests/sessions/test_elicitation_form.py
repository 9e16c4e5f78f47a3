"""Forms: the content of an answer is checked against the agent's schema, which may be hostile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Error
from server.sessions.elicitation_form import MAX_PATTERN_LENGTH, check_form_content, is_form

TITLED = [{"const": "s", "title": "Small"}, {"const": "l", "title": "Large"}]
TEXT = {"type": "string"}
PICK = {"type": "array", "items": {"anyOf": TITLED}}


def problem_field(field: Any, value: Any) -> Any:
    """The name of the field that the error names; None if *value* is valid."""
    try:
        check_form_content({"type": "object", "properties": {"it": field}}, {"it": value})
    except Error as error:
        return error.fields["field"]
    return None


def test_error_names_the_field() -> None:
    with pytest.raises(Error) as wrong:
        check_form_content({"properties": {"city": TEXT}}, {"city": 1})
    assert (wrong.value.code, wrong.value.fields) == ("bad_request", {"field": "city"})
    assert "'city'" in wrong.value.message


@pytest.mark.parametrize(
    ("field", "valid", "invalid"),
    [
        (TEXT, ["", "x"], [1, True, None, ["x"], {}]),
        ({**TEXT, "minLength": 2, "maxLength": 3}, ["ab", "😀😀😀"], ["", "a", "abcd"]),
        ({**TEXT, "minLength": None, "maxLength": "3"}, ["", "abcd"], []),
        ({**TEXT, "pattern": "^[a-z]+$"}, ["abc"], ["Abc", "a1"]),
        ({**TEXT, "pattern": r"\u00e9"}, ["café"], ["cafe"]),
        ({**TEXT, "format": "email"}, ["a@b.no"], ["a", "a@", "@b", "a b@c.no", "a@b@c"]),
        (
            {**TEXT, "format": "uri"},
            ["https://a.no/b?c#d", "mailto:a@b.no", "urn:x:y"],
            ["a.no", "https://", "https://[::1", "http://a:b/", "x y:z", "https://a b"],
        ),
        ({**TEXT, "format": "date"}, ["2026-02-28"], ["2026-02-30", "20260228", "28.2.2026", ""]),
        (
            {**TEXT, "format": "date-time"},
            ["2026-02-28T12:00:00Z", "2026-02-28t12:00:00.123456789+02:00"],
            ["2026-02-28", "2026-02-28T12:00:00", "2026-02-28T25:00:00Z", "now"],
        ),
        ({**TEXT, "format": "unknown"}, ["anything"], []),
        ({**TEXT, "enum": ["a", "b"]}, ["a"], ["c", "", 1]),
        ({**TEXT, "oneOf": TITLED}, ["s"], ["Small", "m"]),
        ({"type": "integer", "minimum": 1, "maximum": 3}, [1, 3, 2.0], [0, 4, 1.5, "1", True]),
        ({"type": "number", "minimum": 0.5}, [0.5, 2], [0.4, "1", False, None]),
        ({"type": "boolean"}, [True, False], [0, "true", None]),
        (PICK, [[], ["s", "l"]], [["m"], "s", [1], None]),
        ({**PICK, "minItems": 1, "maxItems": 1}, [["s"]], [[], ["s", "l"]]),
        ({**PICK, "uniqueItems": True}, [["s"]], [["s", "s"]]),
        ({"type": "array", "items": {"type": "string", "enum": ["a"]}}, [["a"]], [["b"]]),
        ({"type": "array"}, [["anything"]], [[1]]),
        ({"type": "_color"}, ["red", 1, True, ["x"]], [{}, [1], None]),
        ({"enum": ["no type"]}, ["x"], [{}]),
        ({"type": ["string"]}, ["x"], [{}]),
    ],
)
def test_value_is_checked_against_its_field(
    field: Any, valid: list[Any], invalid: list[Any]
) -> None:
    assert [value for value in valid if problem_field(field, value)] == []
    assert [value for value in invalid if not problem_field(field, value)] == []


def test_required_field_must_be_present() -> None:
    schema = {"properties": {"a": TEXT}, "required": ["a", 7, "other"]}
    check_form_content(schema, {"a": "", "other": 1})
    with pytest.raises(Error) as missing:
        check_form_content(schema, {"a": ""})
    assert missing.value.fields == {"field": "other"}
    check_form_content({"properties": {"a": TEXT}, "required": None}, {})


def test_further_field_is_rejected_only_if_the_form_says_so() -> None:
    check_form_content({"properties": {}}, {"more": "x"})
    for schema, value in (
        ({"properties": {}, "additionalProperties": False}, "x"),
        ({"properties": {}}, {"nested": 1}),
    ):
        with pytest.raises(Error) as further:
            check_form_content(schema, {"more": value})
        assert further.value.fields == {"field": "more"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, True),
        ({"type": "object", "properties": {"a": TEXT}}, True),
        (None, False),
        ([], False),
        ({"type": "array"}, False),
        ({"properties": []}, False),
        ({"properties": {"a": "text"}}, False),
    ],
)
def test_form_is_an_object_with_properties(schema: Any, expected: bool) -> None:
    assert is_form(schema) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "^(a+)+$",
        "(a|a)*b",
        "^(a|aa)+$",
        "(.*)*x",
        "(a{1000}){1000}",
        "(?=a)b",
        r"(a)\1",
        "(",
        7,
        "a" * (MAX_PATTERN_LENGTH + 1),
    ],
)
def test_hostile_pattern_does_not_backtrack(pattern: Any) -> None:
    # A matcher that backtracks would exceed the test's time limit.
    problem_field({**TEXT, "pattern": pattern}, "a" * 200_000 + "!")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYWORDS = st.sampled_from(
    [
        *("minLength", "maxLength", "pattern", "format", "enum", "oneOf", "anyOf", "minimum"),
        *("maximum", "minItems", "maxItems", "items", "uniqueItems", "default", "title"),
    ]
)
TYPES = st.sampled_from(["string", "number", "integer", "boolean", "array", "object", "null"])


@given(TYPES, st.dictionaries(KEYWORDS, JSON, max_size=6), JSON)
def test_any_schema_and_value_give_an_outcome(kind: str, keywords: Any, value: Any) -> None:
    problem_field({"type": kind, **keywords}, value)
