"""The turns of a session that wait for earlier ones, in the order in which they will run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any

from ..errors import Error, ErrorCode, not_found, session_closed
from ..storage import statements
from ..tasks import to_completion
from .core import SessionCore
from .entries import shown_id
from .turns import CurrentTurn, Turn


class WaitingTurns:
    """The waiting turns of one session, which clients may change and move."""

    def __init__(self, core: SessionCore, current: CurrentTurn) -> None:
        self._core = core
        self._current = current
        self._turns: deque[Turn] = deque()
        self._edit_lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Turn]:
        return iter(self._turns)

    @property
    def first(self) -> Turn | None:
        return self._turns[0] if self._turns else None

    def check_capacity(self) -> None:
        """Check that one more turn may wait.

        Raises:
            Error: ``queue_full``.
        """
        limit = self._core.context.settings.max_queued_turns
        if len(self._turns) + (self._current.running is not None) > limit:
            raise Error(
                ErrorCode.QUEUE_FULL,
                f"{limit} prompts are waiting already; retry after one has run",
            )

    def get(self, turn_index: int) -> Turn:
        """Return the waiting turn of that index.

        Raises:
            Error: ``not_found`` if no such turn waits; ``conflict`` if it is running.
        """
        for turn in self._turns:
            if turn.index == turn_index:
                return turn
        running = self._current.running
        if running is not None and running.index == turn_index:
            raise Error(ErrorCode.CONFLICT, f"turn {turn_index} is running, not waiting")
        raise not_found("queued turn")

    def view(self) -> list[dict[str, Any]]:
        """The waiting prompts, with the first characters of each."""
        return [
            {"turn_index": turn.index, "id": shown_id(turn.client_id), "prompt": turn.preview}
            for turn in self._turns
        ]

    def append(self, turn: Turn) -> None:
        self._turns.append(turn)
        self._core.notify_changed()

    def prepend(self, turn: Turn) -> None:
        """Let *turn* run before all others."""
        self._turns.appendleft(turn)
        self._core.notify_changed()

    def pop_first(self) -> Turn:
        return self._turns.popleft()

    def remove(self, turn: Turn) -> None:
        self._turns.remove(turn)

    async def edit(
        self, turn_index: int, *, blocks: bytes | None = None, before: int | None = None
    ) -> None:
        """Replace the prompt of a waiting turn, and move it before another waiting turn.

        Args:
            blocks: JSON of checked content blocks.

        Raises:
            Error: as :meth:`get`; ``queue_full`` if the app's waiting prompts would exceed their
                limit; ``session_closed``.
        """
        async with self._edit_lock:
            if not self._core.is_open:
                raise session_closed()
            turn = self.get(turn_index)
            order = tuple(self._turns)
            if before is not None:
                self._move(turn, self.get(before))
            if blocks is None:
                return
            try:
                await self._replace_prompt(turn, blocks)
            except BaseException:
                if set(order) == set(self._turns):
                    self._turns = deque(order)
                raise

    def _move(self, turn: Turn, next_turn: Turn) -> None:
        if next_turn is not turn:
            self._turns.remove(turn)
            self._turns.insert(self._turns.index(next_turn), turn)
            self._core.notify_changed()

    async def _replace_prompt(self, turn: Turn, blocks: bytes) -> None:
        context, app_name = self._core.context, self._core.row.app_name
        await context.disk.check(app_name)
        self.get(turn.index)
        added = len(blocks) - turn.reserved_bytes
        quota = context.quotas.waiting_bytes
        quota.acquire(app_name, max(added, 0))
        try:
            statement = statements.set_prompt(self._core.row.n, turn.index, blocks)
            await to_completion(context.writer.commit([statement]))
            self.get(turn.index)  # it may have started meanwhile
        except BaseException:
            quota.release(app_name, max(added, 0))
            raise
        turn.replace_prompt(blocks)
        self._core.notify_changed()
        quota.release(app_name, max(-added, 0))
