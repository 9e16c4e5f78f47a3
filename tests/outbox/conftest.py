"""Fixtures: a receiver of webhooks, and a server that may send to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from server.hosts import host_rule

from ..support.harness import LocalServer, blocking, local_server
from ..support.push_service import PushService, push_service
from ..support.receiver import Receiver, webhook_receiver

LOCAL = (host_rule("127.0.0.1"),)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    """The server of ``server`` and ``client``: it may send to this machine."""
    async with local_server(
        tmp_path_factory.mktemp("shared") / "data",
        webhook_hosts=LOCAL,
        push_contact="mailto:operator@example.org",
        push_hosts=LOCAL,
        max_push_subscriptions_per_app=3,
    ) as server:
        blocking.deactivate()
        yield server


@pytest.fixture
async def service() -> AsyncIterator[PushService]:
    async with push_service() as running:
        yield running


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with webhook_receiver() as running:
        yield running
