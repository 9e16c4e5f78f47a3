"""How a run ends: with an answer, or without one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ..codec import dumps, loads
from ..errors import Error

MAX_OUTPUT_BYTES = 64 << 20
FENCE_OPENS = re.compile(
    r"(?:[ \t\r\n]*[\r\n])?"  # blank lines
    r"(?P<indent> {0,3})(?P<fence>`{3,}(?=[^`\r\n]*(?:[\r\n]|\Z))|~{3,})"
    r"[^\r\n]*(?:\r\n|\r|\n|\Z)"
)
FENCE_CLOSES = {
    mark: re.compile(rf"(?<=[\r\n]) {{0,3}}({mark}{{3,}})[ \t]*(?=[\r\n]|\Z)") for mark in "`~"
}
LAST_LINE_END = re.compile(r"(?:\r\n|\r|\n)\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """How a run ended well; ``result`` is JSON."""

    result: bytes
    stop_reason: str
    duration_ms: int = 0


class RunFailed(Error):  # noqa: N818
    """A run without an answer; over HTTP that is always 502, whatever the code.

    Attributes:
        stop_reason: ``error``, ``timeout`` or ``cancelled``.
        stderr: the end of what the program wrote there.
        duration_ms: of the run, without its time in the queue.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        stop_reason: str = "error",
        stderr: str = "",
        retryable: bool | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable, fields=fields)
        self.stop_reason = stop_reason
        self.stderr = stderr
        self.duration_ms = 0

    @property
    def status(self) -> int:
        return 502


def too_long() -> RunFailed:
    limit = MAX_OUTPUT_BYTES >> 20
    return RunFailed("agent_failed", f"the answer has more than {limit} MiB", retryable=False)


def result_json(text: str) -> bytes:
    """Encode an answer's text: unchanged if it is JSON, otherwise as a string.

    If the whole of it is one fenced code block, by the rules of CommonMark, its fence is removed.
    """
    inner = _in_fence(text)
    if inner is not None:
        text = inner
    stripped = text.strip()
    try:
        loads(stripped)
    except ValueError:
        return dumps(text)
    return stripped.encode()


def _in_fence(text: str) -> str | None:
    """The content of the fenced code block that *text* is; None if it is anything else."""
    opening = FENCE_OPENS.match(text)
    if opening is None:
        return None
    fence = opening["fence"]
    content, rest = text[opening.end() :], ""  # the end of the text closes a block, too
    for closing in FENCE_CLOSES[fence[0]].finditer(text, opening.end()):
        if len(closing[1]) >= len(fence):
            content, rest = text[opening.end() : closing.start()], text[closing.end() :]
            break
    if rest.strip(" \t\r\n"):
        return None
    if indent := len(opening["indent"]):
        content = re.sub(rf"(\A|(?<=[\r\n])) {{1,{indent}}}", "", content)
    return LAST_LINE_END.sub("", content)
