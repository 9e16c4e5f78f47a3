"""One prompt and what the agent does with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from .errors import ClawdforgeError, TurnError
from .feed import Feed
from .shapes import Entry, Json, TurnResult, text_of


class Turn:
    """A turn. ``async for entry in turn`` iterates over its entries up to its ``turn_end``.

    Each entry is delivered once, whatever happens to the connection or the server. A second
    iteration continues where the first one has stopped.

    Attributes:
        id: the prompt's id. A prompt with the same id never runs twice in its session.
        index: the turn's number; None until the prompt is accepted.
        duplicate: whether the server had the prompt already.
        steered: whether the prompt was added to a turn that was running.
    """

    def __init__(
        self,
        frame: Json,
        feed: Feed,
        *,
        has_own_id: bool,
        cancel: Callable[[int], Awaitable[bool]],
        done: Callable[[Turn], None],
    ) -> None:
        self.frame = frame
        self.id = str(frame["id"])
        self.index: int | None = None
        self.duplicate = False
        self.steered = False
        self._feed = feed
        self._has_own_id = has_own_id
        self._cancel = cancel
        self._done = done
        self._accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._texts: list[str] = []
        self._end: Entry | None = None

    # The connection's side.

    def mark_accepted(self, frame: Mapping[str, Any], *, resent: bool) -> None:
        if self._accepted.done():
            return
        self.index = int(frame["turn_index"])
        self.duplicate = bool(frame.get("duplicate")) and not resent
        self.steered = bool(frame.get("steered"))
        if frame.get("duplicate") and self._has_own_id:
            self._feed.rewind(0)  # it may have run long ago
        self._accepted.set_result(self.index)

    def fail(self, failure: ClawdforgeError) -> None:
        if not self._accepted.done():
            self._accepted.set_exception(failure)
            self._accepted.exception()  # it need not be awaited
            self._feed.fail(failure)
            self._done(self)

    # The reader's side.

    async def accepted(self) -> int:
        """Wait until the server has stored the prompt. Returns the turn's index.

        Raises:
            ClawdforgeError: the server refused the prompt.
        """
        return await asyncio.shield(self._accepted)

    def __aiter__(self) -> AsyncIterator[Entry]:
        return self._entries()

    async def _entries(self) -> AsyncIterator[Entry]:
        while self._end is None:
            entry = await self._next()
            if entry is None:
                return
            yield entry

    async def _next(self) -> Entry | None:
        index = await self.accepted()
        while self._end is None:
            try:
                entry = await self._feed.next()
            except ClawdforgeError:
                self._done(self)
                raise
            if entry is None:
                self._done(self)
                raise ClawdforgeError("session_closed", "the session was closed")
            if entry.get("turn_index") != index:
                continue
            self._texts.append(text_of(entry))
            if entry["type"] == "turn_end":
                self._end = entry
                self._done(self)
            return entry
        return None

    async def text(self) -> AsyncIterator[str]:
        """The agent's message, piece by piece.

        Raises:
            TurnError: the turn has ended with an error.
        """
        async for entry in self:
            if piece := text_of(entry):
                yield piece
        await self.result()

    async def result(self) -> TurnResult:
        """Wait for the end of the turn.

        Raises:
            TurnError: the turn has ended with an error.
            ClawdforgeError: the prompt was refused, or the server cannot be reached.
        """
        while self._end is None:
            await self._next()
        end, text = self._end, "".join(self._texts)
        assert self.index is not None
        if error := end.get("error"):
            raise TurnError(error, self.index, text)
        return TurnResult(
            turn_index=self.index,
            text=text,
            stop_reason=end["stop_reason"],
            duration_ms=end["duration_ms"],
            usage=end.get("usage"),
            withdrawn=bool(end.get("withdrawn")),
        )

    async def cancel(self) -> bool:
        """Cancel the turn, or withdraw its prompt from the queue. False if it has ended."""
        return await self._cancel(await self.accepted())
