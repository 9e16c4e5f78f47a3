"""The server of the tests of ``/run``: it runs the fake claude program."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ..support.harness import LocalServer, blocking, local_server
from ..support.runs import make_fake_claude


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    folder = tmp_path_factory.mktemp("run")
    claude = make_fake_claude(folder)
    async with local_server(folder / "data", claude_bin=claude, cancel_grace_secs=0.2) as server:
        blocking.deactivate()
        yield server
