"""The parts of a registry that are made of many others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..workspace.worktrees import Worktrees
from .creation import SessionCreator

if TYPE_CHECKING:
    from .registry import SessionRegistry


def make_creator(sessions: SessionRegistry) -> SessionCreator:
    """Make the creator of the sessions of a registry."""
    return SessionCreator(
        sessions.settings,
        backend=sessions.backend,
        writer=sessions.writer,
        agents=sessions.agents,
        prewarmer=sessions.prewarmer,
        workspaces=sessions.workspaces,
        worktrees=Worktrees(sessions.snapshots, sessions.settings.workspace_roots),
        disk=sessions.disk,
        tasks=sessions.tasks,
        clock=sessions.clock,
        cluster=sessions.cluster,
    )
