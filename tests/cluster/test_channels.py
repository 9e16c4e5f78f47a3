"""Channels between nodes: order, windows, and what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from unittest import mock

import pytest

from server.cluster.channels import WINDOW, ChannelLostError, NodeChannel
from server.cluster.node import ClusterNode
from server.cluster.notices import channel_of
from server.errors import DatabaseError
from server.storage.drivers.postgres import PostgresDriver
from server.storage.nodes import NodeRow

from ..support.postgres import Postgres
from ..support.waiting import Deadline, eventually

LARGE = b"x" * 10_000
"""It is only in the table, not in the notification."""
MakeNode = Callable[[int], Awaitable[ClusterNode]]


async def until_listening(*nodes: ClusterNode) -> None:
    """Wait until the nodes get notifications, and have looked for earlier messages."""
    await eventually(
        "all to listen",
        lambda: all(one.bus._listener and not one.bus._is_due.is_set() for one in nodes),
    )


async def echo(channel: NodeChannel) -> None:
    async for piece in channel:
        await channel.send(piece)
    channel.end()


async def test_pieces_arrive_in_order_in_both_directions(make_node: MakeNode) -> None:
    one, two = await make_node(1), await make_node(2)
    two.channels.servers["echo"] = echo
    channel = one.channels.open(2, "echo")
    sent = [b"%d" % number * 1000 for number in range(5 * WINDOW)]

    async def send() -> None:
        for piece in sent:
            await channel.send(piece)
        channel.end()

    sending = asyncio.create_task(send())
    assert [piece async for piece in channel] == sent
    await sending
    channel.close()
    await eventually("both ends to forget it", lambda: not (one.channels or two.channels))


async def test_node_can_open_a_channel_to_its_own_number(make_node: MakeNode) -> None:
    one = await make_node(1)
    one.channels.servers["echo"] = echo
    channel = one.channels.open(1, "echo")
    channel.send_now(b"hello")
    assert await channel.receive() == b"hello"
    channel.close()


async def test_channel_of_an_unknown_kind_is_lost(make_node: MakeNode) -> None:
    one, _ = await make_node(1), await make_node(2)
    channel = one.channels.open(2, "nothing")
    with pytest.raises(ChannelLostError):
        await channel.receive()


async def test_channel_is_lost_with_its_node(make_node: MakeNode) -> None:
    one, two = await make_node(1), await make_node(2)
    two.channels.servers["echo"] = echo
    channel = one.channels.open(2, "echo")
    channel.send_now(b"hello")
    assert await channel.receive() == b"hello"
    one.note_nodes([NodeRow(1, "node-1", "up", 0)])
    with pytest.raises(ChannelLostError):
        await channel.receive()


async def test_lost_piece_ends_the_channel(make_node: MakeNode, driver: PostgresDriver) -> None:
    """A crash of the engine empties the table of messages."""
    one, two = await make_node(1), await make_node(2)
    arrived = asyncio.Event()

    async def serve(channel: NodeChannel) -> None:
        await channel.receive()
        arrived.set()
        await channel.receive()

    two.channels.servers["wait"] = serve
    channel = one.channels.open(2, "wait")
    channel.send_now(b"first")
    await arrived.wait()
    two.bus._last_from[1] += 1  # as if the next message had been lost
    channel.send_now(b"lost")
    channel.check()
    with pytest.raises(ChannelLostError):
        await channel.receive()


async def test_message_that_cannot_be_deleted_is_handled_once(
    make_node: MakeNode, driver: PostgresDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await make_node(1), await make_node(2)
    two.channels.servers["echo"] = echo
    change, refused = driver.change, asyncio.Event()

    async def refuse_deletion(sql: str, *arguments: Any, **options: Any) -> Any:
        if sql.startswith("DELETE FROM commands") and not refused.is_set():
            refused.set()
            raise DatabaseError("out of reach", is_transient=True)
        return await change(sql, *arguments, **options)

    monkeypatch.setattr(driver, "change", refuse_deletion)
    channel = one.channels.open(2, "echo")
    channel.send_now(LARGE)
    channel.end()
    assert [piece async for piece in channel] == [LARGE]
    assert refused.is_set()


async def test_notification_of_everyone_reaches_each_node(make_node: MakeNode) -> None:
    one, two = await make_node(1), await make_node(2)
    heard: list[tuple[int, str]] = []
    for node in (one, two):
        node.on_event["hello"] = lambda text, n=node.number: heard.append((n, text))  # type: ignore[misc]
    await until_listening(one, two)
    await one.notify_all("hello", "there")
    await eventually("both to hear it", lambda: sorted(heard) == [(1, "there"), (2, "there")])


async def test_small_messages_arrive_without_a_query(
    make_node: MakeNode, driver: PostgresDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await make_node(1), await make_node(2)
    two.channels.servers["echo"] = echo
    await until_listening(one, two)
    monkeypatch.setattr(driver, "fetch", mock.AsyncMock(side_effect=AssertionError("a query")))
    channel = one.channels.open(2, "echo")
    sent = [b"%d \xff\0" % number for number in range(WINDOW)]
    for piece in sent:
        channel.send_now(piece)
    channel.end()
    assert [piece async for piece in channel] == sent
    monkeypatch.undo()
    channel.close()

    async def is_empty() -> bool:
        await one.bus.sweep()
        await two.bus.sweep()
        return await driver.fetch("SELECT * FROM commands", ()) == []

    await eventually("all rows to be deleted", is_empty)


async def test_messages_whose_notification_was_lost_are_found(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await make_node(1), await make_node(2)
    arrived: list[bytes] = []
    everything = asyncio.Event()

    async def serve(channel: NodeChannel) -> None:
        async for piece in channel:
            arrived.append(piece)
            if len(arrived) in (2, 3):
                everything.set()

    two.channels.servers["serve"] = serve
    await until_listening(one, two)
    take, lost = two.bus._take_noticed, asyncio.Event()

    def lose(text: str) -> None:
        lost.set()

    monkeypatch.setattr(two.bus, "_take_noticed", lose)
    channel = one.channels.open(2, "serve")
    channel.send_now(b"first")
    async with Deadline("the notification to be lost"):
        await lost.wait()
    monkeypatch.setattr(two.bus, "_take_noticed", take)
    channel.send_now(b"second")  # it shows that there was one before
    async with Deadline("both messages to arrive"):
        await everything.wait()
    everything.clear()
    lost.clear()
    monkeypatch.setattr(two.bus, "_take_noticed", lose)
    channel.send_now(b"third")
    async with Deadline("the notification to be lost"):
        await lost.wait()
    assert (await two.look()).has_messages
    async with Deadline("the third message to be found"):
        await everything.wait()
    assert arrived == [b"first", b"second", b"third"]


async def test_channels_of_notifications_are_secret(
    make_node: MakeNode, postgres: Postgres, url: str
) -> None:
    await until_listening(await make_node(1))
    database = url.rpartition("/")[2]
    assert channel_of(b"secret", 1) != channel_of(b"other secret", 1) != channel_of(b"", 1)
    shown = postgres.sql("SELECT query FROM pg_stat_activity", database)
    assert "listener" in postgres.sql("SELECT application_name FROM pg_stat_activity", database)
    assert channel_of(b"secret", 1) not in shown
    assert channel_of(b"secret", None) not in shown


async def test_commits_are_not_shown_after_a_failover_that_may_have_lost_them(
    make_node: MakeNode, driver: PostgresDriver
) -> None:
    node = await make_node(1)
    heard: list[str] = []
    ended = asyncio.Event()
    await until_listening(node)
    listener = await driver.listen(["channel"], heard.append, ended.set)
    await driver.notify("channel", ["before"], shows_commits=True)
    await eventually("it to arrive", lambda: heard == ["before"])
    driver.tail.failovers += 1
    with pytest.raises(DatabaseError):
        await driver.notify("channel", ["entries"], shows_commits=True)
    await driver.notify("channel", ["hint"])  # ends what listens since before the failover
    async with Deadline("the connection to end"):
        await ended.wait()
    await driver.check_tail()
    listener = await driver.listen(["channel"], heard.append, ended.set)
    assert await listener.fetchval("SHOW tcp_user_timeout") == "30000"
    await driver.notify("channel", ["after"], shows_commits=True)
    await eventually("it to arrive", lambda: heard == ["before", "after"])
    listener.terminate()


async def test_messages_arrive_if_the_engine_takes_no_notifications(
    make_node: MakeNode, driver: PostgresDriver
) -> None:
    """Its queue is full, because a transaction of another program has been open for long."""
    one, two = await make_node(1), await make_node(2)
    two.channels.servers["echo"] = echo
    change = driver.change

    async def refuse(sql: str, parameters: Sequence[Any] = (), **options: Any) -> Any:
        if "pg_notify" in sql and parameters[-1]:
            raise DatabaseError("too many notifications in the NOTIFY queue", is_transient=False)
        return await change(sql, parameters, **options)

    with mock.patch.object(driver, "change", refuse):
        channel = one.channels.open(2, "echo")
        channel.send_now(b"hello")
        receiving = asyncio.create_task(channel.receive())
        while not receiving.done():
            for node in (one, two):
                await node.look()
            await asyncio.sleep(0.01)
        assert receiving.result() == b"hello"
        channel.close()
