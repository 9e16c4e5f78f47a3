"""The methods of a backend that restore agents after a reload of the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .prompt_handle import PromptHandle
from .steering import SteerOutcome


class ReloadableBackend(Protocol):
    """A backend whose agents' processes survive a reload.

    The earlier version of the server leaves its agents' processes running. Each session restores
    its own agent, and :meth:`end_unclaimed` ends the remaining processes.
    """

    def has_process(self, key: str) -> bool:
        """Whether the earlier version has left a process for the session of that key."""

    async def restore(self, key: str) -> PromptHandle | None:
        """Connect the agent of that session, which :meth:`Backend.agent` has made, to its process.

        The server does not read the process's output before :meth:`resume` is called.

        Returns:
            The prompt that the agent works on, if any.
        """

    def restore_steer(
        self, key: str, request_id: str | None, decide: Callable[[SteerOutcome], None]
    ) -> None:
        """Decide a prompt that the earlier version has added to a turn; see :meth:`Agent.steer`."""

    def resume(self) -> None:
        """Read the output of all restored agents."""

    async def end_unclaimed(self) -> None:
        """End the processes of agents that no session has restored."""


class NothingToRestore:
    """The methods of a backend without processes of an earlier version of the server."""

    def has_process(self, key: str) -> bool:
        return False

    async def restore(self, key: str) -> PromptHandle | None:
        return None

    def restore_steer(
        self, key: str, request_id: str | None, decide: Callable[[SteerOutcome], None]
    ) -> None:
        decide(SteerOutcome.LOST)

    def resume(self) -> None:
        """Do nothing."""

    async def end_unclaimed(self) -> None:
        """Do nothing."""
