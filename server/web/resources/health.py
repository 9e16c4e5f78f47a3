"""Liveness and readiness checks, without a token and without waiting."""

from __future__ import annotations

import time
from typing import Literal

import msgspec
from aiohttp import web

from ... import __version__
from ...errors import draining
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count


class SandboxInfo(msgspec.Struct, kw_only=True):
    """The sandbox around the agents: what it closes, and what stays open."""

    level: Literal["bwrap", "landlock", "off"]
    enforced: list[str]
    open: list[str]


class NodeState(msgspec.Struct, kw_only=True):
    """A node of the cluster."""

    name: str
    state: str


class EngineState(msgspec.Struct, kw_only=True):
    """The database that the nodes share."""

    kind: Literal["postgresql"]
    reachable: bool
    round_trip_ms: float | None
    synchronous_commit: str
    standbys: Count
    synchronous_standbys: Count


class Health(msgspec.Struct, kw_only=True):
    """The server's own state."""

    version: str
    claude_present: bool
    claude_version: str | None
    acpx_present: bool
    acpx_version: str | None
    open_sessions: Count
    live_agents: Count
    sockets: Count
    uptime_secs: Count
    sandbox: SandboxInfo
    node: str | msgspec.UnsetType = msgspec.UNSET
    nodes: list[NodeState] | msgspec.UnsetType = msgspec.UNSET
    engine: EngineState | msgspec.UnsetType = msgspec.UNSET


class Ready(msgspec.Struct, kw_only=True):
    """The server accepts requests."""


@Endpoint(
    "GET",
    "/healthz",
    tag=Tag.MONITORING,
    summary="Liveness check",
    auth=None,
    example={
        "ok": True,
        "version": "0.3.0",
        "claude_present": False,
        "claude_version": None,
        "acpx_present": True,
        "acpx_version": "0.19.1",
        "open_sessions": 3,
        "live_agents": 1,
        "sockets": 2,
        "uptime_secs": 86400,
        "sandbox": {
            "level": "landlock",
            "enforced": ["files", "memory", "kernel", "home", "signals", "sockets", "ipc"],
            "open": ["process list", "file attributes", "terminals", "loopback", "cpu"],
        },
    },
)
async def get_health(request: web.Request) -> Health:
    context = context_of(request)
    monitor, sandbox = context.health, context.sessions.backend.sandbox
    health = Health(
        version=__version__,
        claude_present=monitor.claude_present,
        claude_version=monitor.claude_version,
        acpx_present=monitor.acpx_version is not None,
        acpx_version=monitor.acpx_version,
        open_sessions=context.sessions.quotas.open_sessions,
        live_agents=len(context.sessions.slots),
        sockets=len(context.sockets),
        uptime_secs=int(time.time() - context.started_at),
        sandbox=SandboxInfo(level=sandbox.level, enforced=sandbox.enforced, open=sandbox.open),
    )
    if (engine := monitor.engine) is not None:
        health.node = engine.name
        health.nodes = [NodeState(name=node.name, state=node.state) for node in engine.lease.nodes]
        health.engine = EngineState(**engine.describe())
    return health


@Endpoint(
    "GET",
    "/readyz",
    tag=Tag.MONITORING,
    summary="Readiness check",
    auth=None,
    example={"ok": True},
    failures=("draining",),
)
async def get_readiness(request: web.Request) -> Ready:
    context = context_of(request)
    health = context.health
    if not (health.ready and health.is_in_cluster) or context.supervisor.failure is not None:
        raise draining()
    return Ready()
