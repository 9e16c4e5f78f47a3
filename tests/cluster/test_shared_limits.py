"""Limits that hold for all nodes together, whatever races they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest import mock

import pytest

from server.accounts.accounts import Accounts
from server.accounts.limits import Budget
from server.accounts.remote_spending import RemoteSpending
from server.agents.usage import Cost, Usage
from server.cluster.node import ClusterNode
from server.errors import Error, ErrorCode
from server.storage import shared_limits
from server.storage.drivers.postgres import PostgresDriver
from server.storage.shared_limits import (
    PORTION_SECS,
    RENEW_SECS,
    SharedLimits,
    free_session,
    free_upload,
)

MakeNode = Callable[[int], Awaitable[ClusterNode]]


@pytest.fixture
async def limits(make_node: MakeNode, driver: PostgresDriver) -> list[SharedLimits]:
    """The limits, as each of two nodes asks for them."""
    return [SharedLimits(driver, (await make_node(number)).number or 0) for number in (1, 2)]


async def test_sessions_that_two_nodes_open_at_once_stay_within_the_limits(
    limits: list[SharedLimits], driver: PostgresDriver
) -> None:
    asked = [
        one.reserve_session(f"{index}-{number}", f"app-{number % 2}", per_app=5, total=8)
        for index, one in enumerate(limits)
        for number in range(20)
    ]
    refused = await asyncio.gather(*asked)
    assert refused.count(None) == 8
    assert set(refused) == {None, "app", "server"} or set(refused) == {None, "server"}
    [(most,)] = await driver.fetch(
        "SELECT max(count) FROM (SELECT count(*) FROM session_places GROUP BY app_name) AS counts",
        (),
    )
    assert most <= 5
    [(place,)] = await driver.fetch("SELECT min(session_id) FROM session_places", ())
    await driver.write([free_session(place)])
    assert await limits[0].reserve_session("new", "app-9", per_app=5, total=8) is None
    assert await limits[1].reserve_session("new", "app-9", per_app=5, total=8) is None  # the same
    assert await limits[1].reserve_session("newer", "app-9", per_app=5, total=8) == "server"


async def test_reservations_of_a_node_that_has_ended_are_free(
    limits: list[SharedLimits], driver: PostgresDriver
) -> None:
    one, two = limits
    assert await two.reserve_session("a", "app", per_app=1, total=9) is None
    assert await two.reserve_upload(b"a", "app", 10, max_bytes=10, max_count=1) is None
    assert await one.reserve_session("b", "app", per_app=1, total=9) == "app"
    assert await one.reserve_upload(b"b", "app", 10, max_bytes=10, max_count=9) == "bytes"
    await driver.change("UPDATE nodes SET state = 'gone' WHERE n = 2")
    assert await one.reserve_session("b", "app", per_app=1, total=9) is None
    assert await one.reserve_upload(b"b", "app", 10, max_bytes=10, max_count=1) is None


async def test_uploads_of_two_nodes_stay_within_the_bytes_and_the_number(
    limits: list[SharedLimits], driver: PostgresDriver
) -> None:
    one, two = limits
    asked = [
        limit.reserve_upload(b"%d" % number, "app", 10, max_bytes=100, max_count=1000)
        for number in range(15)
        for limit in (one, two)
    ]
    refused = await asyncio.gather(*asked)
    assert refused[::2].count(None) == 10
    assert refused[::2] == refused[1::2]  # the same uploads
    await driver.write([free_upload(b"0")])
    assert await one.reserve_upload(b"big", "app", 11, max_bytes=100, max_count=1000) == "bytes"
    assert await one.reserve_upload(b"big", "app", 9, max_bytes=100, max_count=10) is None
    assert await two.reserve_upload(b"big", "app", 10, max_bytes=100, max_count=10) is None
    assert await two.reserve_upload(b"more", "app", 0, max_bytes=100, max_count=10) == "count"
    assert await two.reserve_upload(b"more", "other", 100, max_bytes=100, max_count=10) is None


async def test_prompts_of_two_nodes_share_one_rate(limits: list[SharedLimits]) -> None:
    asked = [limits[number % 2].count_prompt("app", 6) for number in range(30)]
    # Tokens return in ten seconds each: a slow machine may see a few.
    assert 6 <= (await asyncio.gather(*asked)).count(True) <= 29
    assert not await limits[0].count_prompt("none", 0)
    assert await limits[1].count_prompt("other", 1)
    assert not await limits[0].count_prompt("other", 1)


async def test_node_takes_portions_of_a_large_rate_and_the_rate_is_never_exceeded(
    limits: list[SharedLimits], driver: PostgresDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = limits
    clock = mock.Mock(monotonic=mock.Mock(return_value=0.0))
    monkeypatch.setattr(shared_limits, "time", clock)
    change = driver.change
    queries = 0

    async def count(*arguments: Any, **options: Any) -> Any:
        nonlocal queries
        queries += 1
        await change("UPDATE prompt_rates SET at = now() + interval '1 hour'")  # none returns
        return await change(*arguments, **options)

    monkeypatch.setattr(driver, "change", count)
    for _ in range(6):
        assert await one.count_prompt("large", 600)
    assert queries == 1
    clock.monotonic.return_value = PORTION_SECS
    assert await one.count_prompt("large", 600)
    assert queries == 2
    clock.monotonic.return_value += RENEW_SECS + 0.1
    assert await one.count_prompt("large", 600)  # takes more, without waiting for it
    await one._tasks.wait_empty()
    assert queries == 3
    query = "SELECT remaining FROM prompt_rates WHERE app_name = 'large'"
    assert await driver.fetch(query, ()) == [(560 - 6 - 6 - 6 + 4,)]  # four were not used
    for _ in range(6):
        assert await one.count_prompt("large", 600)
    assert queries == 3
    taken = 0
    while await one.count_prompt("app", 300):
        taken += 1 + await two.count_prompt("app", 300)
    assert 270 <= taken <= 300
    assert queries < taken


class NodeAccounts:
    """The accounts of one node; what it spends is stored when the test says so."""

    def __init__(self, limits: SharedLimits, driver: PostgresDriver, number: int) -> None:
        self.accounts = Accounts()
        self.alerts: list[str] = []
        self.stored = asyncio.Event()
        self._driver = driver
        self._number = number
        self.accounts.join(RemoteSpending(limits, self._until_stored))
        self.accounts.on_alert.append(lambda app_name, _: self.alerts.append(app_name))

    async def start(self) -> None:
        await self.accounts.load("app")
        self.accounts.set("app", None, Budget(usd_per_day=1, tokens_per_day=1000))

    async def spend(self, usd: float, tokens: int = 0) -> None:
        """Spend in memory, and store it as the end of a turn does."""
        [(at,)] = await self._driver.fetch("SELECT extract(epoch FROM now())::float8", ())
        self.accounts.spend("app", Usage(input_tokens=tokens, cost=Cost(usd, "USD")), at)
        await self._driver.change(
            "INSERT INTO usage (at, app_name, agent, input_tokens, cost, currency, node)"
            " VALUES (?, 'app', 'mock', ?, ?, 'USD', ?)",
            (at, tokens, usd, self._number),
        )
        self.stored.set()

    async def settle(self) -> None:
        assert self.accounts.remote_spending is not None
        await self.accounts.remote_spending.settle()

    async def _until_stored(self) -> None:
        await self.stored.wait()


@pytest.fixture
async def two_accounts(
    limits: list[SharedLimits], driver: PostgresDriver
) -> AsyncIterator[list[NodeAccounts]]:
    found = [NodeAccounts(one, driver, index + 1) for index, one in enumerate(limits)]
    for one in found:
        await one.start()
    yield found
    for one in found:
        await one.settle()


async def test_budget_that_another_node_has_used_up_refuses_the_next_prompt(
    two_accounts: list[NodeAccounts],
) -> None:
    one, two = two_accounts
    await one.spend(0.7, 400)
    await two.accounts.update("app")
    two.accounts.check("app")
    await two.spend(0.1, 600)
    for node in two_accounts:
        await node.accounts.update("app")
        with pytest.raises(Error) as caught:
            node.accounts.check("app")
        assert caught.value.code is ErrorCode.BUDGET_EXCEEDED
        view = node.accounts.budget_view("app")
        assert view["tokens_per_day"]["used"] == 1000
        assert view["usd_per_day"]["used"] == pytest.approx(0.8)
        assert view["usd_per_day"]["remaining"] == pytest.approx(0.2)


async def test_budget_that_two_nodes_use_up_at_once_is_reported_once(
    two_accounts: list[NodeAccounts],
) -> None:
    one, two = two_accounts
    await asyncio.gather(one.spend(0.6), two.spend(0.6))
    # Neither knew of the other. The one that has stored its spending later notices it.
    await asyncio.gather(one.settle(), two.settle())
    for node in (one, two, one):
        await node.accounts.update("app")
        await node.settle()
    assert [*one.alerts, *two.alerts] == ["app"]


async def test_restarted_node_knows_what_it_has_spent_under_its_former_number(
    two_accounts: list[NodeAccounts], driver: PostgresDriver
) -> None:
    one, _ = two_accounts
    await one.spend(1.5)
    later = NodeAccounts(SharedLimits(driver, 3), driver, 3)
    await later.start()
    assert later.accounts.refusal("app") is not None
    assert later.accounts.budget_view("app")["usd_per_day"]["used"] == pytest.approx(1.5)
