"""The client of one app."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import aiohttp

from .closeable import Closeable
from .errors import RunError
from .live_session import ClientState
from .notifications import Push, Webhook
from .rest import Rest, without_none
from .runs import BackgroundRun, RunStream, result_of, run_body
from .session import Session
from .shapes import (
    Handlers,
    Json,
    Permission,
    PermissionHandler,
    QuestionHandler,
    RunResult,
    State,
)
from .watch import Watch


class Clawdforge(Closeable):
    """A client of a clawdforge server, for one app.

    Use it as ``async with Clawdforge(url, token) as forge``, or call :meth:`close` at the end.
    Closing the client closes its sockets; sessions and turns continue. It may be made before the
    event loop runs, and belongs to the loop in which it is first used.

    Args:
        url: the server's address; a path of a site is possible.
        token: the app's token.
        http: an aiohttp session to use instead of an own one. It is not closed.
        retry_secs: how long a call is repeated while the server cannot be reached or is stopping.
            Only calls that may be repeated without harm are.
        give_up_secs: how long turns and logs wait for a server that cannot be reached.
        linger_secs: how long a session's socket stays open without a use.

    Attributes:
        webhook: the app's webhook.
        push: its push subscriptions.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        http: aiohttp.ClientSession | None = None,
        retry_secs: float = 30,
        give_up_secs: float = 300,
        linger_secs: float = 30,
    ) -> None:
        self._rest = Rest(http, url, token, retry_secs=retry_secs)
        self._state = ClientState(self._rest, give_up_secs, linger_secs)
        self._watches: WeakSet[Watch] = WeakSet()
        self.webhook = Webhook(self._rest)
        self.push = Push(self._rest)

    def set_token(self, token: str) -> None:
        """Use another token of the app, for example after the former one was revoked.

        Open sockets stay open until the server closes them, and are then opened with this token.
        """
        self._rest.set_token(token)

    async def close(self) -> None:
        """Close all sockets. Readers end with an error of code ``closed``."""
        for session in list(self._state.live_sessions):
            await session.close()
        for watch in list(self._watches):
            await watch.close()
        await self._rest.close()

    # Sessions.

    async def create_session(
        self,
        *,
        agent: str | None = None,
        model: str | None = None,
        system: str | None = None,
        permission: Permission | None = None,
        meta: Json | None = None,
        on_permission: PermissionHandler | None = None,
        on_question: QuestionHandler | None = None,
        **options: Any,
    ) -> Session:
        """Create a session.

        Args:
            on_permission: answers the agent's permission requests; ``permission`` is then ``ask``
                by default.
            on_question: answers the agent's questions; ``elicitation`` is then ``ask`` by default.
            options: further fields of ``POST /sessions``: ``mode``, ``cwd``, ``mcp_servers``,
                ``env``, ``ttl_secs`` and so on.
        """
        if on_permission is not None and permission is None:
            permission = "ask"
        if on_question is not None:
            options.setdefault("elicitation", "ask")
        body = {
            **without_none(
                {
                    "agent": agent,
                    "model": model,
                    "system": system,
                    "permission": permission,
                    "meta": meta,
                }
            ),
            **options,
        }
        state = await self._rest.call("POST", "/sessions", body)
        return self.session(
            state["session_id"], on_permission=on_permission, on_question=on_question
        )

    def session(
        self,
        session_id: str,
        *,
        on_permission: PermissionHandler | None = None,
        on_question: QuestionHandler | None = None,
    ) -> Session:
        """A handle of an existing session. This makes no call."""
        if not re.fullmatch(r"[0-9A-Za-z-]+", session_id):
            raise ValueError(f"not a session id: {session_id!r}")
        return Session(self._state, session_id, Handlers(on_permission, on_question))

    def watch(self, *, fields: Sequence[str] | None = None) -> Watch:
        """The app's list of sessions, and the logs of any number of them, over one socket.

        Args:
            fields: of each state in the list; all by default.
        """
        watch = Watch(self._rest, fields, self._state.give_up_secs)
        self._watches.add(watch)
        return watch

    async def sessions(
        self,
        *,
        state: str | Sequence[str] | None = None,
        q: str | None = None,
        fields: Sequence[str] | None = None,
        include_closed: bool = False,
        page: int = 100,
    ) -> AsyncIterator[State]:
        """The states of the app's sessions, newest first; those that are open by default.

        Args:
            q: a text in the title.
            fields: the fields of each state.
            page: how many states each request gets.
        """
        cursor: str | None = None
        while True:
            reply = await self._rest.call(
                "GET",
                "/sessions",
                params={
                    "state": state,
                    "q": q,
                    "fields": fields,
                    "include_closed": include_closed or None,
                    "limit": page,
                    "cursor": cursor,
                },
            )
            for found in reply["sessions"]:
                yield cast(State, found)
            cursor = reply.get("next_cursor")
            if cursor is None:
                return

    async def search(self, q: str, *, limit: int = 20) -> list[Json]:
        """Find what was said: ``[{session_id, turn_index, seq, title, snippet}]``.

        A hit in what a subagent said also has ``subagent``.
        """
        reply = await self._rest.call("GET", "/search", params={"q": q, "limit": limit})
        return list(reply["hits"])

    async def import_session(self, ndjson: bytes) -> Session:
        """A new, closed session with the entries of an export."""
        state = await self._rest.call("POST", "/sessions/import", ndjson)
        return self.session(state["session_id"])

    # Other calls of the app.

    async def agents(self) -> list[Json]:
        """``[{name, installed, default}]``."""
        return list((await self._rest.call("GET", "/agents"))["agents"])

    async def usage(
        self, *, by: str = "day", since: str | float | None = None, until: str | float | None = None
    ) -> list[Json]:
        """Tokens and costs by ``day``, ``session``, ``agent`` or ``model``."""
        params = {"by": by, "from": since, "to": until}
        return list((await self._rest.call("GET", "/usage", params=params))["rows"])

    async def budget(self) -> Json:
        """``{limit_name: {limit, used, remaining, resets_at}}``; empty without a budget."""
        return dict((await self._rest.call("GET", "/usage")).get("budget") or {})

    async def folders(self, path: str | None = None) -> list[Json]:
        """``[{path, repository}]``: the folders below *path* that can be a session's ``cwd``.

        Args:
            path: by default the folders that the operator allows.
        """
        reply = await self._rest.call("GET", "/folders", params={"path": path})
        return list(reply["folders"])

    async def upload(
        self, content: bytes | Path, *, name: str | None = None, ttl_secs: int | None = None
    ) -> str:
        """Upload a file for prompts and runs. Returns its token.

        Args:
            content: the file's bytes, or the path of a local file.
            name: the file's name; by default the name of the local file.
        """
        filename = name or (content.name if isinstance(content, Path) else "file")

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData()
            body = content.open("rb") if isinstance(content, Path) else content
            data.add_field("file", body, filename=filename, content_type="application/octet-stream")
            return data

        reply = await self._rest.call("POST", "/files", form, params={"ttl_secs": ttl_secs})
        return str(reply["file_token"])

    # Runs.

    async def run(self, prompt: str, *, key: str | None = None, **options: Any) -> RunResult:
        """Run one prompt without a session, and wait for the answer.

        Without *key*, the run ends if the connection is lost or this call is cancelled.

        Args:
            key: identifies the run: a repeated call with the same key runs nothing and gets the
                same response. With it, the call is repeated over lost connections, and the run
                goes on if this call is cancelled.
            options: ``agent``, ``model``, ``system``, ``schema``, ``timeout_secs``, ``include`` …

        Raises:
            RunError: the run has failed.
        """
        headers = None if key is None else {"Idempotency-Key": key}
        body = run_body(prompt, **options)
        reply = await self._rest.call(
            "POST", "/run", body, headers=headers, repeat=key is not None, kind=RunError
        )
        return result_of(reply)

    def run_stream(self, prompt: str, **options: Any) -> RunStream:
        """Run one prompt, and receive the agent's updates as they arrive."""
        return RunStream(self._rest, run_body(prompt, **options))

    async def run_in_background(
        self, prompt: str, *, key: str | None = None, **options: Any
    ) -> BackgroundRun:
        """Start a run that continues without its caller."""
        headers = None if key is None else {"Idempotency-Key": key}
        body = {**run_body(prompt, **options), "background": True}
        reply = await self._rest.call(
            "POST", "/run", body, headers=headers, repeat=key is not None, kind=RunError
        )
        return self.background_run(str(reply["run_id"]))

    def background_run(self, run_id: str) -> BackgroundRun:
        """A background run by its id. This makes no call."""
        return BackgroundRun(self._rest, run_id)
