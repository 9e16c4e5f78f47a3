"""The apps' tokens: create, list and revoke them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...accounts.limits import AppLimits, Budget
from ...auth import token_options
from ...errors import bad_request
from ...sandbox.demands import SandboxDemand
from ...storage.schema import TokenRow
from ...validation import form
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, UnixSeconds, doc

TOKEN_EXAMPLE = {"name": "my-bot", "ip_cidrs": ["10.0.0.0/8"], "created_at": 1795479703}


class CreateToken(token_options.TokenOptions, frozen=True, kw_only=True):
    """A new app."""

    name: Annotated[
        str,
        msgspec.Meta(
            pattern=form(
                r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)",
                "1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first",
            ),
            description="1 to 64 letters, digits, dots, dashes and underscores.",
        ),
    ]
    ip_cidrs: Annotated[
        list[str] | None,
        msgspec.Meta(description="The networks in which the token is valid; by default all."),
    ] = None


class ChangeToken(token_options.TokenOptions, frozen=True, kw_only=True):
    """The changes. Each field that is given replaces the whole field; null removes it."""


class TokenInfo(msgspec.Struct, kw_only=True):
    """An app's token, without its secret."""

    name: str
    ip_cidrs: list[str]
    created_at: UnixSeconds
    env: Annotated[list[str], doc("The names of the variables; missing without any.")] | (
        msgspec.UnsetType
    ) = msgspec.UNSET
    scopes: Annotated[
        list[str] | msgspec.UnsetType, doc("The scopes of the app; missing if it has all.")
    ] = msgspec.UNSET
    limits: Annotated[
        AppLimits | msgspec.UnsetType, doc("The app's own limits; missing without any.")
    ] = msgspec.UNSET
    budget: Annotated[Budget | msgspec.UnsetType, doc("Missing without any.")] = msgspec.UNSET
    sandbox: Annotated[
        SandboxDemand | msgspec.UnsetType, doc("Missing if the server's own applies.")
    ] = msgspec.UNSET


class TokenChanged(TokenInfo, kw_only=True):
    """The token, without its secret."""


class TokenCreated(TokenInfo, kw_only=True):
    """A new token. Only this response contains it."""

    token: Annotated[
        str, msgspec.Meta(pattern="^cf_", description="Shown once; only its hash is stored.")
    ]


class TokenList(msgspec.Struct, kw_only=True):
    """All tokens."""

    count: Count
    tokens: list[TokenInfo]


class RevokeQuery(msgspec.Struct, frozen=True):
    """The extent of the revocation."""

    close_sessions: Annotated[bool, doc("Whether the app's open sessions are closed as well.")] = (
        False
    )


class TokenRevoked(msgspec.Struct, kw_only=True):
    """The token is revoked."""

    name: str
    closed_sessions: Annotated[
        Count | msgspec.UnsetType, doc("Only with `close_sessions`: the number of sessions.")
    ] = msgspec.UNSET


@Endpoint(
    "POST",
    "/admin/tokens",
    tag=Tag.OPERATOR,
    summary="Create a token for an app",
    auth="admin",
    request_example={"name": "my-bot", "ip_cidrs": ["10.0.0.0/8"]},
    example={"ok": True, **TOKEN_EXAMPLE, "token": "cf_…"},
    failures=("conflict",),
)
async def create_token(request: web.Request, body: CreateToken) -> TokenCreated:
    options = token_options.TokenOptions.of(body)
    row, token = await context_of(request).tokens.create(body.name, body.ip_cidrs or [], options)
    return TokenCreated(**_fields_of(row), token=token)


@Endpoint(
    "GET",
    "/admin/tokens",
    tag=Tag.OPERATOR,
    summary="List the tokens",
    auth="admin",
    example={"ok": True, "count": 1, "tokens": [TOKEN_EXAMPLE]},
)
async def list_tokens(request: web.Request) -> TokenList:
    tokens = [TokenInfo(**_fields_of(row)) for row in context_of(request).tokens.rows()]
    return TokenList(count=len(tokens), tokens=tokens)


@Endpoint(
    "PATCH",
    "/admin/tokens/{name}",
    tag=Tag.OPERATOR,
    summary="Change a token",
    description="Scopes, limits and budgets apply at once, a sandbox from the next prompt or run,"
    " and variables from the next start of each of the app's agents.",
    auth="admin",
    request_example={"env": {"ANTHROPIC_API_KEY": "…"}},
    example={"ok": True, **TOKEN_EXAMPLE, "env": ["ANTHROPIC_API_KEY"]},
)
async def change_token(request: web.Request, body: ChangeToken) -> TokenChanged:
    if body == ChangeToken():
        names = ", ".join(ChangeToken.__struct_fields__)
        raise bad_request(f"nothing to change: the body may have {names}")
    name = request.match_info["name"]
    row = await context_of(request).tokens.change(name, token_options.TokenOptions.of(body))
    return TokenChanged(**_fields_of(row))


@Endpoint(
    "DELETE",
    "/admin/tokens/{name}",
    tag=Tag.OPERATOR,
    summary="Revoke a token",
    description="Requests that wait get 401, sockets are closed, and turns and runs are ended.",
    auth="admin",
    example={"ok": True, "name": "my-bot"},
)
async def revoke_token(request: web.Request, query: RevokeQuery) -> TokenRevoked:
    name, context = request.match_info["name"], context_of(request)
    await context.tokens.revoke(name)
    if not query.close_sessions:
        return TokenRevoked(name=name)
    return TokenRevoked(
        name=name, closed_sessions=await context.sessions.listing.close_all(name, "admin")
    )


def _fields_of(row: TokenRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "ip_cidrs": json.loads(row.ip_cidrs),
        "created_at": int(row.created_at),
        **token_options.TokenOptions.decode(row.options).view(),
    }
