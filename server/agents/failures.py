"""Classifies the errors of agents: whether a login is required, and whether a retry can succeed.

Agents report a refused key in many ways: with ACP's own code, with an HTTP status as the code,
with a word in ``data``, with a provider's JSON within the message, or in words alone. Only JSON-RPC
errors and the output of agents that did not start are classified, never the text of a turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..codec import parse_message
from ..errors import Error, ErrorCode
from ..sandbox.logins import LOGIN_FILES, ROTATING

AUTH_REQUIRED: Final = -32000
NEVER_RETRYABLE: Final = (AUTH_REQUIRED, -32600, -32601, -32602)
"""The codes after which the same prompt fails again: no login, or an invalid request."""
RETRYABLE_STATUSES: Final = (408, 409, 425, 429)
"""The HTTP statuses below 500 after which the same request may succeed."""
MAX_TEXT = 2000
MAX_ERROR_VALUES = 200
MAX_DEPTH = 8

LOGINS: Final = {
    "claude": (
        "set ANTHROPIC_API_KEY, or CLAUDE_CODE_OAUTH_TOKEN from `claude setup-token`;"
        " without a sandbox, run `claude` and enter /login"
    ),
    "codex": (
        "set OPENAI_API_KEY, or run `codex login --with-api-key`;"
        " without a sandbox, also `codex login`"
    ),
    "copilot": "run `copilot` and enter /login, or pass on GH_TOKEN (CLAWDFORGE_AGENT_ENV)",
    "cursor": "run `cursor-agent login`, or pass on CURSOR_API_KEY (CLAWDFORGE_AGENT_ENV)",
    "droid": "run `droid`, or pass on FACTORY_API_KEY (CLAWDFORGE_AGENT_ENV)",
    "gemini": "run `gemini`, or set GEMINI_API_KEY",
    "kilocode": "run `kilo`",
    "kimi": "run `kimi` and enter /login",
    "kiro": "run `kiro-cli login`",
    "openclaw": "run `openclaw onboard`",
    "opencode": "run `opencode auth login`, or set the key of its provider",
    "pi": "run `pi` and enter /login, or set the key of its provider",
    "qoder": "run `qodercli` and enter /login",
    "qwen": "run `qwen` and enter /auth, or set OPENAI_API_KEY",
}
"""Instructions to log in as the server's user, by agent; also in docs/howto/agents.md."""
OTHER_LOGIN = "run its own program in a terminal and log in, or set its key"

