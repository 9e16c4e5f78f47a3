"""The full-text search over everything that was said in an app's sessions."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...codec import loads
from ...search.index import Hit
from ..context import app_name_of, context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, SubagentInfo, TurnIndex, doc

MAX_QUERY_CHARACTERS = 1000
MAX_HITS = 100


class SearchQuery(msgspec.Struct, frozen=True):
    """A search."""

    q: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=MAX_QUERY_CHARACTERS),
        doc("Words that a text must have, and phrases in quotation marks."),
    ]
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_HITS)] = 20


class SearchHit(msgspec.Struct, kw_only=True):
    """A prompt or a message with all words of a search."""

    session_id: str
    turn_index: TurnIndex
    seq: Annotated[Count, doc("The entry of the log with which the text begins.")]
    title: Annotated[str | None, doc("`meta.title` of the session.")]
    snippet: Annotated[str, doc("A part of the text.")]
    subagent: Annotated[
        SubagentInfo | msgspec.UnsetType,
        doc("The subagent that said it; absent if the client or the agent itself did."),
    ] = msgspec.UNSET


class SearchHits(msgspec.Struct, kw_only=True):
    """The hits of a search, newest first."""

    hits: list[SearchHit]


@Endpoint(
    "GET",
    "/search",
    tag=Tag.SESSIONS,
    scope="read",
    summary="Search everything that was said",
    description="Prompts and messages of the agents in all sessions of the app, also closed ones. A"
    " text can be found about a second after its turn has ended. A hit in what a subagent said has"
    " `subagent`.",
    example={"ok": True, "hits": []},
    failures=("rate_limited",),
)
async def search(request: web.Request, query: SearchQuery) -> SearchHits:
    hits = await context_of(request).search.find(app_name_of(request), query.q, query.limit)
    return SearchHits(
        hits=[
            SearchHit(
                session_id=hit.session_id,
                turn_index=hit.turn_index,
                seq=hit.seq,
                title=_title(loads(meta)),
                snippet=hit.snippet,
                subagent=_subagent(hit),
            )
            for hit, meta in hits
        ]
    )


def _subagent(hit: Hit) -> SubagentInfo | msgspec.UnsetType:
    if hit.subagent is None:
        return msgspec.UNSET
    return msgspec.convert(hit.subagent, SubagentInfo)


def _title(meta: dict[str, Any]) -> str | None:
    title = meta.get("title")
    return title if isinstance(title, str) else None
