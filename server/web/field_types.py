"""Types of fields that the requests and responses of several resources share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ..agents.usage import Usage
from ..errors import ErrorCode
from ..sessions.content import MAX_FILES
from ..validation import form

MAX_LIFETIME_SECS = 10 * 366 * 86400
"""The longest `ttl_secs` and `retention_secs` that are not never."""

Count = Annotated[int, msgspec.Meta(ge=0)]
UnixSeconds = Annotated[int, msgspec.Meta(description="Unix seconds.")]
UnixMillis = Annotated[int, msgspec.Meta(description="Unix milliseconds.")]
TurnIndex = Annotated[int, msgspec.Meta(ge=1, le=10**18)]
Timeout = Annotated[
    float,
    msgspec.Meta(gt=0, le=86400, description="Seconds. The server's own limit applies as well."),
]
FileTokens = Annotated[
    Annotated[list[str], msgspec.Meta(max_length=MAX_FILES)] | None,
    msgspec.Meta(description="Tokens returned by `POST /files`."),
]
TtlSecs = Annotated[
    Annotated[float, msgspec.Meta(gt=0, le=MAX_LIFETIME_SECS)] | msgspec.UnsetType | None,
    msgspec.Meta(
        description="Seconds without a turn, after which the session is closed; null for never; by"
        " default `CLAWDFORGE_SESSION_TTL_SECS`."
    ),
]
RetentionSecs = Annotated[
    Annotated[float, msgspec.Meta(ge=0, le=MAX_LIFETIME_SECS)] | msgspec.UnsetType | None,
    msgspec.Meta(
        description="Seconds after its close, after which the session is deleted; null for never;"
        " by default `CLAWDFORGE_SESSION_HARD_TTL_SECS`."
    ),
]
PermissionMode = Literal["approve-all", "approve-reads", "deny-all", "ask"]

FailureCode = Annotated[
    str,
    msgspec.Meta(
        description="For programs.", extra_json_schema={"enum": sorted(map(str, ErrorCode))}
    ),
]
ErrorMessage = Annotated[str, msgspec.Meta(description="One sentence for people.")]
RequestId = Annotated[str, msgspec.Meta(description="The server's log has details under this id.")]
AuthMethods = Annotated[
    list[dict[str, Any]] | msgspec.UnsetType,
    msgspec.Meta(description="Only with `login_required`: the agent's own list, in ACP's format."),
]
ResetsAt = Annotated[
    int | msgspec.UnsetType,
    msgspec.Meta(description="Only with `budget_exceeded`: the end of the period, unix seconds."),
]

NO_NUL = form(r"^[^\x00]*$", "text without the character NUL")
# A command-line argument must not look like an option. `$` alone would accept a line feed at the
# end.
Argument = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=256,
        pattern=form(
            r"^[^-\s\x00][^\x00\r\n]*$(?!\n)",
            "one line that begins with neither a dash nor a blank",
        ),
    ),
]


def doc(text: str) -> Any:
    """Return the metadata that gives a field its description in ``/openapi.json``."""
    return msgspec.Meta(description=text)


class ContextWindowInfo(msgspec.Struct, kw_only=True):
    """The tokens in the agent's context window, and its size."""

    used: Count
    size: Count


class SessionUsageInfo(Usage, frozen=True, kw_only=True):
    """The tokens and the cost of a session, as far as the agent has reported them."""

    context: ContextWindowInfo | msgspec.UnsetType = msgspec.UNSET


class SubagentInfo(msgspec.Struct, kw_only=True):
    """The subagent that an update is of: what the update names of it."""

    session_id: (
        Annotated[
            str, msgspec.Meta(description="The subagent's own session, in ACP's form of subagents.")
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    tool_call_id: (
        Annotated[str, msgspec.Meta(description="The tool call of its parent that began it.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
