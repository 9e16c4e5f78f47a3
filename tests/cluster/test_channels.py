"""Channels between nodes: order, windows, and what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.cluster.channels import WINDOW, ChannelLostError, NodeChannel
from server.cluster.node import ClusterNode
from server.errors import DatabaseError
from server.storage.drivers.postgres import PostgresDriver

from ..support.waiting import eventually

MakeNode = Callable[[int], Awaitable[ClusterNode]]


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


async def test_channel_is_lost_with_its_node(make_node: MakeNode, driver: PostgresDriver) -> None:
    one, two = await make_node(1), await make_node(2)
    two.channels.servers["echo"] = echo
    channel = one.channels.open(2, "echo")
    channel.send_now(b"hello")
    assert await channel.receive() == b"hello"
    await driver.change("UPDATE nodes SET state = 'gone' WHERE n = 2")
    await one.find_nodes()
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
    channel.send_now(b"hello")
    channel.end()
    assert [piece async for piece in channel] == [b"hello"]
    assert refused.is_set()


async def test_notification_of_everyone_reaches_each_node(make_node: MakeNode) -> None:
    one, two = await make_node(1), await make_node(2)
    heard: list[tuple[int, str]] = []
    for node in (one, two):
        node.on_event["hello"] = lambda text, n=node.number: heard.append((n, text))  # type: ignore[misc]
    await eventually("both to listen", lambda: one.bus._listener and two.bus._listener)
    await one.notify_all("hello", "there")
    await eventually("both to hear it", lambda: sorted(heard) == [(1, "there"), (2, "there")])
