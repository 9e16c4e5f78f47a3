"""What the routes work with: the house's parts, and the keys to them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from ..auth.credential import Credential, unauthorized
from ..auth.tokens import TokenRegistry
from ..codec import dumps
from ..config import Settings
from ..errors import Error, session_closed
from ..metrics import Metrics
from ..runs.runner import Runner
from ..sessions.registry import SessionRegistry
from ..tasks import Supervisor
from ..uploads.files import FileStore, prepend_file_paths
from ..ws.hub import Hub
from . import bodies
from .bodies import APP
from .control_socket import is_operator
from .health import Health
from .listener import BoundedRequestHandler
from .request_origin import bearer

__all__ = [
    "APP",
    "CONTEXT",
    "CREDENTIAL",
    "REQUEST_ID",
    "SESSION",
    "TURN",
    "ServerContext",
    "admit",
    "app_of",
    "body_of",
    "prompt",
    "require_admin",
    "services_of",
    "session_of",
    "waiting",
]

if TYPE_CHECKING:
    from ..sessions.session import Session
    from ..sessions.turns import Turn


@dataclasses.dataclass(frozen=True, slots=True)
class ServerContext:
    """The parts of a running server; made by ``app.py``, passed to the routes."""

    settings: Settings
    tokens: TokenRegistry
    sessions: SessionRegistry
    files: FileStore
    sockets: Hub
    health: Health
    metrics: Metrics
    runner: Runner
    supervisor: Supervisor
    started_at: float = dataclasses.field(default_factory=time.time)


CONTEXT = web.AppKey("services", ServerContext)

# What a request turns out to be about, with APP, for its line in the log.
REQUEST_ID = web.RequestKey("request_id", str)
CREDENTIAL = web.RequestKey("credential", Credential)
SESSION = web.RequestKey("session", str)
TURN = web.RequestKey("turn", int)


def services_of(request: web.Request) -> ServerContext:
    return request.app[CONTEXT]


Shape = TypeVar("Shape", bound=msgspec.Struct)


def app_of(request: web.Request) -> str:
    """The app that asks.

    Raises:
        Error: ``unauthorized``.
    """
    return admit(request, services_of(request).tokens.admit(bearer(request), request.remote))


def admit(request: web.Request, credential: Credential) -> str:
    """Note what the request was admitted with; from then on a revocation reaches it."""
    request[CREDENTIAL] = credential
    request[APP] = credential.app_name
    if isinstance(request.protocol, BoundedRequestHandler):
        request.protocol.lift_limits()
    return credential.app_name


def waiting(request: web.Request) -> AbstractAsyncContextManager[None]:
    """A block in which the request waits: see :meth:`Credential.waiting`."""
    return request[CREDENTIAL].waiting()


async def body_of(request: web.Request, shape: type[Shape]) -> Shape:
    """The body of an app's request; the client may take its time to send it.

    Raises:
        Error: what :func:`bodies.read_body` raises, or ``unauthorized``.
    """
    async with waiting(request):
        return await bodies.read_body(request, shape)


def require_admin(request: web.Request) -> None:
    """Let only the operator pass: by the admin's token, or by the socket in the data folder.

    Raises:
        Error: ``unauthorized``, or ``forbidden`` for an app's token.
    """
    tokens = services_of(request).tokens
    if not (is_operator(request) or tokens.is_admin(bearer(request))):
        app_of(request)
        raise Error("forbidden", "this needs the admin token")


async def session_of(request: web.Request) -> Session:
    """The session that the path names, if it is the asking app's."""
    app_name = app_of(request)
    session_id = request.match_info["session_id"]
    request[SESSION] = session_id
    return await services_of(request).sessions.get(session_id, app_name)


async def prompt(
    request: web.Request,
    session: Session,
    blocks: list[dict[str, Any]],
    files: Sequence[str],
    *,
    client_id: str | None,
    timeout: float | None = None,
) -> tuple[Turn, bool]:
    """Prompt *session* with checked content blocks, and with its app's uploads before them.

    Returns:
        The turn, and whether that client id had it already.

    Raises:
        Error: what :meth:`FileStore.paths` and :meth:`Session.prompt` raise, or ``unauthorized``.
    """
    if files:  # a repeated prompt need not have them any more, nor a closed session
        if (turn := await session.turn_of(client_id)) is not None:
            return turn, True
        if session.is_closed:
            raise session_closed()
    paths = await services_of(request).files.paths(session.row.app_name, files)
    credential = request[CREDENTIAL]
    credential.check()
    turn, known = await session.prompt(
        dumps(prepend_file_paths(blocks, paths)),
        request_id=request[REQUEST_ID],
        client_id=client_id,
        timeout=timeout,
    )
    if credential.is_revoked:  # while it was being stored
        if not known:  # else it may be a turn of the name's next token
            session.cancel(turn.index)
        raise unauthorized()
    return turn, known
