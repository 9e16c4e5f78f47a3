"""What REST takes: bodies, queries and headers. Their shapes both check them and describe them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import hdrs, web
from multidict import CIMultiDictProxy, MultiMapping

from ..codec import has_too_many_values, is_costly, loads_bounded
from ..errors import Error, bad_request, payload_too_large
from ..sessions.content import MAX_FILES, check_content
from ..uploads.files import TTL_RANGE, TTL_SECS
from ..validation import ClientId, ConfigOptions, Name, form, in_words
from ..ws.connection import INCOMING_LIMITS
from ..ws.incoming import IncomingLimits

MAX_POSITION = 1 << 62
MAX_EVENTS = 10_000


def _about(text: str) -> Any:
    return msgspec.Meta(description=text)


Timeout = Annotated[
    float, msgspec.Meta(gt=0, le=86400, description="Seconds; the server's own bound holds too.")
]
NO_NUL = form(r"^[^\x00]*$", "text without the character NUL")
# What becomes an argument of a program must not look like an option. `$` alone would let a line
# feed through at the end.
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
FileStore = Annotated[
    Annotated[list[str], msgspec.Meta(max_length=MAX_FILES)] | None,
    _about("Tokens of `POST /files`."),
]


class Blocks(list[dict[str, Any]]):
    """A prompt's content blocks: checked, and each kept as it came."""


class CreateSession(msgspec.Struct, frozen=True):
    """A new session."""

    agent: Annotated[Name | None, _about("One of `GET /agents`; else the default one.")] = None
    model: Annotated[Name | None, _about("Passed on to the agent.")] = None
    system: Annotated[
        Annotated[str, msgspec.Meta(max_length=1 << 20)] | None,
        _about("Replaces the agent's own system prompt."),
    ] = None
    mode: Annotated[Name | None, _about("The agent is in this mode whenever it gets a prompt.")] = (
        None
    )
    config_options: Annotated[
        ConfigOptions | None, _about("Options of the agent's own, by their ids; as `mode`.")
    ] = None
    meta: Annotated[dict[str, Any] | None, _about("The app's own notes.")] = None
    permission: Annotated[
        Literal["approve-all", "approve-reads", "deny-all", "ask"] | None,
        _about("What the agent may do; `approve-all` where nothing is said."),
    ] = None
    cwd: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=4096)] | None,
        _about("A folder in one of `CLAWDFORGE_WORKSPACE_ROOTS`; else a fresh one."),
    ] = None


class ListSessions(msgspec.Struct, frozen=True):
    """Which sessions."""

    include_closed: bool = False


class UpdateSession(msgspec.Struct, frozen=True):
    """What to note."""

    meta: dict[str, Any]


class RunTurn(msgspec.Struct, frozen=True):
    """A prompt."""

    prompt: Annotated[Blocks, _about("Text, or ACP content blocks.")]
    files: FileStore = None
    timeout_secs: Timeout | None = None


class TurnHeaders(msgspec.Struct, frozen=True):
    """Headers of a turn."""

    idempotency_key: Annotated[
        ClientId | None,
        _about("The same key again in the same session runs nothing: it gives the stored turn."),
    ] = msgspec.field(default=None, name="Idempotency-Key")


class ListEvents(msgspec.Struct, frozen=True):
    """Which entries."""

    after: Annotated[
        int, msgspec.Meta(ge=0, le=MAX_POSITION, description="The last `seq` that is known.")
    ] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENTS)] = 1000


class EventsHeaders(msgspec.Struct, frozen=True):
    """Headers of a stream."""

    last_event_id: Annotated[
        str | None, _about("Goes before `after`. What is no position counts for nothing.")
    ] = msgspec.field(default=None, name="Last-Event-ID")


class SocketQuery(msgspec.Struct, frozen=True):
    """Where a socket begins."""

    after: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=10**18)] | None,
        _about("The last `seq` that is known; without it, the socket is live from now."),
    ] = None
    protocol: Annotated[str, _about("The version; there is 1.")] = "1"


class RunOnce(msgspec.Struct, frozen=True):
    """One prompt."""

    prompt: Annotated[str, msgspec.Meta(min_length=1, pattern=form(r"\S", "more than blanks"))]
    model: Annotated[Argument | None, _about("Passed on as it is.")] = None
    system: Annotated[
        Annotated[str, msgspec.Meta(max_length=1 << 20, pattern=NO_NUL)] | None,
        _about("A system prompt."),
    ] = None
    system_mode: Annotated[
        Literal["replace", "append"], _about("Instead of the agent's own, or behind it.")
    ] = "replace"
    effort: Annotated[
        Literal["low", "medium", "high", "xhigh", "max"] | None, _about("Only claude takes one.")
    ] = None
    files: FileStore = None
    timeout_secs: Timeout | None = None
    agent: Annotated[Name | None, _about("`claude`, or any of `GET /agents`.")] = None


