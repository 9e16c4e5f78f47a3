"""The parts of a running server that request handlers use, and the state of one request."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager

from aiohttp import web

from ..agents.logins import AgentLogins
from ..auth.credential import Credential
from ..auth.shares import is_share
from ..auth.tokens import TokenRegistry
from ..config import Settings
from ..errors import Error, ErrorCode
from ..limits import ByteBudget
from ..metrics import Metrics
from ..outbox.outbox import AlertOutbox
from ..reload.reloader import Reloader
from ..runs.jobs import RunJobs
from ..runs.runner import Runner
from ..search.indexer import Indexer
from ..sessions.registry import SessionRegistry
from ..sessions.remote_session import ViewedSession
from ..sessions.session import Session
from ..storage.audit import AuditQueries
from ..storage.usage import UsageQueries
from ..tasks import Supervisor
from ..uploads.files import FileStore
from ..workspace.files import WorkspaceFiles
from ..ws.hub import Hub
from .control_socket import is_operator
from .health import HealthMonitor
from .request_body import APP_NAME
from .request_handler import BoundedRequestHandler
from .request_origin import bearer
from .responses import streamed_json_response
from .sse import EventStream, event_stream


@dataclasses.dataclass(frozen=True, slots=True)
class ServerContext:
    """The parts of a running server. ``app.py`` creates them; request handlers use them."""

    settings: Settings
    tokens: TokenRegistry
    sessions: SessionRegistry
    logins: AgentLogins
    files: FileStore
    workspace: WorkspaceFiles
    sockets: Hub
    health: HealthMonitor
    metrics: Metrics
    runner: Runner
    jobs: RunJobs
    supervisor: Supervisor
    long_replies: ByteBudget
    search: Indexer
    audit: AuditQueries
    usage: UsageQueries
    outbox: AlertOutbox
    reloader: Reloader
    stream_keep_alive_secs: float
    started_at: float = dataclasses.field(default_factory=time.time)


DISCONNECT_POLL_SECS = 0.1

CONTEXT = web.AppKey("context", ServerContext)

# The state of a request, with APP_NAME of `request_body.py`. The access log shows it.
REQUEST_ID = web.RequestKey("request_id", str)
PROMPT_ID = web.RequestKey("prompt_id", str)
"""The id that another node of a cluster has given to a prompt without one."""
CREDENTIAL = web.RequestKey("credential", Credential)
LOGGED_SESSION_ID = web.RequestKey("session_id", str)
LOGGED_TURN_INDEX = web.RequestKey("turn_index", int)


def context_of(request: web.Request) -> ServerContext:
    return request.app[CONTEXT]


def authenticate_app(request: web.Request) -> str:
    """Authenticate *request* by its bearer token.

    Returns:
        The name of the app.

    Raises:
        Error: ``unauthorized``.
    """
    return record_credential(
        request, context_of(request).tokens.authenticate(bearer(request), request.remote)
    )


def authenticate_reader(request: web.Request, session_id: str) -> str:
    """Authenticate a request that reads one session, by a token or by a share of the session.

    Returns:
        The name of the app.

    Raises:
        Error: ``unauthorized``, or ``not_found`` for a share of another session.
    """
    secret = bearer(request)
    if secret is None or not is_share(secret):
        return authenticate_app(request)
    shares = context_of(request).tokens.shares
    return record_credential(request, shares.authenticate(secret, session_id))


def app_name_of(request: web.Request) -> str:
    """Return the name of the app that *request* was authenticated for."""
    return request[APP_NAME]


def record_credential(request: web.Request, credential: Credential) -> str:
    """Record the credential of *request* for the handler and the log, and lift the read limits.

    Returns:
        The name of the app.
    """
    request[CREDENTIAL] = credential
    request[APP_NAME] = credential.app_name
    if isinstance(request.protocol, BoundedRequestHandler):
        request.protocol.lift_limits()
    return credential.app_name


def waiting(request: web.Request) -> AbstractAsyncContextManager[None]:
    """Return a block in which the request waits: see :meth:`Credential.waiting`."""
    return request[CREDENTIAL].waiting()


def is_disconnected(request: web.Request) -> bool:
    """Return whether the client has disconnected: aiohttp only removes the transport."""
    return request.transport is None or request.transport.is_closing()


def require_admin(request: web.Request) -> None:
    """Check that *request* has the admin token, or came through the operator's socket.

    Raises:
        Error: ``unauthorized``, or ``forbidden`` for an app's token.
    """
    tokens = context_of(request).tokens
    if not (is_operator(request) or tokens.is_admin(bearer(request))):
        authenticate_app(request)
        raise Error(ErrorCode.FORBIDDEN, "this needs the admin token")


async def session_of(request: web.Request, *, is_shared: bool = False) -> Session:
    """Authenticate *request*, and return the session that its path names.

    Args:
        is_shared: whether a share of the session may make the request.

    Raises:
        Error: ``unauthorized``, or ``not_found`` also for another app's session.
    """
    return await context_of(request).sessions.get(*_authenticated(request, is_shared=is_shared))


async def viewed_session_of(request: web.Request, *, is_shared: bool = False) -> ViewedSession:
    """As :func:`session_of`, but also a session that another node of the cluster runs."""
    authenticated = _authenticated(request, is_shared=is_shared)
    return await context_of(request).sessions.get_viewed(*authenticated)


def _authenticated(request: web.Request, *, is_shared: bool) -> tuple[str, str]:
    """Authenticate *request*; return the id of the session in its path, and the app."""
    session_id = request.match_info["session_id"]
    app_name = authenticate_reader(request, session_id) if is_shared else authenticate_app(request)
    request[LOGGED_SESSION_ID] = session_id
    return session_id, app_name


async def stream_json(
    request: web.Request,
    pieces: AsyncIterator[bytes],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    compress: bool = False,
) -> web.StreamResponse:
    """Send JSON of any length: see :func:`responses.streamed_json_response`."""
    stall_timeout = context_of(request).settings.stall_timeout_secs
    return await streamed_json_response(
        request,
        pieces,
        stall_timeout,
        waiting(request),
        status=status,
        headers=headers,
        compress=compress,
    )


def stream_events(request: web.Request) -> AbstractAsyncContextManager[EventStream]:
    """Return a block in which server-sent events are written: see :func:`sse.event_stream`."""
    context = context_of(request)
    return event_stream(
        request,
        request[CREDENTIAL],
        stall_timeout=context.settings.stall_timeout_secs,
        keep_alive_secs=context.stream_keep_alive_secs,
    )
