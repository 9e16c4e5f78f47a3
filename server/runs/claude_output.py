"""Reads the output of the claude program: its result, or the reason why there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..agents.failures import login_required
from ..agents.program_output import last_output, redact
from ..agents.usage import Usage, usage_of_claude
from ..codec import dumps, parse_message
from ..errors import ErrorCode
from .result_schema import ResultSchema
from .run import RunError, RunResult, result_json, schema_failed

CLAUDE = "claude"
"""The name of the program, and of the agent."""
MAX_FAILED_READS = 10_000
"""Limits the search for a result in output that resembles JSON."""
TRANSIENT_STATUSES = (408, 409, 429)
"""HTTP statuses below 500 after which the same API request may succeed."""
SCHEMA_SUBTYPES = ("error_max_structured_output_retries",)
NOT_STARTED = (126, 127)
"""Exit statuses of a program that could not be started."""

_OBJECT_START = re.compile(r'\{[ \t\r\n]*"')
_API_ERROR = re.compile(r"\AAPI Error:? \(?(\d{3})\b")
_LOGIN_ERROR = re.compile(r"/login|invalid api key|authentication_error|oauth token", re.IGNORECASE)
_PERMANENT_ERROR = re.compile(
    r"credit balance is too low|prompt is too long|issue with the selected model"
    r"|\b(?:invalid_request|not_found|permission|billing|request_too_large)_error\b",
    re.IGNORECASE,
)
"""Messages without a status about requests that never succeed."""
_BAD_ARGUMENT = re.compile(r"^error: (?:unknown|invalid|option|missing)", re.MULTILINE)


class Output(msgspec.Struct, frozen=True):
    """The output of a program that has ended.

    Attributes:
        status: the exit status; negative for a signal; None if it is unknown, because the
            program's supervisor was killed.
        stderr: the end of stderr.
    """

    status: int | None
    stdout: bytes
    stderr: str


def read_result(
    output: Output,
    schema: ResultSchema | None = None,
    note_usage: Callable[[Usage], None] = lambda _: None,
) -> RunResult:
    """Read the result from the program's output. Blocking: the JSON may have megabytes.

    Args:
        schema: the one that the program was given.
        note_usage: called with what the program has used, also if the result is an error.

    Raises:
        RunError: the output has no result, the result is an error, or not valid.
    """
    message = find_result(output.stdout)
    if message is None:
        raise _error_without_message(output)
    usage = usage_of_claude(message)
    note_usage(usage)
    result = message.get("result")
    if schema is not None and message.get("subtype") in SCHEMA_SUBTYPES:
        raise schema_failed("claude found no valid result in its attempts")
    # An API error says `"subtype":"success"`, and some errors have no `result`.
    if message.get("is_error") or _has_failed(output.status) or not isinstance(result, str):
        raise _error_from_message(message, output)
    return RunResult(
        result_json(result) if schema is None else _structured(message, result, schema),
        str(message.get("stop_reason") or "end_turn"),
        usage,
        session_id if isinstance(session_id := message.get("session_id"), str) else None,
    )


def _structured(message: Mapping[str, Any], result: str, schema: ResultSchema) -> bytes:
    """The result that the program has made for a schema; older programs only print a text."""
    value = message.get("structured_output")
    structured = result_json(result) if value is None else dumps(value)
    if (problem := schema.problem(structured)) is not None:
        raise schema_failed(problem)
    return structured


def _has_failed(status: int | None) -> bool:
    """Whether the exit status says that the printed result is invalid.

    A program that was killed after it printed a result (above 128, or by a signal) has not failed:
    the result is complete, and paid for.
    """
    return status is not None and 0 < status <= 128


def find_result(stdout: bytes) -> dict[str, Any] | None:
    """The last JSON object of type ``result`` in the output, or None.

    Hooks and plugins also write to stdout: before the result, after it and on the same line. The
    search skips objects within other objects: the program does not print its result there.
    """
    message = parse_message(stdout)  # in most cases the output is only the result
    if message is not None:
        return message if message.get("type") == "result" else None
    if b"result" not in stdout:
        return None
    text = stdout.decode(errors="replace")
    decoder = json.JSONDecoder()
    result = None
    failed_reads = position = 0
    while (start := _OBJECT_START.search(text, position)) is not None:
        try:
            value, position = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            failed_reads += 1
            if failed_reads > MAX_FAILED_READS:
                break
            position = start.start() + 1
        else:
            if value.get("type") == "result":
                result = value
    return result


def _exit_message(output: Output) -> str:
    """A sentence about how the program ended, with the last lines of its output."""
    match output.status:
        case None:
            message = "the claude process was lost"
        case 0:
            message = "claude exited without a result"
        case status if status < 0:
            message = f"claude was killed by signal {-status}"
        case status:
            message = f"claude exited with status {status}"
    if output.stdout.strip():
        message += "; its output is not a result"
    last = last_output([output.stdout, output.stderr.encode()])
    return f"{message}: {last}" if last else message


def _error_without_message(output: Output) -> RunError:
    """The error of a program that printed no result and no error message as JSON."""
    code = ErrorCode.AGENT_FAILED
    retryable: bool | None = None
    if output.status in NOT_STARTED:
        code = ErrorCode.AGENT_UNAVAILABLE
    elif _LOGIN_ERROR.search(output.stderr):
        return _login_error(last_output([output.stderr.encode()]), output)
    elif _BAD_ARGUMENT.search(output.stderr):
        retryable = False
    return RunError(code, _exit_message(output), stderr=output.stderr, retryable=retryable)


def _error_from_message(message: Mapping[str, Any], output: Output) -> RunError:
    """The error that the program printed as JSON."""
    text = message.get("result")
    if not isinstance(text, str) or not text:
        errors = message.get("errors")
        text = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    text = text or str(message.get("subtype") or "") or _exit_message(output)
    text = redact(text[:2000])
    code, retryable = _classify(message, text)
    if code is ErrorCode.LOGIN_REQUIRED:
        return _login_error(text, output)
    return RunError(code, text, stderr=output.stderr, retryable=retryable)


def _login_error(text: str, output: Output) -> RunError:
    error = login_required(CLAUDE, text)
    return RunError(error.code, error.message, stderr=output.stderr, fields=error.fields)


def _classify(message: Mapping[str, Any], text: str) -> tuple[ErrorCode, bool | None]:
    """The error code, and whether a retry may succeed (None: the default of the code)."""
    if not message.get("is_error"):  # a result, and then a non-zero exit status
        return ErrorCode.AGENT_FAILED, None
    status = message.get("api_error_status")
    if not isinstance(status, int) and (match := _API_ERROR.match(text)):
        status = int(match[1])
    if status in (401, 403) or _LOGIN_ERROR.search(text):
        return ErrorCode.LOGIN_REQUIRED, None
    if isinstance(status, int):
        may_succeed = status >= 500 or status in TRANSIENT_STATUSES
        return ErrorCode.AGENT_FAILED, None if may_succeed else False
    return ErrorCode.AGENT_FAILED, False if _PERMANENT_ERROR.search(text) else None