Ttl = Annotated[
    int,
    msgspec.Meta(ge=TTL_RANGE[0], le=TTL_RANGE[1], description="Seconds that it is kept."),
]


class Upload(msgspec.Struct, frozen=True):
    """A file, in the parts of a form."""

    file: Annotated[str, msgspec.Meta(extra_json_schema={"format": "binary"})]
    ttl_secs: Ttl = TTL_SECS


class UploadQuery(msgspec.Struct, frozen=True):
    """The same, for who sends no such part."""

    ttl_secs: Ttl = TTL_SECS


class AnswerPermission(msgspec.Struct, frozen=True):
    """One of the two."""

    option_id: Annotated[str | None, _about("One of the request's options.")] = None
    outcome: Literal["cancelled"] | None = None


class CreateToken(msgspec.Struct, frozen=True):
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
        list[str] | None, _about("Networks from which alone the token is good.")
    ] = None


Shape = TypeVar("Shape", bound=msgspec.Struct)


# The app that asks, once that is known. A body is read only then, and on its account.
APP = web.RequestKey("app", str)
EXPECTS = web.RequestKey("expects", str)
"""The request's ``Expect`` header, which ``middleware.py`` takes out: it is for us to answer."""
FREE_BYTES = 64 << 10
"""So much of a body whose size is not told is read before room for all of it is asked for."""
ROOM_SECS = 10.0
"""So long a body waits for others to be done with."""


class Bodies:
    """Reads bodies, so many bytes of them at once and one large one at a time.

    Args:
        limits: shared with the messages of WebSocket connections.
    """

    def __init__(self, limits: IncomingLimits) -> None:
        self._limits = limits
        self._parsing = asyncio.Semaphore()

    async def read_json(self, request: web.Request) -> Any:
        """The request's body as JSON; none at all is an empty object.

        Raises:
            Error: ``bad_request``, ``payload_too_large``, ``request_timeout``, or
                ``rate_limited`` where there is no room for it.
        """
        limit = request.client_max_size
        size = request.content_length
        if (size or 0) > limit:
            raise payload_too_large()
        app_name = request.get(APP, "")
        data = bytearray()
        if size is None:  # in chunks
            await self._read(request, data, FREE_BYTES)
            if request.content.at_eof():
                return await self._parse(data)
            size = limit
        async with self._limits.budget.take(app_name, size, ROOM_SECS):
            await self._read(request, data, limit)
            if len(data) > limit:
                raise payload_too_large()
            return await self._parse(data)

    async def _read(self, request: web.Request, data: bytearray, limit: int) -> None:
        """Read on, until there are more than *limit* bytes, or all."""
        await start_body(request)
        now = asyncio.get_running_loop().time
        end = now() + self._limits.timeout
        try:
            async with asyncio.timeout(None) as patience:
                while len(data) <= limit:
                    patience.reschedule(min(end, now() + self._limits.stall_timeout))
                    chunk = await request.content.readany()
                    if not chunk:
                        return
                    data += chunk
        except TimeoutError:
            raise _too_slow() from None

    async def _parse(self, data: bytearray) -> Any:
        if not is_costly(data):
            return _parse(data)
        async with self._parsing:
            return await asyncio.to_thread(_parse, data)


BODIES = web.AppKey("bodies", Bodies)


def _parse(data: bytearray) -> Any:
    if has_too_many_values(data):
        raise payload_too_large("the body has too many values: see docs/explanation/guarantees.md")
    try:
        return loads_bounded(data) if data and not data.isspace() else {}
    except ValueError:
        raise bad_request("the body is not JSON, or is nested too deeply") from None


@contextlib.asynccontextmanager
async def patience(request: web.Request) -> AsyncIterator[None]:
    """Wait for the next piece of a body, for so long as a client may be silent.

    Raises:
        Error: ``request_timeout``.
    """
    try:
        async with asyncio.timeout(request.app[INCOMING_LIMITS].stall_timeout):
            yield
    except TimeoutError:
        raise _too_slow() from None


def _too_slow() -> Error:
    return Error("request_timeout", "the body did not arrive in time")


