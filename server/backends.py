"""The way to run agents that the settings name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from .agent_commands import AgentCommand
from .agents.catalog import find_node
from .agents.cli.backend import CliBackend
from .agents.host.backend import HostBackend
from .agents.output_limits import Backpressure, MessageLimits
from .agents.process.environ import agent_environ, with_folder_of
from .agents.selection import FALLBACK_AGENT
from .config import Settings
from .data_dir import DataDir
from .reload.state import Inherited
from .sandbox.sandbox import OFF, Sandbox
from .tasks import Supervisor

DEMO = Path(__file__).parent / "agents" / "demo" / "demo_agent.py"

AgentBackend = HostBackend | CliBackend


def make_backend(
    settings: Settings,
    environ: Mapping[str, str],
    pressure: Backpressure,
    supervisor: Supervisor | None = None,
    *,
    sandbox: Sandbox | None = None,
    node: str | None = None,
    inherited: Inherited | None = None,
) -> AgentBackend:
    """Make the agent backend that the settings name.

    Args:
        sandbox: restricts the agents; without one, no agent may be started.
        node: Node's executable; by default it is searched for.
        inherited: the state of an earlier version of the server.

    Raises:
        AcpxError: Node is missing.
    """
    demo = AgentCommand((sys.executable, "-I", "-S", str(DEMO)))
    make = (
        partial(HostBackend, supervisor=supervisor, inherited=inherited)
        if settings.agent_backend == "host"
        else CliBackend
    )
    node = node or find_node()
    return make(
        node=node,
        data_dir=DataDir.of(settings),
        agents={FALLBACK_AGENT: demo, **settings.agents},
        environ=with_folder_of(node, agent_environ(environ, settings.agent_env)),
        start_timeout=settings.agent_start_timeout_secs,
        backpressure=pressure,
        limits=MessageLimits(
            settings.max_agent_message_bytes,
            settings.max_agent_message_bytes_per_app,
            settings.agent_message_timeout_secs,
        ),
        sandbox=sandbox or Sandbox(OFF, DataDir.of(settings)),
    )
