"""The parts of a run that need no server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.runs.answers import result_json
from server.runs.claude import claude_environ


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain words", "plain words"),
        (" spaces stay \n", " spaces stay \n"),
        ("", ""),
        ('{"a": [1, 2.50, null]}', {"a": [1, 2.5, None]}),
        ('\n {"a": 1} \n', {"a": 1}),
        ("42", 42),
        ("12345678901234567890123", 12345678901234567890123),
        ('"a string"', "a string"),
        ("null", None),
        ("NaN", "NaN"),
        ("{'a': 1}", "{'a': 1}"),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("  ```\n[1,\n2]\n```\n", [1, 2]),
        ("```python\n  x = 1\ny = 2\n```", "  x = 1\ny = 2"),
        ("```\n```", ""),
        ("Here:\n```json\n{}\n```", "Here:\n```json\n{}\n```"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
        ("```json {}```", "```json {}```"),
        ("cut \ud83d", "cut \ud83d"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_result_is_json_where_it_is_json_and_loses_its_fence(text: str, result: Any) -> None:
    assert json.loads(result_json(text)) == result


def test_retries_are_bounded_so_that_a_run_ends_in_time() -> None:
    environ = claude_environ({"HOME": "/h"}, 60)
    retries, timeout = int(environ["CLAUDE_CODE_MAX_RETRIES"]), int(environ["API_TIMEOUT_MS"])
    assert (retries + 1) * timeout < 60_000
    assert environ["HOME"] == "/h"
    own = {"CLAUDE_CODE_MAX_RETRIES": "9", "API_TIMEOUT_MS": "1000"}
    assert own.items() <= claude_environ(own, 60).items()
