"""The clock of the database, which decides what expires in a cluster.

The clocks of the nodes may differ by any amount. Each node asks the engine for its time with every
beat, and counts on with its monotonic clock, which a change of its own clock does not affect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

WRONG_SECS = 5.0
"""The log names a node whose own clock is wrong by more."""


class EngineClock:
    """Unix seconds by the clock of the database. It has the time of the last answer.

    Args:
        monotonic: seconds that never go back.
        own: unix seconds by the clock of this machine, used before the first answer.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._own = own
        self._offset = own() - monotonic()
        self._has_warned = False

    def __call__(self) -> float:
        return self._monotonic() + self._offset

    def time_ns(self) -> int:
        """Unix nanoseconds."""
        return int(self() * 1e9)

    @property
    def error_secs(self) -> float:
        """By how many seconds the clock of this machine is ahead; negative if it is behind."""
        return self._own() - self()

    def note(self, engine_secs: float, sent_at: float) -> None:
        """Note the engine's time, which a query has returned just now.

        Args:
            sent_at: the time on the monotonic clock at which the query was sent.
        """
        received_at = self._monotonic()
        self._offset = engine_secs - (sent_at + received_at) / 2
        is_wrong = abs(self.error_secs) > WRONG_SECS
        if is_wrong and not self._has_warned:
            logger.warning(
                "the clock of this machine differs from that of the database by %.0f s; what"
                " expires follows the database",
                self.error_secs,
            )
        self._has_warned = is_wrong
