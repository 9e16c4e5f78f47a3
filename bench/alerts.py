"""Runs the server, and raises 1,000 alerts a second for its webhooks while a file exists.

The file's path is in ``BENCH_ALERTS``. The alerts are about the newest entries of the sessions in
memory, so each is stored and delivered as the end of a turn is.
"""

import asyncio
import os
import sys

from server.command_line import main
from server.outbox.outbox import AlertOutbox
from server.sessions.registry import SessionRegistry

PER_SECOND = 1000
INTERVAL_SECS = 0.01
FIELDS = {"stop_reason": "end_turn", "duration_ms": 1, "error": None}
connect = AlertOutbox.connect
tasks: list[asyncio.Task[None]] = []


async def raise_alerts(sessions: SessionRegistry) -> None:
    flag = os.environ["BENCH_ALERTS"]
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + INTERVAL_SECS, loop.time() - 1)
        await asyncio.sleep(due - loop.time())
        found = list(sessions.cached.values())
        if not found or not os.path.exists(flag):  # noqa: ASYNC240, PTH110
            continue
        for number in range(round(PER_SECOND * INTERVAL_SECS)):
            session = found[number % len(found)]
            sessions.alerts.of_session(session.row, "turn_ended", session.log.head, 1, FIELDS)


def connect_and_raise(outbox: AlertOutbox, sessions: SessionRegistry) -> None:
    connect(outbox, sessions)
    tasks.append(asyncio.get_running_loop().create_task(raise_alerts(sessions)))


if __name__ == "__main__":
    AlertOutbox.connect = connect_and_raise  # type: ignore[assignment, method-assign]
    sys.exit(main())
