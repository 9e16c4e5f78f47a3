"""The metrics whose values the parts of the server keep themselves."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import get_args

from ..agents.agent_state import Presence
from ..storage.writer import DatabaseWriter
from .context import ServerContext


def register_gauges(context: ServerContext, writer: DatabaseWriter) -> None:
    """Register the metrics whose values the parts of the server keep themselves."""
    metrics, tokens, runner = context.metrics, context.tokens, context.runner
    sessions, sockets = context.sessions, context.sockets
    slots = sessions.slots
    for name, description, read in (
        ("open_sessions", "Open sessions", lambda: sessions.quotas.open_sessions),
        ("live_agents", "Agent processes", lambda: len(slots)),
        ("queued_for_agent", "Sessions that wait for a free agent", lambda: slots.queued),
        ("running_turns", "Running turns", lambda: sessions.figures.running_turns),
        ("queued_turns", "Prompts queued in their sessions", lambda: sessions.figures.queued_turns),
        ("runs", "Runs that have a slot", lambda: runner.running),
        ("queued_runs", "Runs that wait for a slot", lambda: runner.queued),
        ("sockets", "Connected sockets", lambda: len(sockets)),
        (
            "waiting_sockets",
            "Connections and sockets that are not authenticated yet",
            lambda: len(sockets.unauthenticated),
        ),
        (
            "waiting_requests",
            "Waiting requests that a revocation of their token would end",
            lambda: tokens.waits,
        ),
        (
            "replay_lag_entries",
            "Entries that the slowest socket has not been sent",
            lambda: sockets.replay_lag,
        ),
        ("log_backlog_bytes", "Entries that are not yet durable", lambda: writer.backlog),
        ("tasks", "Asyncio tasks", lambda: len(asyncio.all_tasks())),
    ):
        metrics.add_gauge(name, description, read)
    _register_outbox(context)
    _register_cluster(context)
    metrics.add_counter("cpu_seconds", "CPU time of the server's process", time.process_time)
    level = sessions.backend.sandbox.level
    metrics.add_labelled_gauge(
        "sandbox", "The level of the sandbox", "level", [level], lambda: {level: 1}
    )
    states = get_args(Presence)
    metrics.add_labelled_gauge(
        "agents", "Agents, and sessions without one", "state", states, sessions.figures.count_agents
    )


def _register_outbox(context: ServerContext) -> None:
    """Register the metrics of webhooks and push notifications."""
    metrics, outbox = context.metrics, context.outbox
    sent, pushed = outbox.sender.counts, outbox.push.counts
    metrics.add_gauge(
        "webhook_deliveries",
        "Deliveries that wait for the receivers of webhooks",
        lambda: sum(queue.length for queue in outbox.sender.queues.values()),
    )
    metrics.add_gauge("push_subscriptions", "Push subscriptions", lambda: len(outbox.subscriptions))
    for name, description, count in (
        ("webhooks_accepted", "Accepted requests of webhooks", lambda: sent["accepted"]),
        ("webhooks_failed", "Failed requests of webhooks", lambda: sent["failed"]),
        ("webhooks_dropped", "Events dropped for full queues", lambda: sent["dropped"]),
        ("push_sent", "Accepted push notifications", lambda: pushed["sent"]),
        ("push_failed", "Push notifications that were given up", lambda: pushed["failed"]),
    ):
        metrics.add_counter(name, description, count)


def _register_cluster(context: ServerContext) -> None:
    """Register the metrics of a node. Without a cluster they are 0."""
    metrics, engine, sessions = context.metrics, context.health.engine, context.sessions

    for name, description, read in (
        (
            "lease_age_seconds",
            "Time since this node's last successful beat",
            lambda: engine.lease.age if engine is not None else 0,
        ),
        (
            "engine_seconds",
            "Round trip to the database of the cluster",
            lambda: engine.round_trip_secs if engine is not None else 0,
        ),
        (
            "clock_error_seconds",
            "By how much this machine's clock is ahead of the database's",
            lambda: engine.clock.error_secs if engine is not None else 0,
        ),
        (
            "followed_sessions",
            "Sessions of other nodes that clients follow here",
            lambda: len(sessions.remote.follower) if sessions.remote is not None else 0,
        ),
    ):
        metrics.add_gauge(name, description, read)
    metrics.add_labelled_gauge(
        "nodes",
        "Nodes of the cluster that run",
        "state",
        ("up", "draining"),
        lambda: (
            Counter(node.state for node in engine.lease.nodes) if engine is not None else Counter()
        ),
    )
    for name, description, total in (
        (
            "takeovers",
            "Nodes that this one has taken over",
            lambda: engine.lease.takeovers if engine is not None else 0,
        ),
        (
            "commits_unknown",
            "Commits whose answer was lost, and whose outcome was looked up",
            lambda: engine.driver.unknown if engine is not None else 0,
        ),
        (
            "wakeups_missed",
            "Entries of other nodes that were found without a notification",
            lambda: sessions.remote.follower.missed if sessions.remote is not None else 0,
        ),
        (
            "forwarded_commands",
            "Requests and commands that were passed on to another node",
            lambda: sessions.remote.forwarded if sessions.remote is not None else 0,
        ),
    ):
        metrics.add_counter(name, description, total)
