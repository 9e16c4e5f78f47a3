"""The limits and the budget of an app, as the operator gives them with its token."""

from __future__ import annotations

from typing import Annotated

import msgspec

MAX_TOKENS = 1 << 53
MAX_USD = 1_000_000_000

Number = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Usd = Annotated[float, msgspec.Meta(ge=0, le=MAX_USD)]


def _meta(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class AppLimits(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Limits of one app instead of the server's limits per app. The server's totals still apply.

    A field that is null, or missing, leaves the server's limit. Zero allows nothing.
    """

    sessions: Annotated[
        Number | None, _meta("Open sessions; `CLAWDFORGE_MAX_SESSIONS_PER_APP` otherwise.")
    ] = None
    live_agents: Annotated[
        Number | None,
        _meta("Running agents; `CLAWDFORGE_MAX_LIVE_AGENTS_PER_APP` otherwise."),
    ] = None
    runs: Annotated[
        Number | None, _meta("Runs at once; `CLAWDFORGE_MAX_RUNS_PER_APP` otherwise.")
    ] = None
    prompts_per_min: Annotated[
        Number | None,
        _meta("Prompts and runs a minute; `CLAWDFORGE_MAX_PROMPTS_PER_MIN` otherwise."),
    ] = None
    disk_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None,
        _meta(
            "Bytes of its uploads, and of its sessions' folders, snapshots and logs beyond 256 KiB"
            " each. Otherwise only uploads are limited: `CLAWDFORGE_MAX_UPLOAD_BYTES_PER_APP`."
        ),
    ] = None


class Budget(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Limits of an app's spending in a day and in a month of UTC; null for none."""

    usd_per_day: Annotated[Usd | None, _meta("Costs in USD, as agents report them.")] = None
    usd_per_month: Annotated[Usd | None, _meta("Costs in USD, as agents report them.")] = None
    tokens_per_day: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None,
        _meta("Tokens of the input, cached ones included, and of the output."),
    ] = None


NO_LIMITS = AppLimits()
NO_BUDGET = Budget()
