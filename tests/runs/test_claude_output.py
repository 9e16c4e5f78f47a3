"""The reader of the claude program's output, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.runs.claude_output import Output, find_result, read_result
from server.runs.run import RunError


def result(text: str, **more: Any) -> str:
    return json.dumps({"type": "result", "is_error": False, "result": text, **more})


RESULT = result("found", usage={"input_tokens": 1})
OUTPUTS = {
    "alone": RESULT,
    "other lines before and after": f"hook: {{begun}}\n{RESULT}\nhook: done\n",
    "other text on its line": f'[hook "pre"] {RESULT} {{"hook": 1}} bye',
    "printed over several lines": json.dumps(json.loads(RESULT), indent=2) + "\nbye",
    "one of a list": f'[{{"type":"system"}},{RESULT}]',
    "one of a list, and text": f'[{{"type":"system"}},{RESULT}]\n[1, 2]',
    "the last of several": f"{result('first')}{result('second')}\n{RESULT}",
    "after one in a string": json.dumps({"type": "system", "text": result("quoted")}) + RESULT,
    "before one in a string": RESULT + json.dumps({"type": "system", "text": result("quoted")}),
    "before one within an object": RESULT + '{"type":"hook","output":' + result("inner") + "}",
    "after half an object": '{"type":"result","res\n' + RESULT,
    "after a mark": "\ufeff" + RESULT,
    "between zeros": f"\0{RESULT}\0",
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_result_is_found_between_other_output(output: str) -> None:
    assert read_result(Output(0, output.encode(), "")).result == b'"found"'


@pytest.mark.parametrize("status", [-11, 137, None])
def test_result_is_valid_if_program_was_killed_after_printing_it(status: int | None) -> None:
    assert read_result(Output(status, RESULT.encode(), "")).result == b'"found"'


def test_result_is_found_between_invalid_utf8() -> None:
    output = b'\xff{"\xfe\n' + RESULT.encode() + b"\n\x80"
    assert read_result(Output(0, output, "")).result == b'"found"'


@pytest.mark.parametrize("noise", ['{"a":' * 20_000, '{"' * 50_000, "{" * 100_000])
def test_search_for_result_ends_in_output_that_resembles_json(noise: str) -> None:
    assert find_result((noise + '"result"').encode()) is None


FAILURES = [
    ({"api_error_status": 400}, "no", False),
    ({"api_error_status": 401}, "no", False),
    ({"api_error_status": 402}, "no", False),
    ({"api_error_status": 403}, "no", False),
    ({"api_error_status": 404}, "no", False),
    ({"api_error_status": 413}, "no", False),
    ({"api_error_status": 408}, "no", True),
    ({"api_error_status": 429}, "no", True),
    ({"api_error_status": 500}, "no", True),
    ({"api_error_status": 529}, "no", True),
    ({}, 'API Error: 400 {"type":"error"}', False),
    ({}, "API Error: 529 Overloaded", True),
    ({}, "API Error (Request timed out.)", True),
    ({}, "Invalid API key · Please run /login", False),
    ({}, "Credit balance is too low", False),
    ({}, "Prompt is too long", False),
    ({}, "Connection error.", True),
]


@pytest.mark.parametrize(("fields", "text", "retryable"), FAILURES)
def test_retryable_of_api_error(fields: dict[str, Any], text: str, retryable: bool) -> None:
    output = Output(1, result(text, **{"is_error": True, **fields}).encode(), "")
    with pytest.raises(RunError) as failed:
        read_result(output)
    assert failed.value.retryable is retryable


@pytest.mark.parametrize(
    ("status", "stderr", "retryable"),
    [
        (1, "error: unknown option '--effort'", False),
        (1, "Invalid API key", False),
        (127, "claude: No such file or directory", False),
        (-9, "", True),
        (0, "", True),
    ],
)
def test_retryable_of_failure_without_result(status: int, stderr: str, retryable: bool) -> None:
    with pytest.raises(RunError) as failed:
        read_result(Output(status, b"", stderr))
    assert failed.value.retryable is retryable
