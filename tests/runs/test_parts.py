"""The parts of a run that need no server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from markdown_it import MarkdownIt

from server.runs.answers import RunFailed, result_json
from server.runs.claude import claude_environ
from server.runs.outcome import Output, find_result, read_answer


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


FENCED = [
    "```\nx\n```",
    "~~~\nx\n~~~",
    "   ```json\n   {}\n  ```  \n\n",
    "    ```\n    x\n    ```",
    "\t```\nx\n```",
    "\n \n```\nx\n```\n\n",
    "`````\n```\nx\n```\n`````",
    "```\nx\n``````",
    "````\nx\n```",
    "```\nx",
    "~~~ a ` b ~\nx\n~~~~\t",
    "~~~\nx\n```",
    "``` a ` b\nx\n```",
    "```\nx\n``` y",
    "```\nx\n    ```\n",
    "```\nx\n```\ny",
    "```\nx\n```\n```\ny\n```",
    "```md\n```js\nx\n```\n```",
    "  ```\nx\n   y\n z\n```",
    "```\n\nx\n\n```",
    "``\nx\n``",
    "```json\r\n{}\r\n```\r\n",
    "```\r\nx\r\ny\r\n```",
    "> ```\n> x\n> ```",
    "- ```\n  x\n  ```",
    "x\n```\ny\n```",
]


@pytest.mark.parametrize("text", FENCED)
def test_a_fence_is_removed_if_commonmark_sees_one_block(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(text)
    expected = text
    if [token.type for token in tokens] == ["fence"]:
        expected = tokens[0].content.removesuffix("\n")
        if "\r" in text:
            expected = expected.replace("\n", "\r\n")
    if expected.strip() == "{}":
        assert json.loads(result_json(text)) == {}
    else:
        assert json.loads(result_json(text)) == expected


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
def test_an_answer_is_found_whatever_surrounds_it(output: str) -> None:
    assert read_answer(Output(0, output.encode(), "")).result == b'"found"'


@pytest.mark.parametrize("status", [-11, 137, None])
def test_an_answer_counts_although_the_program_was_killed_after_it(status: int | None) -> None:
    assert read_answer(Output(status, RESULT.encode(), "")).result == b'"found"'


def test_an_answer_is_found_between_bytes_that_are_not_text() -> None:
    output = b'\xff{"\xfe\n' + RESULT.encode() + b"\n\x80"
    assert read_answer(Output(0, output, "")).result == b'"found"'


@pytest.mark.parametrize("noise", ['{"a":' * 20_000, '{"' * 50_000, "{" * 100_000])
def test_output_that_only_looks_like_json_is_given_up(noise: str) -> None:
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
def test_a_failure_is_retryable_if_asking_again_can_help(
    fields: dict[str, Any], text: str, retryable: bool
) -> None:
    output = Output(1, result(text, **{"is_error": True, **fields}).encode(), "")
    with pytest.raises(RunFailed) as failed:
        read_answer(output)
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
def test_so_is_one_without_an_answer(status: int, stderr: str, retryable: bool) -> None:
    with pytest.raises(RunFailed) as failed:
        read_answer(Output(status, b"", stderr))
    assert failed.value.retryable is retryable


def test_one_request_to_the_model_may_take_all_of_the_time() -> None:
    environ = claude_environ({"HOME": "/h"}, 1.5)
    assert environ["API_TIMEOUT_MS"] == "1500"
    assert int(environ["CLAUDE_CODE_MAX_RETRIES"]) > 0
    assert environ["HOME"] == "/h"
    own = {"CLAUDE_CODE_MAX_RETRIES": "9", "API_TIMEOUT_MS": "1000"}
    assert own.items() <= claude_environ(own, 60).items()
    assert claude_environ({"API_TIMEOUT_MS": "99000"}, 60)["API_TIMEOUT_MS"] == "60000"