_STATUS_KEYS = frozenset(
    {"status", "statuscode", "httpstatus", "httpstatuscode", "httpcode", "apierrorstatus", "code"}
)
_KIND_KEYS = frozenset(
    {"errorkind", "errorname", "errortype", "errorcode", "kind", "type", "code", "detailcode"}
    | {"name", "status", "reason", "error"}
)
_TOOL_KEYS = frozenset({"tool", "toolname", "toolcallid", "mcpserver"})
_LOGIN_KINDS = frozenset(
    {
        *("authenticationfailed", "authenticationerror", "authenticationrequired"),
        *("authrequired", "autherror", "autherrored", "invalidauthentication"),
        *("invalidapikey", "apikeyinvalid", "incorrectapikey", "missingapikey", "loadapikeyerror"),
        *("unauthorized", "unauthorizederror", "unauthenticated", "providerautherror"),
        *("tokenexpired", "expiredtoken", "oauthtokenexpired", "invalidtoken", "invalidgrant"),
        *("loginrequired", "invalidcredentials", "credentialsexpired", "oauthorgnotallowed"),
        *("expiredtokenexception", "unrecognizedclientexception", "invalidclienttokenid"),
    }
)
_OTHER_KINDS = frozenset(
    {
        *("billingerror", "insufficientquota", "quotaexceeded", "resourceexhausted"),
        *("ratelimit", "ratelimiterror", "ratelimitexceeded", "overloaded", "overloadederror"),
    }
)
_HOPELESS_KINDS = frozenset({"billingerror", "insufficientquota", "invalidrequest"})
_API_KEY = r"api[\s_-]?keys?"
_LOGIN_WORDS = re.compile(
    rf"""
    \b(?:invalid|incorrect|expired|missing|revoked|wrong|no|malformed|unknown|disabled)
        \s+(?:\w+[\s-]){{0,2}}{_API_KEY}\b
    | \b{_API_KEY}\b (?:\s+\S+){{0,4}}?
        \s+(?:not\s+(?:valid|set|found|configured)|invalid|incorrect|expired|revoked|missing
        |required|leaked|disabled)\b
    | \b(?:provide|set|configure|add)\s+(?:an?\s+|your\s+|the\s+)?(?:\w+\s+)?{_API_KEY}\b
    | \bauthentication\s+(?:is\s+|has\s+)?(?:required|failed|expired|needed)\b
    | \bfailed\s+to\s+authenticate\b | \bauthentication_error\b
    | \bnot\s+authenticated\b | \bunauthenticated\b | \bunauthori[sz]ed\b
    | \b(?:not|n't|no\s+longer)\s+(?:logged|signed)\s+in\b
    | \b(?:please|must|to)\s+(?:re-?)?(?:log|sign)[\s-]?in\b
    | \b(?:log|sign)[\s-]?in\s+(?:first|again|(?:is\s+|has\s+)?(?:required|expired))\b
    | (?<![\w/.])/login\b | \bauth\s+login\b
    | \b(?:invalid|expired|missing|incorrect|no)\s+(?:\w+\s+)?credentials?\b
    | \bcredentials?\s+(?:\w+\s+){{0,2}}?(?:expired|invalid|missing|not\s+found|required)\b
    | \b(?:oauth|access|refresh|auth|bearer|session)[\s_-]token\b (?:\s+\w+){{0,3}}?
        \s+(?:expired|invalid|revoked|missing)\b
    | \b(?:invalid|expired|revoked)\s+(?:oauth|access|refresh|auth|bearer)[\s_-]token\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OTHER_WORDS = re.compile(
    r"\bbilling\b|\bcredit balance\b|\bquota\b|\brate[\s_-]?limit|\btoo many requests\b"
    r"|\boverloaded\b|\bpayment\b|\binsufficient (?:funds|credits?|balance)\b|\bnot found\b"
    r"|\btimed? ?out\b",
    re.IGNORECASE,
)
_HOPELESS_WORDS = re.compile(
    r"\bcredit balance\b|\binsufficient[_ ]quota\b|\bbilling_error\b", re.IGNORECASE
)
_TOOL_WORDS = re.compile(
    r"\btools?\b|\bmcp\b|\bhook\b|\bplugin\b|\bweb[_ ]?fetch\b|\bcurl\b|\bgit\b|\bnpm\b|\bproxy\b"
    r"|\b(?:fetch(?:ing|ed)?|GET|POST|PUT|download(?:ing|ed)?)\s+https?://",
    re.IGNORECASE,
)
_STATUS_WORDS = re.compile(
    r"""
    \A\W*(?:(?:internal\ error|api\ error|error)\W+)*([45]\d\d)\b
    | \b(?:api\ error|http|https|http\ error|error\ code|status(?:\ code)?|unexpected\ status)
        (?:/\d(?:\.\d)?)?[:=\s(]*([45]\d\d)\b
    | \(([45]\d\d)\)
    """,
    re.IGNORECASE | re.VERBOSE,
)


class _Evidence(msgspec.Struct):
    """The HTTP statuses, one-word kinds and texts that an error contains at any depth."""

    statuses: set[int] = msgspec.field(default_factory=set)
    kinds: set[str] = msgspec.field(default_factory=set)
    texts: list[str] = msgspec.field(default_factory=list)
    values: int = 0

    def collect(self, value: Any, key: str = "", depth: int = 0) -> None:
        """Add what *value*, the field *key* of an object, contains."""
        self.values += 1
        if self.values > MAX_ERROR_VALUES or depth > MAX_DEPTH:
            return
        match value:
            case bool():
                pass
            case int() if key in _STATUS_KEYS and 400 <= value <= 599:
                self.statuses.add(value)
            case str():
                self._collect_text(value, key, depth)
            case dict():
                parts = {_normalized(name): part for name, part in value.items()}
                if not _TOOL_KEYS & parts.keys():  # else the error is a tool's
                    for name, part in parts.items():
                        self.collect(part, name, depth + 1)
            case list():
                for part in value:
                    self.collect(part, key, depth + 1)

    def _collect_text(self, text: str, key: str, depth: int) -> None:
        text = text[:MAX_TEXT]
        if key in _STATUS_KEYS and text.isdecimal():
            self.collect(int(text), key, depth)
        if key in _KIND_KEYS:
            self.kinds.add(_normalized(text))
        start = text.find("{")
        if start >= 0 and (nested := parse_message(text[start:].encode(errors="replace"))):
            self.collect(nested, "", depth + 1)
            text = text[:start]
        if text.strip():
            self.texts.append(text)

    def status_in_words(self) -> int | None:
        for text in self.texts:
            if (match := _STATUS_WORDS.search(text)) is not None:
                return int(next(filter(None, match.groups())))
        return None


def agent_error(error: Any, agent: str, auth_methods: Any = None) -> Error:
    """Convert the JSON-RPC error that ended a turn to the error that clients receive.

    Args:
        agent: the agent's name.
        auth_methods: ACP's ``authMethods``, as the agent listed them.
    """
    message = error_text(error)
    if needs_login(error):
        return login_required(agent, message, _methods_in(error) or auth_methods)
    return Error(
        ErrorCode.AGENT_FAILED,
        message or "the agent answered with an error",
        retryable=_is_retryable(error),
    )


def login_required(agent: str, reason: str, auth_methods: Any = None) -> Error:
    """The error of an agent that refuses to work without a login, or with its present one."""
    how = LOGINS.get(agent, OTHER_LOGIN)
    message = f"the agent {agent!r} requires a login: {how}"
    if agent not in {*LOGIN_FILES, *ROTATING}:
        message += "; a login in the home of the server's user needs CLAWDFORGE_SANDBOX=off"
    return Error(
        ErrorCode.LOGIN_REQUIRED,
        f"{message} (the agent says: {reason})" if reason else message,
        fields={"auth_methods": auth_methods if isinstance(auth_methods, list) else []},
    )


def needs_login(error: Any) -> bool:
    """Whether a JSON-RPC error says that a login or key is missing, expired or refused."""
    evidence = _evidence_of(error)
    text = "\n".join(evidence.texts)
    is_of_tool = _TOOL_WORDS.search(text) is not None
    if evidence.kinds & _LOGIN_KINDS:
        return True
    if evidence.kinds & _OTHER_KINDS:
        return False
    if not is_of_tool and _LOGIN_WORDS.search(text):
        return True
    if _OTHER_WORDS.search(text):
        return False
    if isinstance(error, dict) and error.get("code") == AUTH_REQUIRED:
        return True
    statuses = evidence.statuses
    if not statuses and not is_of_tool and (status := evidence.status_in_words()):
        statuses = {status}
    return bool(statuses & {401, 403})


def asks_for_login(words: str) -> bool:
    """Whether the last output of an agent that did not start asks for a login."""
    return _LOGIN_WORDS.search(words) is not None and _TOOL_WORDS.search(words) is None


def error_text(error: Any) -> str:
    """The message of a JSON-RPC error, and the details that many agents put in ``data``."""
    message = error.get("message") if isinstance(error, dict) else None
    text = message.strip()[:MAX_TEXT] if isinstance(message, str) else ""
    details = details_of(error)
    if not details or details in text:
        return text
    return f"{text}: {details}" if text else details


def details_of(error: Any) -> str:
    """The text in the ``data`` of a JSON-RPC error; many agents put the reason there."""
    data = error.get("data") if isinstance(error, dict) else None
    details = data.get("details") if isinstance(data, dict) else data
    return " ".join(details.split())[:500] if isinstance(details, str) else ""


def _is_retryable(error: Any) -> bool:
    """Whether the same prompt may succeed later."""
    code = error.get("code") if isinstance(error, dict) else None
    if code in NEVER_RETRYABLE:
        return False
    evidence = _evidence_of(error)
    if evidence.kinds & _HOPELESS_KINDS or _HOPELESS_WORDS.search("\n".join(evidence.texts)):
        return False
    statuses = evidence.statuses or {evidence.status_in_words()} - {None}
    return not any(
        400 <= status < 500 and status not in RETRYABLE_STATUSES for status in statuses if status
    )


def _evidence_of(error: Any) -> _Evidence:
    evidence = _Evidence()
    if isinstance(error, Mapping):
        for name in ("message", "data"):
            evidence.collect(error.get(name), name)
        code = error.get("code")
        if isinstance(code, int):  # some agents use the HTTP status as the code
            evidence.collect(code, "code")
    return evidence


def _methods_in(error: Any) -> Any:
    data = error.get("data") if isinstance(error, dict) else None
    return data.get("authMethods") if isinstance(data, dict) else None


def _normalized(name: Any) -> str:
    """Lower-case letters and digits of *name*, so that ``errorKind`` equals ``error_kind``."""
    return re.sub(r"[^a-z0-9]", "", str(name)[:60].lower())
