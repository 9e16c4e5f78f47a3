"""The limits on incomplete messages."""

from __future__ import annotations

import asyncio

import pytest

from server.agents.host.incomplete_messages import IncompleteMessages, MessageMemory
from server.agents.output_limits import MessageLimits
from tests.support.waiting import Deadline

MB = 1 << 20


def test_incomplete_messages_of_an_app_are_limited_in_bytes() -> None:
    incomplete = IncompleteMessages(MessageLimits(2 * MB, 2 * MB))
    first, second, others = object(), object(), object()
    incomplete.update(first, "app", MB)
    incomplete.update(others, "other", 2 * MB)
    with pytest.raises(OverflowError):
        incomplete.update(second, "app", MB + 1)
    incomplete.update(first, "app", 0)
    incomplete.update(second, "app", 2 * MB)
    incomplete.update(second, "the agent's new owner", 2 * MB)
    incomplete.update(first, "app", 2 * MB)


class Agent:
    """An agent whose output is read, paused or refused."""

    def __init__(self, incomplete: IncompleteMessages, app: str) -> None:
        self.is_paused = False
        self.resumed = asyncio.Event()
        self.refused = asyncio.Event()
        self.memory = MessageMemory(
            incomplete,
            lambda: app,
            pause=self.pause,
            resume=self.resume,
            on_expired=self.refused.set,
        )

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self.resumed.set()


async def test_large_messages_are_read_one_at_a_time_of_the_apps_in_turn() -> None:
    incomplete = IncompleteMessages(MessageLimits(16 * MB, 64 * MB))
    first, second, other = (Agent(incomplete, app) for app in ("app", "app", "other"))
    for agent in (first, second, other):
        agent.memory.update(2 * MB)
    assert [agent.is_paused for agent in (first, second, other)] == [False, True, True]
    first.memory.update(0)
    first.memory.message_stored()
    async with Deadline("the other app's agent"):
        await other.resumed.wait()
    assert second.is_paused
    other.memory.close()
    async with Deadline("the second agent"):
        await second.resumed.wait()


async def test_agent_that_ends_while_it_waits_delays_no_other() -> None:
    incomplete = IncompleteMessages(MessageLimits(16 * MB, 64 * MB))
    agents = [Agent(incomplete, app) for app in ("one", "two", "three")]
    for agent in agents:
        agent.memory.update(2 * MB)
    agents[1].memory.close()
    agents[0].memory.close()
    async with Deadline("the third agent"):
        await agents[2].resumed.wait()


async def test_agent_that_stops_within_a_large_message_is_refused() -> None:
    incomplete = IncompleteMessages(MessageLimits(16 * MB, 64 * MB, large_secs=0.01))
    slow, waiting = Agent(incomplete, "app"), Agent(incomplete, "app")
    slow.memory.update(2 * MB)
    waiting.memory.update(2 * MB)
    async with Deadline("the refusal"):
        await slow.refused.wait()
    slow.memory.close()
    async with Deadline("the other agent"):
        await waiting.resumed.wait()
