"""The periodic tasks of the server."""

from __future__ import annotations

import contextlib
from functools import partial

from ..sessions.disk_watch import DiskWatch
from ..storage.writer import DatabaseWriter
from ..tasks import Tasks
from ..web.context import ServerContext


def start_loops(
    stack: contextlib.AsyncExitStack, context: ServerContext, writer: DatabaseWriter
) -> None:
    """Start the periodic tasks; *stack* ends them.

    If a critical task fails, the server refuses all work.
    """

    def refuse_work() -> None:
        context.health.ready = False
        context.sessions.is_draining = True
        context.runner.refuse_new()

    context.supervisor.on_failure = refuse_work
    loops = Tasks()
    stack.push_async_callback(loops.finish, timeout=0)
    sweep = partial(
        context.sessions.sweeper.run,
        context.files.sweep,
        context.search.forget_deleted,
        context.jobs.sweep,
    )
    for name, loop in (
        ("health", context.health.watch),
        ("heartbeat", context.sockets.heartbeat_loop),
        ("metrics", context.metrics.watch_loop),
        ("checkpoints", writer.checkpointer.run),
        ("search-index", context.search.run),
        ("disk", DiskWatch(context.sessions).run),
        ("webhooks", context.outbox.sender.run),
        ("sweeper", sweep),
    ):
        context.supervisor.spawn(loops, name, loop)
