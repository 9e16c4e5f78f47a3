"""Connections to PostgreSQL on which notifications arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import asyncpg

from .postgres_connections import LOST_CONNECTION, database_error, open_connection
from .postgres_tail import EngineTail

UNREAD_SECS = 30
"""The engine ends a connection whose server reads nothing for so long. Otherwise a machine that
hangs would keep all later notifications in the engine's queue, until it is full."""


async def connect_listener(
    url: str,
    name: str,
    tail: EngineTail,
    channels: Sequence[str],
    callback: Callable[[str], None],
    on_end: Callable[[], None],
) -> asyncpg.Connection:
    """Open a connection that calls *callback* with the text of each notification.

    After a failover it ends: a notification that has waited in it may report what was lost.

    Args:
        tail: knows of failovers.
        on_end: called when the connection has ended.

    Raises:
        DatabaseError: the engine is out of reach.
    """
    failovers = 0

    def receive(connection: asyncpg.Connection, _: int, __: str, payload: object) -> None:
        if failovers == tail.failovers:
            callback(str(payload))
        else:
            connection.terminate()

    try:
        connection = await open_connection(url, name)
        connection.add_termination_listener(lambda _: on_end())
        try:
            await connection.execute(f"SET tcp_user_timeout = '{UNREAD_SECS}s'")
            await tail.note(connection)
            failovers = tail.failovers
            for channel in channels:
                await connection.add_listener(channel, receive)
            # A connection's last query is visible to users that must not know the channels.
            await connection.execute("SELECT 1")
        except BaseException:
            connection.terminate()
            raise
    except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
        raise database_error(error) from error
    if connection.is_closed():
        on_end()
    return connection
