"""The JSON Schema that a client requires of a run's result."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs

from ..codec import dumps, loads
from ..errors import bad_request

MAX_SCHEMA_BYTES = 64 << 10
"""The schema is an argument of the claude program; Linux allows 128 KiB for one."""
MAX_PROBLEM_CHARACTERS = 500
_QUOTED_VALUE = re.compile(r"^.{200,}?(?= (?:is|has|does|was)\b)", re.DOTALL)


class ResultSchema:
    """A JSON Schema, and the texts that make an agent answer with a value that is valid against it.

    Remote references are not loaded, and patterns take linear time.

    Raises:
        Error: ``bad_request``; it is no JSON Schema, or too large.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self.text = dumps(schema).decode()
        if len(self.text.encode()) > MAX_SCHEMA_BYTES:
            raise bad_request(f"schema: at most {MAX_SCHEMA_BYTES >> 10} KiB of JSON")
        try:
            self._validator = jsonschema_rs.validator_for(
                schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
            )
        except (jsonschema_rs.ValidationError, ValueError) as error:
            message = getattr(error, "message", None) or str(error).partition("\n")[0]
            raise bad_request(f"schema: {_at_most(message)}") from None

    def problem(self, result: bytes) -> str | None:
        """Describe why *result*, JSON, is not valid; None if it is."""
        value = loads(result)
        for error in self._validator.iter_errors(value):
            place = "".join(f"[{part!r}]" for part in error.instance_path)
            return _at_most(f"result{place}: {_QUOTED_VALUE.sub('the value', error.message)}")
        return None

    @property
    def instruction(self) -> str:
        """The text that precedes the prompt of an agent without a schema of its own."""
        return (
            "Answer with JSON only, without explanations and without a code fence. The JSON must be"
            f" valid against this JSON Schema:\n{self.text}\n\n"
        )

    def correction(self, problem: str) -> str:
        """The prompt after an answer with a *problem*."""
        return (
            f"That answer is not valid against the JSON Schema: {problem}\n"
            "Answer again, with the corrected JSON only."
        )


def _at_most(text: str) -> str:
    return text if len(text) <= MAX_PROBLEM_CHARACTERS else f"{text[:MAX_PROBLEM_CHARACTERS]}…"
