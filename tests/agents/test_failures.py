"""Classification of agent errors. Each payload is from the real agent unless noted otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.agents.failures import agent_error
from server.agents.program_output import KEPT_BYTES, SHOWN_BYTES, last_output, secrets_in


def error(code: int, message: str, data: Any = None) -> dict[str, Any]:
    return {"code": code, "message": message, **({} if data is None else {"data": data})}


def gemini(status: int, message: str, name: str) -> dict[str, Any]:
    payload = {"error": {"code": status, "message": message, "status": name}}
    return error(status, json.dumps(payload, separators=(",", ":")))


def details(text: str) -> dict[str, str]:
    return {"details": text}


REFUSED = {
    "claude 0.76, 401": error(
        -32603,
        "Internal error: Invalid API key · Fix external API key",
        {"errorKind": "authentication_failed"},
    ),
    "claude 0.76, 403": error(
        -32603,
        "Internal error: Failed to authenticate. API Error: 403 Request not allowed",
        {"errorKind": "authentication_failed"},
    ),
    "claude 0.101, 401 and 403; codex, 401": error(-32000, "Authentication required"),
    "gemini, 401": gemini(401, "Incorrect API key provided.", "UNAUTHENTICATED"),
    "gemini, 403": gemini(
        403, "Permission denied: the key was reported as leaked", "PERMISSION_DENIED"
    ),
    "gemini, 400": gemini(400, "API key not valid. Please pass a valid API key.", "INVALID"),
    "gemini, no key": error(-32000, "Gemini API key is missing or not configured."),
    "qwen, 401": error(-32603, "Internal error", details("401 Incorrect API key provided.")),
    "qwen, 403": error(-32603, "Internal error", details("403 Permission denied: no such right")),
    "qwen, no key": error(
        -32000,
        "Authentication required: Authentication failed: Missing API key for openai auth.",
        {"authMethods": [{"id": "openai", "name": "Use OpenAI API key"}]},
    ),
    "opencode, 401": error(
        -32603,
        "Internal error: Incorrect API key provided.",
        {"service": "session", "errorName": "APIError"},
    ),
    # Of the same kinds, made up.
    "a status deep in data": error(-32603, "x", {"cause": {"response": {"statusCode": 401}}}),
    "a status as text": error(-32603, "x", {"status": "403"}),
    "data is a list": error(-32603, "x", [{"error": {"type": "authentication_error"}}]),
    "data is text": error(-32603, "Internal error", "Unauthorized"),
    "JSON in the text": error(-32603, '401 {"error":{"code":"invalid_api_key"}}'),
    "only a status in words": error(-32603, "unexpected status 401 Unauthorized: x, url: http://y"),
    "HTTP": error(-32603, "request failed: HTTP 403 from the model's API"),
    "status code": error(-32603, "Request failed with status code 401"),
    "expired": error(-32603, "Your OAuth token has expired. Please run /login"),
    "log in": error(1, "You are not logged in. Run `cursor-agent login`."),
    "ACP's own code": error(-32000, "log in first"),
    "no message": error(-32000, ""),
}
NOT_REFUSED = {
    "claude, no credit": (
        error(-32603, "Internal error: Credit balance is too low", {"errorKind": "billing_error"}),
        False,
    ),
    "claude, 429": (
        error(
            -32603,
            "Internal error: API Error: Request rejected (429) · rate",
            {"errorKind": "rate_limit"},
        ),
        True,
    ),
    "claude, 402": (
        error(-32603, "Internal error: API Error: 402 payment", {"errorKind": "unknown"}),
        False,
    ),
    "claude, unknown model": (
        error(-32603, "Internal error", details("Invalid value for config option model: x")),
        True,
    ),
    "quota": (error(403, "You exceeded your current quota, see your billing details"), False),
    "overloaded": (error(-32603, "Internal error", details("529 overloaded_error")), True),
    "a server's error": (error(-32603, "API Error: 500 Internal server error"), True),
    "a tool's 403": (error(-32603, "the tool web_fetch failed: status code 403"), False),
    "a tool's 401 in data": (error(-32603, "failed", {"toolName": "fetch", "status": 401}), True),
    "an MCP server's": (error(-32603, "MCP server github: HTTP 401 Unauthorized"), False),
    "a page's": (error(-32603, "GET https://example.com/ failed: 403 Forbidden"), True),
    "a file's": (error(-32603, "EACCES: permission denied, open '/etc/shadow'"), True),
    "a number": (error(-32603, "line 401 of login.py, 403 lines read"), True),
    "-32000 for another reason": (error(-32000, "rate limit exceeded"), False),
    "not understood": (error(-32602, "Invalid params"), False),
    "no error at all": (None, True),
    "nonsense": (error(-32603, "x", {"data": [[[[[[[[[[[[401]]]]]]]]]]]]}), True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_or_missing_key_is_login_required(name: str) -> None:
    failure = agent_error(REFUSED[name], "claude", [{"id": "m"}])
    assert (failure.code, failure.status, failure.retryable) == ("login_required", 502, False)
    assert "`claude`" in failure.message
    expected = [{"id": "openai", "name": "Use OpenAI API key"}] if "no key" in name else None
    if name.startswith("qwen, no key"):
        assert failure.fields["auth_methods"] == expected
    else:
        assert failure.fields["auth_methods"] == [{"id": "m"}]


@pytest.mark.parametrize("name", NOT_REFUSED)
def test_other_error_of_an_agent_is_agent_failed(name: str) -> None:
    payload, retryable = NOT_REFUSED[name]
    failure = agent_error(payload, "claude")
    assert (failure.code, failure.retryable) == ("agent_failed", retryable)


def test_an_error_of_any_shape_is_read() -> None:
    odd: Any
    for odd in ([], "x", 7, {}, {"code": True}, {"code": None, "message": 1, "data": {"a": {}}}):
        assert agent_error(odd, "x").code == "agent_failed"
    wide = error(-32603, "x", {str(n): {"status": "y" * 5000} for n in range(5000)})
    assert agent_error(wide, "x").code == "agent_failed"


def test_last_output_is_short_printable_and_without_secrets() -> None:
    secrets = secrets_in({"MY_API_KEY": "correct-horse-battery", "HOME": "a-folder"})
    stream = (
        b"\x1b[31mkimi is no longer\x1b[0m maintained\x07\r\n\x1b]0;title\x07"
        b"key correct-horse-battery\nsk-ant-api03-abcdefgh12345\n"
        b"Authorization: Bearer abcdefghijkl\nhttps://me:hunter22@example.com/ \xe2\x80\xaeevil"
    )
    said = last_output([stream, b"", stream], secrets)
    assert said.startswith("kimi is no longer maintained key [secret] [secret]")
    assert said.count("kimi") == 1
    for hidden in ("horse", "abcdefgh", "hunter22", "\x1b", "\x07", "\u202e"):
        assert hidden not in said
    assert "a-folder" not in secrets
    for flood in (b"word " * 100_000, b"x" * 100_000, "я".encode() * 50_000, b"\xff" * 10_000):
        assert len(last_output([flood, b"end"]).encode()) <= SHOWN_BYTES + 20
    cut = b"correct-horse-battery " + b"y " * (KEPT_BYTES // 2 - 5)
    assert "battery" not in last_output([cut[-KEPT_BYTES:]], secrets)
