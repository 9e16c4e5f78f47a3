"""Fixtures: a connection to ``/acp``."""

from __future__ import annotations

import pytest

from ..support.acp_client import AcpClient, connect
from ..support.harness import Client


@pytest.fixture
async def acp(client: Client) -> AcpClient:
    """A connection of the test's own app."""
    return await connect(client)
