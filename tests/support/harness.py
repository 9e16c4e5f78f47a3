"""The test harness: everything that a test needs to drive a server, in one import.

Tests never sleep for a fixed time. They wait for a frame, a state or a process, with a deadline
that fails the test.
"""

from __future__ import annotations

from .client import (
    ADMIN,
    Client,
    Json,
    Socket,
    chunk_text,
    failure,
    http_session,
    new_client,
    texts_of,
)
from .mock_agents import BUSY, MOCK, MOCKS, busy_socket, mock_agent, run_step, script
from .processes import (
    ROOT,
    descendants,
    descendants_of_agents,
    environ_of,
    is_running,
    run_program,
)
from .servers import (
    LocalServer,
    ServerProcess,
    blocking,
    call_after_lookup,
    hold_commits,
    local_server,
    start_server,
)
from .waiting import TIMEOUT_SECS, Clock, Deadline, eventually

__all__ = [
    "ADMIN",
    "BUSY",
    "MOCK",
    "MOCKS",
    "ROOT",
    "TIMEOUT_SECS",
    "Client",
    "Clock",
    "Deadline",
    "Json",
    "LocalServer",
    "ServerProcess",
    "Socket",
    "blocking",
    "busy_socket",
    "call_after_lookup",
    "chunk_text",
    "descendants",
    "descendants_of_agents",
    "environ_of",
    "eventually",
    "failure",
    "hold_commits",
    "http_session",
    "is_running",
    "local_server",
    "mock_agent",
    "new_client",
    "run_program",
    "run_step",
    "script",
    "start_server",
    "texts_of",
]
