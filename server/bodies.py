"""Bodies of REST requests: their shapes, which both check them and describe them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web

from .codec import loads_bounded
from .errors import Error, bad_request
from .frames import Name

Timeout = Annotated[float, msgspec.Meta(gt=0, le=86400)]
NO_NUL = r"\A[^\0]*\Z"
# What becomes an argument of a program must not look like an option.
Argument = Annotated[
    str, msgspec.Meta(min_length=1, max_length=256, pattern=r"\A[^-\s\0][^\0\r\n]*\Z")
]


class CreateSession(msgspec.Struct, frozen=True):
    agent: Name | None = None
    model: Name | None = None
    system: Annotated[str, msgspec.Meta(max_length=1 << 20)] | None = None
    meta: dict[str, Any] | None = None
    permission: Literal["approve-all", "approve-reads", "deny-all", "ask"] | None = None
    cwd: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)] | None = None


class UpdateSession(msgspec.Struct, frozen=True):
    meta: dict[str, Any]


class RunTurn(msgspec.Struct, frozen=True):
    prompt: str | list[Any]
    files: list[str] | None = None
    timeout_secs: Timeout | None = None


class RunOnce(msgspec.Struct, frozen=True):
    prompt: Annotated[str, msgspec.Meta(min_length=1, pattern=r"\S")]
    model: Argument | None = None
    system: Annotated[str, msgspec.Meta(max_length=1 << 20, pattern=NO_NUL)] | None = None
    system_mode: Literal["replace", "append"] = "replace"
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    files: Annotated[list[str], msgspec.Meta(max_length=100)] | None = None
    timeout_secs: Timeout | None = None
    agent: Name | None = None


class AnswerPermission(msgspec.Struct, frozen=True):
    option_id: str | None = None
    outcome: Literal["cancelled"] | None = None


class CreateToken(msgspec.Struct, frozen=True):
    name: str
    ip_cidrs: list[str] | None = None


Body = TypeVar("Body")


async def read_body(request: web.Request, shape: type[Body]) -> Body:
    """The request's JSON body, checked; none at all is an empty object.

    Raises:
        Error: ``bad_request``, naming the field, or ``payload_too_large``.
    """
    try:
        data = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Error("payload_too_large", "the body is too large") from None
    try:
        value = loads_bounded(data) if data.strip() else {}
    except ValueError:
        raise bad_request("the body is not JSON, or is nested too deeply") from None
    try:
        return msgspec.convert(value, shape)
    except (msgspec.ValidationError, RecursionError) as error:
        raise bad_request(str(error)) from None
