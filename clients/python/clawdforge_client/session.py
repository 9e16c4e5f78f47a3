"""A session: its turns, its log, its life."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from .errors import ClawdforgeError, TurnError
from .files import Files
from .frames import prompt_frame
from .live_session import ClientState, LiveSession
from .rest import without_none
from .shapes import Entry, Handlers, Json, Prompt, State, TurnResult
from .turn import Turn


class Session:
    """A handle of one session. ``Clawdforge.create_session`` and ``Clawdforge.session`` make it.

    Attributes:
        id: the session's id.
        files: the files in the session's folder, what the agent has changed, and undo.
    """

    def __init__(
        self,
        client: ClientState,
        session_id: str,
        handlers: Handlers,
    ) -> None:
        self.id = session_id
        self._rest = client.rest
        self._path = f"/sessions/{session_id}"
        self._live = LiveSession(client, session_id, handlers)
        self.files = Files(client.rest, self._path)

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    # Turns.

    def prompt(
        self,
        prompt: Prompt,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's name
        files: Sequence[str] = (),
        steer: bool = False,
    ) -> Turn:
        """Send a prompt. It is sent again after a lost connection, and never runs twice.

        Args:
            id: identifies the prompt in its session, also over restarts of this program: a prompt
                whose id the session has had returns that turn. By default a random id.
            files: tokens of ``Clawdforge.upload``.
            steer: add the prompt to the running turn, if the agent accepts it there.
        """
        feed = self._live.open_feed(self._live.last)
        turn = Turn(
            prompt_frame(prompt, prompt_id=id, files=files, steer=steer),
            feed,
            has_own_id=id is not None,
            cancel=self._cancel_turn,
            done=self._live.remove_turn,
        )
        self._live.add_turn(turn, feed)
        return turn

    async def ask(
        self, prompt: Prompt, *, retries: int = 0, reopen: bool = False, **options: Any
    ) -> TurnResult:
        """Send a prompt and wait for the end of its turn. Options as for `prompt`.

        Args:
            retries: how often a turn that has failed and may succeed (because the server was
                restarted, for example) is tried again, as a new turn. With an ``id``, the ids of
                the tries follow from it: a repeated call returns what the first one did.
            reopen: open the session again if it is closed.
        """
        own, tries = options.get("id"), 0
        while True:
            try:
                return await self.prompt(prompt, **options).result()
            except ClawdforgeError as error:
                if reopen and error.code == "session_closed":
                    await self.ensure_open()
                    continue
                if not isinstance(error, TurnError):
                    raise
                if retries <= 0 or not error.retryable:
                    raise
                retries -= 1
                tries += 1
                options["id"] = None if own is None else f"{own}~{tries}"  # that turn has failed

    async def cancel(self) -> bool:
        """Cancel the running turn. False if none is running."""
        reply = await self._rest.call("POST", f"{self._path}/cancel", {})
        return bool(reply["cancelled"])

    async def _cancel_turn(self, turn_index: int) -> bool:
        frame = {"type": "cancel", "id": secrets.token_hex(8), "turn_index": turn_index}
        try:
            await self._live.connection().command(frame)
        except ClawdforgeError as error:
            if error.code in ("not_found", "session_closed"):
                return False
            raise
        return True

    async def edit_queued(
        self, turn_index: int, *, prompt: Prompt | None = None, before: int | None = None
    ) -> list[Json]:
        """Change a queued prompt, or move it in front of another one. Returns the queue."""
        body = without_none({"prompt": prompt, "before": before})
        reply = await self._rest.call("PATCH", f"{self._path}/queue/{turn_index}", body)
        return list(reply["queued"])

    async def withdraw(self, turn_index: int) -> list[Json]:
        """Withdraw a queued prompt: the agent never receives it. Returns the queue."""
        reply = await self._rest.call("DELETE", f"{self._path}/queue/{turn_index}", repeat=False)
        return list(reply["queued"])

    # The log.

    async def entries(self, after: int | None = 0) -> AsyncIterator[Entry]:
        """Follow the log: the entries with a seq greater than *after*, each once and in order.

        The iteration survives lost connections and restarts, and ends when the session is closed.

        Args:
            after: 0 for the whole log, None for what happens from now on.
        """
        if after is None:
            after = await self._live.ready()
        feed = self._live.open_feed(after)
        try:
            while (entry := await feed.next()) is not None:
                yield entry
        finally:
            self._live.close_feed(feed)

    async def log(self, after: int = 0, limit: int | None = None) -> list[Entry]:
        """The entries that are in the log now."""
        found: list[Entry] = []
        while limit is None or len(found) < limit:
            page = await self._rest.call(
                "GET",
                f"{self._path}/events",
                params={"after": after, "limit": min(1000, (limit or 10**9) - len(found))},
            )
            found += page["entries"]
            if not page.get("has_more"):
                break
            after = found[-1]["seq"]
        return found

    # Settings.

    def set_mode(self, mode: str) -> None:
        """Set the agent's mode before the next prompt. If that fails, the prompt's turn fails."""
        self._live.connection().send({"type": "set_mode", "mode": mode})

    def set_model(self, model: str) -> None:
        """Set the agent's model before the next prompt. If that fails, the prompt's turn fails."""
        self._live.connection().send({"type": "set_model", "model": model})

    def set_config_option(self, key: str, value: str | bool) -> None:
        """Set an option of the agent before the next prompt."""
        frame = {"type": "set_config_option", "key": key, "value": value}
        self._live.connection().send(frame)

    async def update(self, **fields: Any) -> State:
        """Change ``meta``, ``permission``, ``elicitation``, ``ttl_secs`` and so on."""
        state = await self._rest.call("PATCH", self._path, fields)
        self._live.permission = state.get("permission", self._live.permission)
        return cast(State, state)

    # Requests of the agent, for programs that do not use handlers.

    async def answer_permission(self, request_id: str, option_id: str | None) -> None:
        """Answer a permission request with one of its options; None cancels it."""
        body = {"outcome": "cancelled"} if option_id is None else {"option_id": option_id}
        await self._rest.call("POST", f"{self._path}/permissions/{request_id}", body)

    async def answer_question(
        self, request_id: str, action: str, content: Json | None = None
    ) -> None:
        """Answer a question: *action* is ``accept``, ``decline`` or ``cancel``."""
        body = without_none({"action": action, "content": content})
        await self._rest.call("POST", f"{self._path}/elicitations/{request_id}", body)

    # Life.

    async def state(self) -> State:
        return cast(State, await self._rest.call("GET", self._path))

    async def mark_read(self, seq: int) -> int:
        """Note that the app has read the log up to *seq*. Returns the number of unread entries."""
        reply = await self._rest.call("POST", f"{self._path}/read", {"seq": seq}, repeat=True)
        return int(reply["unread"])

    async def close(self, *, purge: bool = False) -> None:
        """Close the session on the server: its turns are cancelled and its agent ends.

        Args:
            purge: also delete it now, with its log and its files.
        """
        await self._rest.call("DELETE", self._path, params={"purge": purge or None})
        await self.detach()

    async def detach(self) -> None:
        """Close this handle's socket. The session, its turns and its agent continue."""
        await self._live.close()

    async def reopen(self) -> State:
        """Open a closed session again."""
        return cast(State, await self._rest.call("POST", f"{self._path}/reopen", {}))

    async def ensure_open(self) -> State:
        """Open the session again if it is closed. Returns its state."""
        try:
            return await self.reopen()
        except ClawdforgeError as error:
            if error.code != "conflict":
                raise
            return await self.state()

    async def fork(self, turn_index: int | None = None, **options: Any) -> Session:
        """A new session that continues from the end of a turn, by default of the last one."""
        body = without_none({"turn_index": turn_index}) | options
        state = await self._rest.call("POST", f"{self._path}/fork", body)
        return Session(self._live.client, state["session_id"], self._live.handlers)

    async def export(self, format: str = "ndjson") -> bytes:  # noqa: A002 - the protocol's name
        """The session as ``ndjson``, ``markdown`` or ``html``."""
        params = {"format": format}
        _, data, _ = await self._rest.raw("GET", f"{self._path}/export", params=params)
        return data

    async def ticket(self) -> str:
        """A ticket with which a browser opens this session's socket, once, within 30 seconds."""
        return str((await self._rest.call("POST", f"{self._path}/ticket", {}))["ticket"])

    async def share(self, *, expires_in: int | None = None, label: str | None = None) -> Json:
        """A link with which anybody can read the session: ``{share_id, url, …}``."""
        body = without_none({"expires_in": expires_in, "label": label})
        return await self._rest.call("POST", f"{self._path}/shares", body)

    async def shares(self) -> list[Json]:
        return list((await self._rest.call("GET", f"{self._path}/shares"))["shares"])

    async def revoke_share(self, share_id: str) -> None:
        await self._rest.call("DELETE", f"{self._path}/shares/{share_id}")
