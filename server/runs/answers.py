"""How a run ends: with an answer, or without one."""

from __future__ import annotations

import dataclasses
import re

from ..codec import dumps, loads
from ..errors import Error

MAX_OUTPUT_BYTES = 64 << 20
FENCE = re.compile(r"\A```[^\n`]*\n(.*?)\n?```\Z", re.DOTALL)


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
    ) -> None:
        super().__init__(code, message, retryable=retryable)
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
    """An answer's text as JSON: as it is where it is JSON, else as a string.

    A code fence round the whole of it is taken off.
    """
    stripped = text.strip()
    fence = FENCE.match(stripped)
    if fence is not None and "\n```" not in fence[1]:  # one fence, not the first of several
        text = fence[1]
        stripped = text.strip()
    try:
        loads(stripped)
    except ValueError:
        return dumps(text)
    return stripped.encode()
