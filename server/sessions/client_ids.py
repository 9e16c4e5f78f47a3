"""The prompts of a session by the ids that clients gave them."""

from __future__ import annotations

from .core import SessionCore
from .turns import Acceptance, Turn


class ClientIds:
    """Finds the turn of a prompt by its client id, so that no id is accepted twice."""

    def __init__(self, core: SessionCore) -> None:
        self._core = core
        # Until the database has everything about it. With each, the position that it must have.
        self._recent: dict[str, tuple[Acceptance, int]] = {}
        self._new_id: str | None = None

    def note_new(self, client_id: str | None) -> None:
        """Note that no prompt has that id, so the next search need not ask the database."""
        self._new_id = client_id

    def add(self, client_id: str | None, acceptance: Acceptance, seq: int = 0) -> None:
        """Note an accepted prompt.

        Args:
            seq: the position of its ``turn_steer``, if it has one.
        """
        if client_id is not None:
            self._recent[client_id] = acceptance, seq

    async def find(self, client_id: str | None) -> Acceptance | None:
        """Return the acceptance of the prompt with that id, or None."""
        new_id, self._new_id = self._new_id, None
        if client_id is None or client_id == new_id:
            return None
        head = self._core.log.head
        # Turns that have not ended durably exist only in memory.
        self._recent = {
            known: (acceptance, seq)
            for known, (acceptance, seq) in self._recent.items()
            if acceptance.turn.last_seq is None or max(seq, acceptance.turn.last_seq) > head
        }
        if client_id in self._recent:
            return self._recent[client_id][0]._replace(is_duplicate=True)
        row, is_steered = await self._core.context.queries.turn_by_client_id(
            self._core.row.n, client_id
        )
        return None if row is None else Acceptance(Turn.from_row(row), True, is_steered)
