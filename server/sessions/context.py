"""The services of the server that every session uses."""

from __future__ import annotations

import operator
from collections.abc import Callable

import msgspec

from ..accounts.accounts import Accounts
from ..agents.base import Backend
from ..config import Settings
from ..data_dir import DataDir
from ..limits import DiskReserve
from ..metrics import Metrics
from ..storage.queries import Queries
from ..storage.writer import DatabaseWriter
from ..tasks import Tasks
from ..workspace.snapshots import Snapshots
from .agent_slots import AgentSlots
from .alerts import Alerts
from .app_disk import AppDisk
from .changes import SessionChanges
from .event_log import EventLogs
from .quotas import SessionQuotas


class SessionContext(msgspec.Struct):
    """The services of the server that every session uses.

    Attributes:
        tasks: cancelled when the server stops.
        closing: the tasks that close sessions. The server waits for them before it stops.
        clock: returns unix seconds.
        alerts: hands alerts to webhooks and push.
        is_draining: the server is stopping; no prompt is accepted.
        is_reloading: the server is about to become its next version; no turn begins.
    """

    settings: Settings
    backend: Backend
    queries: Queries
    logs: EventLogs
    writer: DatabaseWriter
    metrics: Metrics
    slots: AgentSlots
    disk: DiskReserve
    app_disk: AppDisk
    quotas: SessionQuotas
    accounts: Accounts
    changes: SessionChanges
    snapshots: Snapshots
    tasks: Tasks
    closing: Tasks
    clock: Callable[[], float]
    alerts: Alerts
    is_draining: bool = False
    is_reloading: bool = False

    @property
    def ends_waiting_turns(self) -> bool:
        """Whether the server stops, and no other node of a cluster runs what waits here."""
        return self.is_draining and self.quotas.shared is None

    @classmethod
    def create(
        cls,
        settings: Settings,
        backend: Backend,
        queries: Queries,
        writer: DatabaseWriter,
        metrics: Metrics,
        clock: Callable[[], float],
        accounts: Accounts,
    ) -> SessionContext:
        """Create the services that only sessions use, and add them to the given ones."""
        tasks = Tasks()
        slots = AgentSlots(
            settings.max_live_agents,
            tasks,
            reserve=settings.reserved_agents,
            limit_per_app=settings.max_live_agents_per_app,
            app_of=operator.attrgetter("app_name"),
            own_limit=lambda app_name: accounts.limits_of(app_name).live_agents,
        )

        def limits_changed(app_name: str) -> None:
            slots.limits.changed.add(app_name)
            slots.reconsider()

        def budget_exceeded(app_name: str, resets_at: int) -> None:
            budget = accounts.budget_view(app_name)
            fields = {"resets_at": resets_at, "budget": budget}
            alerts.of_app(app_name, "budget_exceeded", fields)

        data_dir = DataDir.of(settings)
        disk = DiskReserve(data_dir.path, settings.min_free_bytes)
        app_disk = AppDisk(data_dir, accounts, queries, backend.sandbox.folders)
        app_disk.connect(disk)
        alerts = Alerts(clock)
        accounts.on_limits_changed.append(limits_changed)
        accounts.on_alert.append(budget_exceeded)
        return cls(
            settings=settings,
            backend=backend,
            queries=queries,
            logs=EventLogs(writer, queries),
            writer=writer,
            metrics=metrics,
            slots=slots,
            disk=disk,
            app_disk=app_disk,
            quotas=SessionQuotas(settings, accounts),
            accounts=accounts,
            changes=SessionChanges(),
            snapshots=Snapshots(settings),
            tasks=tasks,
            closing=Tasks(),
            clock=clock,
            alerts=alerts,
        )
