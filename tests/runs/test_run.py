"""The conversion of an agent's text into the JSON result of a run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from markdown_it import MarkdownIt

from server.runs.run import result_json


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
def test_text_that_is_json_stays_json_and_fence_is_removed(text: str, result: Any) -> None:
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
def test_fence_is_removed_if_commonmark_parses_one_code_block(text: str) -> None:
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