def check_coding(headers: CIMultiDictProxy[str]) -> None:
    """Refuse what is packed: unpacked it could be a thousand times as large.

    That goes for a transfer coding as well, which can only be ``chunked``.

    Raises:
        Error: ``unsupported_media_type``.
    """
    lines = headers.getall(hdrs.CONTENT_ENCODING, ())
    if any(coding.strip().lower() not in ("", "identity") for coding in ",".join(lines).split(",")):
        raise Error(
            "unsupported_media_type", "a body is sent as it is: no Content-Encoding is supported"
        )
    if headers.get(hdrs.TRANSFER_ENCODING, "chunked").strip().lower() != "chunked":
        raise Error("unsupported_media_type", "no Transfer-Encoding but chunked is supported")


async def start_body(request: web.Request) -> None:
    """Have the client send its body, if it waits to be told."""
    if request.get(EXPECTS) and not request.writer.output_size:
        del request[EXPECTS]
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no part of the answer itself


async def read_body(request: web.Request, shape: type[Shape]) -> Shape:
    """The request's JSON body, checked; none at all is an empty object.

    Raises:
        Error: what :meth:`Bodies.read_json` raises; a ``bad_request`` names the field.
    """
    return read_value(shape, await request.app[BODIES].read_json(request))


def read_query(request: web.Request, shape: type[Shape]) -> Shape:
    """The request's query, checked.

    Raises:
        Error: ``bad_request``, naming the parameter.
    """
    return read_texts(_single(request.query, shape), shape)


def read_headers(request: web.Request, shape: type[Shape]) -> Shape:
    """The headers that *shape* names, checked.

    Raises:
        Error: ``bad_request``, naming the header.
    """
    return read_texts(_single(request.headers, shape), shape)


def _single(values: MultiMapping[str], shape: type[Shape]) -> dict[str, str]:
    """The fields of *shape* that *values* has.

    Raises:
        Error: ``bad_request``; a field is there twice, and which of its values counts is unclear.
    """
    found: dict[str, str] = {}
    for name in _field_names(shape):
        texts = set(values.getall(name, ()))
        if len(texts) > 1:
            raise bad_request(f"{name}: is there more than once, with different values")
        found |= dict.fromkeys([name], *texts) if texts else {}
    return found


def read_texts(values: Mapping[str, str], shape: type[Shape]) -> Shape:
    """Fields whose values came as text: *shape* says what they stand for.

    Raises:
        Error: ``bad_request``, naming the field.
    """
    named = {name: values[name] for name in _field_names(shape) if name in values}
    return _check(named, shape, strict=False)


@functools.cache
def _field_names(shape: type[msgspec.Struct]) -> tuple[str, ...]:
    # Kept: msgspec evaluates every annotation for it, a quarter of a socket's opening.
    return tuple(field.encode_name for field in msgspec.structs.fields(shape))


def read_value(shape: type[Shape], value: Any) -> Shape:
    """A value that was JSON, checked.

    Raises:
        Error: ``bad_request``, naming the field.
    """
    return _check(value, shape, strict=True)


def _check(value: Any, shape: type[Shape], *, strict: bool) -> Shape:
    try:
        return msgspec.convert(value, shape, strict=strict, dec_hook=_convert)
    except (msgspec.ValidationError, RecursionError) as error:
        if error.__cause__ is not None:  # a defect of ours: msgspec takes a hook's for the client's
            raise error.__cause__ from None
        raise bad_request(f"{in_words(error)}{_choices(str(error), shape)}") from None


def _choices(message: str, shape: type[Shape]) -> str:
    """What a field may be that is one of a few words: msgspec tells only what it may not."""
    found = re.fullmatch(r"Invalid enum value .* - at `\$\.(\w+)`", message, re.DOTALL)
    if found is None:
        return ""
    schema = msgspec.json.schema(shape, schema_hook=describe)["$defs"][shape.__name__]
    field = schema["properties"].get(found[1], {})
    words = [word for one in (field, *field.get("anyOf", ())) for word in one.get("enum", ())]
    return f": it may be {', '.join(map(str, words))}" if words else ""


def _convert(kind: type, value: Any) -> Any:
    """What msgspec does not know by itself."""
    assert kind is Blocks
    if not isinstance(value, (str, list)):
        raise bad_request("prompt: must be text or a list of content blocks")
    return Blocks(check_content(value))


def describe(kind: type) -> dict[str, Any]:
    """The JSON schema of what msgspec does not know by itself."""
    assert kind is Blocks
    return {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/components/schemas/ContentBlock"},
            },
        ]
    }
