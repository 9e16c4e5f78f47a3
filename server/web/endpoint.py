"""The declaration of a REST call: route, request, response, failures and description in one place.

A module of ``web/resources`` declares each call like this::

    @Endpoint(
        "GET", "/sessions", tag=Tag.SESSIONS, scope="read", summary="List sessions", example={...}
    )
    async def list_sessions(request: web.Request, query: SessionFilter) -> SessionList: ...

``/openapi.json`` is derived from these declarations (``openapi.py``). The types come from the
signature of the handler. A handler may have these parameters besides the request:

- ``session``: the session that the path names, if it belongs to the app;
- ``body``, ``query``, ``headers``: msgspec structs; the values are checked before the call.

The return annotation is the struct of a success. If the handler writes the response itself, it is
``Annotated[web.Response, Struct]``; if it can also return another response, ``Struct |
web.Response``.

Every JSON object begins with ``ok``, which the structs leave out (``responses.py``).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, get_args, get_type_hints

import msgspec
from aiohttp import web

from ..auth.scopes import Scope
from ..sessions.remote_session import ViewedSession
from .context import (
    CREDENTIAL,
    authenticate_app,
    require_admin,
    session_of,
    viewed_session_of,
    waiting,
)
from .request_values import read_body, read_headers, read_query
from .responses import json_response
from .sse import wants_stream

JSON = "application/json"

Wait = Literal["body", "work", "response", "stream", "socket"]
"""The reasons for a request to wait: the client has not sent its whole body; a turn or a run has
not ended; the client reads a long response slowly; the log has no new entry; a socket is open."""


class Tag(enum.StrEnum):
    """The groups of calls in the description, in its order."""

    RUNS = "One prompt, one answer"
    FILES = "Files"
    SESSIONS = "Sessions"
    TURNS = "Turns"
    LOG = "The log"
    WEBSOCKETS = "WebSockets"
    NOTIFICATIONS = "Without a socket"
    OPENAI = "For OpenAI's clients"
    OPERATOR = "For the operator"
    MONITORING = "Monitoring"


EndpointHandler = Callable[..., Awaitable[Any]]


async def _not_declared(request: web.Request) -> web.StreamResponse:
    raise NotImplementedError(request.path)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One REST call; used as the decorator of its handler.

    Attributes:
        auth: the token that the call needs.
        scope: what an app's token must allow; None if the call needs no app's token.
        auth_in_handler: the handler authenticates the request itself, because the credential may
            also arrive in another way than a header; it also reads the query.
        is_shared: a share of the session may make the call, too.
        waits: what a request may wait for once its token is accepted. A revocation of the token
            ends that wait (:meth:`Credential.waiting`).
        form: the parts of a ``multipart/form-data`` body, which the handler reads.
        route: the path for the router, if a parameter may contain slashes.
        upload: the content type of a body that is not JSON, which the handler reads.
        request_example: a body that gets the response *example*.
        has_ok: whether the JSON of a success begins with ``ok``.
        media: other content types of a success, each with an example.
        failures: codes of the call's own failures. Those of *auth*, of the body and of every call
            are added by ``openapi.py``.
        failure_results: failures with fields of their own, by status.
        own_failure: the shape of the call's failures, if it is that of another API.
        statuses: other statuses, with their meaning.
        handler: the decorated function. Its signature determines the attributes below.
        takes_session: whether the handler gets the session that the path names.
        is_stream: whether that may be another node's session, if the client wants a stream.
        result: the JSON of a success; None if a success has no JSON.
    """

    method: str
    path: str
    _: dataclasses.KW_ONLY
    tag: Tag
    summary: str
    scope: Scope | None = None
    description: str = ""
    auth: Literal["app", "admin"] | None = "app"
    auth_in_handler: bool = False
    is_shared: bool = False
    waits: tuple[Wait, ...] = ()
    form: type[msgspec.Struct] | None = None
    route: str = ""
    upload: str = ""
    request_example: Any = None
    example: Any = None
    has_ok: bool = True
    media: Mapping[str, str] = dataclasses.field(default_factory=dict)
    failures: tuple[str, ...] = ()
    failure_results: Mapping[int, type[msgspec.Struct]] = dataclasses.field(default_factory=dict)
    own_failure: type[msgspec.Struct] | None = None
    statuses: Mapping[int, str] = dataclasses.field(default_factory=dict)
    handler: EndpointHandler = _not_declared
    takes_session: bool = False
    is_stream: bool = False
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    headers: type[msgspec.Struct] | None = None
    result: type[msgspec.Struct] | None = None

    def __post_init__(self) -> None:
        if (self.auth == "app") is (self.scope is None):
            raise TypeError(
                f"{self.method} {self.path}: calls of apps, and no others, need a scope"
            )

    def __call__(self, handler: EndpointHandler) -> Endpoint:
        """Return this endpoint with *handler* and the types of its signature."""
        hints = get_type_hints(handler, include_extras=True)
        types = {name: hints[name] for name in ("body", "query", "headers") if name in hints}
        return dataclasses.replace(
            self,
            handler=handler,
            takes_session="session" in hints,
            is_stream=hints.get("session") is ViewedSession,
            result=_struct_in(hints["return"]),
            **types,
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve *request*: authenticate it, check its values, call the handler."""
        # No local variable holds the arguments: a handler that waits can release a large body.
        call = self.handler(request, **await self._arguments(request))
        result = await call
        return result if isinstance(result, web.StreamResponse) else json_response(result)

    async def _arguments(self, request: web.Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self.auth_in_handler:
            return arguments
        if self.takes_session:
            find = viewed_session_of if self.is_stream and wants_stream(request) else session_of
            arguments["session"] = await find(request, is_shared=self.is_shared)
        elif self.auth == "admin":
            require_admin(request)
        elif self.auth == "app":
            authenticate_app(request)
        self.check_scope(request)
        if self.body is not None:
            arguments["body"] = await _check_body(request, self.body)
        if self.query is not None:
            arguments["query"] = read_query(request, self.query)
        if self.headers is not None:
            arguments["headers"] = read_headers(request, self.headers)
        return arguments

    def check_scope(self, request: web.Request) -> None:
        """Check that the token of *request*, if it has one, allows the call.

        Raises:
            Error: ``forbidden``.
        """
        if self.scope is not None and (credential := request.get(CREDENTIAL)) is not None:
            credential.require(self.scope)

    def add_to(self, router: web.UrlDispatcher) -> None:
        path = self.route or self.path
        if self.method == "GET":
            router.add_get(path, self.handle, allow_head="socket" not in self.waits)
        else:
            router.add_route(self.method, path, self.handle)


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    """Return the struct in a return annotation, also in a union or in ``Annotated``."""
    for part in get_args(hint) or (hint,):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return part
    return None


async def _check_body(request: web.Request, struct: type[msgspec.Struct]) -> msgspec.Struct:
    if CREDENTIAL not in request:  # the operator, whose token cannot be revoked
        return await read_body(request, struct)
    async with waiting(request):
        return await read_body(request, struct)
