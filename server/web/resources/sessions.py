"""Sessions: create, list, read, change and close them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...acp.listing import decode_cursor, encode_cursor
from ...codec import dumps
from ...errors import bad_request
from ...sessions.listing import OPEN, SessionFilter
from ...sessions.options import OptionChanges
from ...sessions.remote_lists import ListedSession
from ...sessions.session import Session
from ..conditional import conditional_json
from ..context import CREDENTIAL, LOGGED_SESSION_ID, app_name_of, context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, PermissionMode, RetentionSecs, TtlSecs, doc
from ..new_session import CreateSession, session_request
from ..responses import raw_json_response
from ..session_state import (
    SESSION_EXAMPLE,
    SESSION_ID_EXAMPLE,
    STATE_EXAMPLE,
    SessionInfo,
    SessionResponse,
)

MAX_LIST = 1000
PATHS = frozenset(
    {"cwd", "additional_directories", "workspace", "sandbox", "env", "mcp_servers", "system"}
)
"""Fields of a state that shares do not get."""
STATES = frozenset({"idle", "running", "closed"})


class ListQuery(msgspec.Struct, frozen=True):
    """The sessions to list, and the part of each state."""

    include_closed: bool = False
    limit: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=MAX_LIST)] | msgspec.UnsetType,
        doc("The number of sessions in a response; by default all."),
    ] = msgspec.UNSET
    cursor: Annotated[str | None, doc("`next_cursor` of the page before.")] = None
    state: Annotated[
        str | None, doc("`idle`, `running` or `closed`, or several of them, separated by commas.")
    ] = None
    q: Annotated[
        Annotated[str, msgspec.Meta(max_length=1000)] | None,
        doc("A text in the title, in upper or lower case."),
    ] = None
    fields: Annotated[
        str | None,
        doc("The fields of each state besides `session_id`, separated by commas; by default all."),
    ] = None

    @property
    def wanted(self) -> SessionFilter:
        """The filter.

        Raises:
            Error: ``bad_request``; a state is unknown.
        """
        states = frozenset(self.state.split(",")) if self.state is not None else OPEN
        if self.state is None and self.include_closed:
            states = STATES
        if not states <= STATES:
            raise bad_request("state: idle, running or closed, or several, separated by commas")
        return SessionFilter(states, self.q or None)


class UpdateSession(OptionChanges, frozen=True, kw_only=True):
    """The changes; a field that is missing stays as it is."""

    meta: Annotated[
        dict[str, Any] | msgspec.UnsetType,
        doc("Merged into the stored object; null removes a key."),
    ] = msgspec.UNSET
    permission: PermissionMode | msgspec.UnsetType = msgspec.UNSET
    ttl_secs: TtlSecs = msgspec.UNSET
    retention_secs: RetentionSecs = msgspec.UNSET


class SessionList(msgspec.Struct, kw_only=True):
    """Sessions, newest first."""

    count: Annotated[Count, doc("The number of sessions in this response.")]
    sessions: list[SessionInfo]
    next_cursor: Annotated[str, doc("`cursor` of the next page; absent at the end.")] | (
        msgspec.UnsetType
    ) = msgspec.UNSET


class SessionClosed(msgspec.Struct, kw_only=True):
    """The session is closed."""

    session_id: str
    already_closed: bool | msgspec.UnsetType = msgspec.UNSET
    purged: bool | msgspec.UnsetType = msgspec.UNSET


class CloseQuery(msgspec.Struct, frozen=True):
    """The query of a close."""

    purge: Annotated[bool, doc("Delete it now, with its log, its files and its uploads.")] = False


@Endpoint(
    "POST",
    "/sessions",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Create a session",
    description="The response does not wait for the agent: if it fails to start, the first turn"
    " fails.",
    waits=("body",),
    request_example={"agent": "demo", "meta": {"channel": "42"}},
    example=STATE_EXAMPLE,
    failures=("not_supported", "agent_unavailable", "pool_full", "draining"),
)
async def create_session(request: web.Request, body: CreateSession) -> SessionResponse:
    session = await context_of(request).sessions.create(app_name_of(request), session_request(body))
    return SessionResponse(**session.view())


@Endpoint(
    "GET",
    "/sessions",
    tag=Tag.SESSIONS,
    scope="read",
    summary="List sessions",
    description="The newest first. With `limit` the response has a `next_cursor`, unless it is the"
    " last page. It has an `ETag`, and is compressed for a client that accepts gzip.",
    waits=("response",),
    example={"ok": True, "count": 1, "sessions": [SESSION_EXAMPLE]},
    statuses={304: "The client has the same list, as `If-None-Match` says."},
)
async def list_sessions(
    request: web.Request, query: ListQuery
) -> Annotated[web.StreamResponse, SessionList]:
    before = None if query.cursor is None else decode_cursor(query.cursor)
    limit = None if query.limit is msgspec.UNSET else query.limit
    more = None if limit is None else limit + 1  # one more: is it the last page?
    listed = context_of(request).sessions.listing.page(
        app_name_of(request), query.wanted, before=before, limit=more
    )
    return await conditional_json(request, _encoded_list(listed, limit, query.fields))


async def _encoded_list(
    listed: AsyncIterator[Session | ListedSession], limit: int | None, fields: str | None
) -> AsyncIterator[bytes]:
    names = None if fields is None else frozenset({"session_id", *fields.split(",")})
    count, last, has_more = 0, 0, False
    yield b'{"ok":true,"sessions":['
    async for session in listed:
        if count == limit:
            has_more = True
            break
        view = session.view()
        if names is None:
            view = msgspec.to_builtins(SessionResponse(**view))
        else:
            view = {name: value for name, value in view.items() if name in names}
        yield (b"," if count else b"") + dumps(view)
        count, last = count + 1, session.row.n
    cursor = b',"next_cursor":%b' % dumps(encode_cursor(last)) if has_more else b""
    yield b'],"count":%d%b}' % (count, cursor)


@Endpoint(
    "GET",
    "/sessions/{session_id}",
    tag=Tag.SESSIONS,
    scope="read",
    summary="Get a session's state",
    description="A share gets it without the paths of the server.",
    is_shared=True,
    example=STATE_EXAMPLE,
)
async def get_session(request: web.Request, session: Session) -> SessionResponse | web.Response:
    if request[CREDENTIAL].session_id is not None:
        view = {key: value for key, value in session.view().items() if key not in PATHS}
        return raw_json_response(dumps({"ok": True, **view}))
    return SessionResponse(**session.view())


@Endpoint(
    "PATCH",
    "/sessions/{session_id}",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Change a session",
    description="A new `permission` applies to the agent's next requests; those that wait for a"
    " client continue to wait. A new `elicitation` takes effect with the next prompt.",
    waits=("body",),
    request_example={"meta": {"title": "My first one"}},
    example=STATE_EXAMPLE,
    failures=("not_supported", "session_closed"),
)
async def update_session(
    request: web.Request, session: Session, body: UpdateSession
) -> SessionResponse:
    if body == UpdateSession():
        known = ", ".join(UpdateSession.__struct_fields__)
        raise bad_request(f"nothing to change: the body may have {known}")
    await session.editor.change(
        meta=body.meta or None,
        permission=body.permission or None,
        options=body.given(),
        ttl_secs=body.ttl_secs,
        retention_secs=body.retention_secs,
    )
    return SessionResponse(**session.view())


@Endpoint(
    "DELETE",
    "/sessions/{session_id}",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Close a session",
    description="A running turn is stopped, and the session's sockets are closed. With `purge`,"
    " the session is also deleted, with everything that belongs only to it.",
    example={"ok": True, "session_id": SESSION_ID_EXAMPLE},
)
async def close_own_session(
    request: web.Request, session: Session, query: CloseQuery
) -> SessionClosed:
    sessions = context_of(request).sessions
    if query.purge:
        is_first = await sessions.remover.purge(session)
        return msgspec.structs.replace(_closed(session.id, is_first), purged=True)
    is_first = await sessions.close(session, "client")
    return _closed(session.id, is_first)


@Endpoint(
    "DELETE",
    "/admin/sessions/{session_id}",
    tag=Tag.OPERATOR,
    summary="Close a session of any app",
    auth="admin",
    example={"ok": True, "session_id": SESSION_ID_EXAMPLE},
)
async def close_any_session(request: web.Request) -> SessionClosed:
    session_id = request[LOGGED_SESSION_ID] = request.match_info["session_id"]
    is_first = await context_of(request).sessions.close_by_id(session_id, "admin")
    return _closed(session_id, is_first)


def _closed(session_id: str, is_first: bool) -> SessionClosed:
    return SessionClosed(session_id=session_id, already_closed=msgspec.UNSET if is_first else True)
