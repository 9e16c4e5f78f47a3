"""The part of a backend that it offers to a session that continues after a reload of the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .prompt_handle import PromptHandle
from .steering import SteerOutcome


class ReloadableBackend(Protocol):
    """A backend whose agents' processes survive a reload.

    The earlier version of the server leaves processes; each session takes over its own. The others
    are ended by :meth:`end_unclaimed`.
    """

    def has_process(self, key: str) -> bool:
        """Whether the earlier version has left a process for the session of that key."""

    async def take_over(self, key: str) -> PromptHandle | None:
        """Connect the agent of that session, which :meth:`Backend.agent` has made, to its process.

        The process is not read from before :meth:`go_on` is called.

        Returns:
            The prompt that the agent works on, if any.
        """

    def resume_steer(
        self, key: str, request_id: str | None, decide: Callable[[SteerOutcome], None]
    ) -> None:
        """Decide a prompt that the earlier version has added to a turn; see :meth:`Agent.steer`."""

    def go_on(self) -> None:
        """Read the output of all processes that were taken over."""

    async def end_unclaimed(self) -> None:
        """End the processes that no session has taken over."""


class NothingToTakeOver:
    """The part of a backend that was started in the ordinary way."""

    def has_process(self, key: str) -> bool:
        return False

    async def take_over(self, key: str) -> PromptHandle | None:
        return None

    def resume_steer(
        self, key: str, request_id: str | None, decide: Callable[[SteerOutcome], None]
    ) -> None:
        decide(SteerOutcome.LOST)

    def go_on(self) -> None:
        """Do nothing."""

    async def end_unclaimed(self) -> None:
        """Do nothing."""
