"""Alerts: what an app learns without a socket, by its webhook and by push.

An alert is raised in the same step as the log entry that it is about, so that what a receiver
stores is in the same commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args

import msgspec

from ..storage.schema import SessionRow

logger = logging.getLogger(__name__)

AlertKind = Literal[
    "turn_ended",
    "permission_requested",
    "elicitation_requested",
    "session_closed",
    "budget_exceeded",
]
ALERT_KINDS: tuple[AlertKind, ...] = get_args(AlertKind)


class Alert(msgspec.Struct, frozen=True):
    """An event that an app may want to know at once.

    Attributes:
        at: unix seconds.
        session: None if the alert is about the whole app.
        seq: the position of the log entry; None without a session.
        turn_index: of the entry; None without a session.
        fields: what else is known, with the names of the entry's fields.
    """

    kind: AlertKind
    app_name: str
    at: float
    fields: Mapping[str, Any]
    session: SessionRow | None = None
    seq: int | None = None
    turn_index: int | None = None


class AlertReceiver(Protocol):
    """Passes alerts on, by webhooks or by push."""

    def wants(self, app_name: str, kind: AlertKind) -> bool:
        """Whether the app is to learn of such alerts."""

    def receive(self, alert: Alert) -> None:
        """Pass an alert on, without waiting.

        Statements that are added to the writer now are stored with the alert's log entry.
        """


class Alerts:
    """Hands alerts to the receivers that want them.

    Attributes:
        receivers: none at first.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.receivers: list[AlertReceiver] = []
        self._clock = clock

    def is_wanted(self, app_name: str, kind: AlertKind) -> bool:
        """Whether any receiver wants such an alert, so that its fields are needed."""
        return any(receiver.wants(app_name, kind) for receiver in self.receivers)

    def of_session(
        self, row: SessionRow, kind: AlertKind, seq: int, turn_index: int, fields: Mapping[str, Any]
    ) -> None:
        """Raise an alert about an entry that was appended to a session's log just now."""
        if self.is_wanted(row.app_name, kind):
            about = kind, row.app_name, self._clock(), fields
            self._hand_over(Alert(*about, session=row, seq=seq, turn_index=turn_index))

    def of_app(self, app_name: str, kind: AlertKind, fields: Mapping[str, Any]) -> None:
        """Raise an alert that is about no session."""
        if self.is_wanted(app_name, kind):
            self._hand_over(Alert(kind, app_name, self._clock(), fields))

    def _hand_over(self, alert: Alert) -> None:
        for receiver in self.receivers:
            try:
                if receiver.wants(alert.app_name, alert.kind):
                    receiver.receive(alert)
            except Exception:
                logger.exception("an alert was not passed on", extra={"app": alert.app_name})
