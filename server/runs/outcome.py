"""What the claude program's output means."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from ..agents.failures import login_required
from ..agents.program_output import last_words, redact
from ..codec import parse_message
from .answers import Answer, RunFailed, result_json

CLAUDE = "claude"
MAX_FAILED_READS = 10_000
"""Bounds the search for an answer in output that only looks like JSON."""
OBJECT = re.compile(r'\{[ \t\r\n]*"')
MAY_PASS = (408, 409, 429)
"""The statuses below 500 with which the API refuses for the moment."""
API_ERROR = re.compile(r"\AAPI Error:? \(?(\d{3})\b")
LOGIN = re.compile(r"/login|invalid api key|authentication_error|oauth token", re.IGNORECASE)
HOPELESS = re.compile(
    r"credit balance is too low|prompt is too long|issue with the selected model"
    r"|\b(?:invalid_request|not_found|permission|billing|request_too_large)_error\b",
    re.IGNORECASE,
)
"""What the program says, if it tells no status, of a request that fails every time."""
BAD_ARGUMENT = re.compile(r"^error: (?:unknown|invalid|option|missing)", re.MULTILINE)
NOT_STARTED = (126, 127)
"""The exit statuses of a program that could not be started."""


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """What the program has written; ``stderr`` is the end of it.

    ``status`` is its exit status, negative for a signal, None where nobody knows.
    """

    status: int | None
    stdout: bytes
    stderr: str


def read_answer(output: Output) -> Answer:
    """The answer in the program's output. Blocking: it may have to read megabytes of JSON.

    Raises:
        RunFailed: there is none.
    """
    message = find_result(output.stdout)
    if message is None:
        raise _untold_failure(output)
    result = message.get("result")
    # An API error says `"subtype":"success"`, and some errors have no `result`.
    if message.get("is_error") or _has_failed(output.status) or not isinstance(result, str):
        raise _told_failure(message, output)
    return Answer(result_json(result), str(message.get("stop_reason") or "end_turn"))


def _has_failed(status: int | None) -> bool:
    """Whether a program that gave an answer says by its exit status that it is none.

    One that was killed after its answer, or by its own clean-up, says nothing of the kind: the
    answer has been given, and paid for.
    """
    return status is not None and 0 < status <= 128


def find_result(stdout: bytes) -> dict[str, Any] | None:
    """The last JSON object of type ``result`` in the program's output, whatever surrounds it.

    Hooks and plugins write on the same stdout, before, after and on the same line. An object
    within another object is not looked at: it is not the program's own.
    """
    message = parse_message(stdout)  # as a rule there is nothing else
    if message is not None:
        return message if message.get("type") == "result" else None
    if b"result" not in stdout:
        return None
    text = stdout.decode(errors="replace")
    decoder = json.JSONDecoder()
    found = None
    failed_reads = position = 0
    while (start := OBJECT.search(text, position)) is not None:
        try:
            value, position = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            failed_reads += 1
            if failed_reads > MAX_FAILED_READS:
                break
            position = start.start() + 1
        else:
            if value.get("type") == "result":
                found = value
    return found


def _fate_of(output: Output) -> str:
    """Why there is no answer."""
    last = last_words([output.stdout, output.stderr.encode()])
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


def _untold_failure(output: Output) -> RunFailed:
    """The failure of a program that has not told what failed."""
    code, retryable = "agent_failed", None
    if output.status in NOT_STARTED:
        code = "agent_unavailable"
    elif LOGIN.search(output.stderr):
        return _login_required(last_words([output.stderr.encode()]), output)
    elif BAD_ARGUMENT.search(output.stderr):
        retryable = False
    return RunFailed(code, _fate_of(output), stderr=output.stderr, retryable=retryable)


def _told_failure(message: Mapping[str, Any], output: Output) -> RunFailed:
    """The failure that the program tells of."""
    told = message.get("result")
    if not isinstance(told, str) or not told:
        errors = message.get("errors")
        told = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    told = told or str(message.get("subtype") or "") or _fate_of(output)
    told = redact(told[:2000])
    code, retryable = _kind_of(message, told)
    if code == "login_required":
        return _login_required(told, output)
    return RunFailed(code, told, stderr=output.stderr, retryable=retryable)


def _login_required(said: str, output: Output) -> RunFailed:
    error = login_required(CLAUDE, said)
    return RunFailed(error.code, error.message, stderr=output.stderr, fields=error.fields)


def _kind_of(message: Mapping[str, Any], told: str) -> tuple[str, bool | None]:
    """The code of a failure, and whether asking again can help (None: as usual for the code)."""
    if not message.get("is_error"):  # an answer, and then a bad exit
        return "agent_failed", None
    status = message.get("api_error_status")
    if not isinstance(status, int) and (named := API_ERROR.match(told)):
        status = int(named[1])
    if status in (401, 403) or LOGIN.search(told):
        return "login_required", None
    if isinstance(status, int):
        return "agent_failed", None if status >= 500 or status in MAY_PASS else False
    return "agent_failed", False if HOPELESS.search(told) else None
