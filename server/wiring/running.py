"""Settings on which a running server and its next version must agree."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Settings
from ..reload.program import StartedProgram
from ..reload.reloader import Reloader
from ..reload.state import STATE_VERSION, Inherited


def agreed_settings(settings: Settings) -> dict[str, object]:
    """The settings that a reload cannot change, by the names of their variables."""
    return {
        "CLAWDFORGE_DATA_DIR": str(settings.data_dir.absolute()),
        "CLAWDFORGE_HOST": settings.host,
        "CLAWDFORGE_PORT": settings.port,
        "CLAWDFORGE_AGENT_BACKEND": settings.agent_backend,
        # Its value may contain a password. A node of a cluster is not reloaded at all.
        "CLAWDFORGE_CLUSTER_URL": "set" if settings.cluster_url else "not set",
    }


def make_reloader(
    settings: Settings, program: StartedProgram | None, inherited: Inherited | None
) -> Reloader:
    """Make the reloader of a server that was started with *settings*."""
    running: Mapping[str, object] = {"state": STATE_VERSION, **agreed_settings(settings)}
    if settings.cluster_url:
        program = None  # a node drains and is restarted: the others take its sessions
    return Reloader(program, running, inherited.reloads if inherited is not None else 0)
