"""What the claude program's output means."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from ..codec import loads, parse_message
from .answers import Answer, RunFailed, result_json


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """What the program has written; ``stderr`` is the end of it.

    ``status`` is its exit status, negative for a signal, None where nobody knows.
    """

    status: int | None
    stdout: bytes
    stderr: str


def read_answer(output: Output) -> Answer:
    """The answer in the program's output.

    Raises:
        RunFailed: there is none.
    """
    message = _result_of(output.stdout)
    if message is None:
        raise RunFailed("agent_failed", _fate_of(output), stderr=output.stderr)
    result = message.get("result")
    # An API error says `"subtype":"success"`, and some errors have no `result`.
    if message.get("is_error") or output.status != 0 or not isinstance(result, str):
        raise _told_failure(message, output)
    return Answer(result_json(result), str(message.get("stop_reason") or "end_turn"))


def _result_of(stdout: bytes) -> dict[str, Any] | None:
    """The program's own last word: an object, alone, on the last line, or the last of a list."""
    text = stdout.strip()
    for candidate in (text, text.rpartition(b"\n")[2]):
        message = parse_message(candidate)
        if message is None and candidate.startswith(b"["):  # with `verbose` in its settings
            with contextlib.suppress(ValueError, IndexError):
                listed = [one for one in loads(candidate) if isinstance(one, dict)]
                message = [one for one in listed if one.get("type") == "result"][-1]
        if message is not None:
            return message
    return None


def _fate_of(output: Output) -> str:
    """Why there is no answer."""
    last = output.stderr.rpartition("\n")[2].strip()[:300]
    match output.status:
        case None:
            fate = "claude was lost"
        case 0:
            fate = "claude ended without an answer"
        case status if status < 0:
            fate = f"claude was killed by signal {-status}"
        case status:
            fate = f"claude ended with status {status}"
    if output.stdout.strip():
        fate += ", and what it wrote is none"
    return f"{fate}: {last}" if last else fate


def _told_failure(message: Mapping[str, Any], output: Output) -> RunFailed:
    """The failure that the program tells of."""
    told = message.get("result")
    if not isinstance(told, str) or not told:
        errors = message.get("errors")
        told = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    told = told or str(message.get("subtype") or "") or _fate_of(output)
    status = message.get("api_error_status")
    code, retryable = "agent_failed", None
    if status in (401, 403) or "/login" in told:
        code = "agent_unavailable"
    elif isinstance(status, int) and status < 500 and status not in (408, 409, 429):
        retryable = False
    return RunFailed(code, told[:2000], stderr=output.stderr, retryable=retryable)
