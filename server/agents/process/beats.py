"""The beats by which a node of a cluster lets its agents run; see ``supervise.py``."""

from __future__ import annotations

import contextlib
import os

from . import supervise


class Beats:
    """The lifelines of the supervisors.

    Attributes:
        freeze_secs: the agents are stopped after this time without a beat; 0 for never. It is read
            when a supervisor starts.
    """

    def __init__(self) -> None:
        self.freeze_secs = 0.0
        self._lifelines: set[int] = set()

    @property
    def argument(self) -> str:
        """The argument FREEZE_MS of a supervisor."""
        return str(round(self.freeze_secs * 1000))

    def add(self, lifeline: int) -> None:
        os.set_blocking(lifeline, False)
        self._lifelines.add(lifeline)

    def close(self, lifeline: int) -> None:
        """Close a lifeline: its supervisor kills the agents."""
        self._lifelines.discard(lifeline)
        os.close(lifeline)

    def send(self, sent_at: float) -> None:
        """Let all agents run on.

        Args:
            sent_at: the time of :func:`supervise.now` before the cluster was asked whether this
                node still has its sessions.
        """
        for lifeline in self._lifelines:
            with contextlib.suppress(OSError):  # a full pipe: the supervisor is stopped itself
                os.write(lifeline, supervise.BEAT.pack(sent_at))
