"""Makes the sandbox of a server from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .. import installation
from ..config import Settings
from ..data_dir import DataDir
from .levels import find_mechanism
from .policy import SandboxPolicy
from .sandbox import Sandbox


def make_sandbox(
    settings: Settings, environ: Mapping[str, str], agent_environ: Mapping[str, str]
) -> Sandbox:
    """Make the sandbox that the settings name. Blocking: it tries which levels work.

    Args:
        environ: the environment of the server.
        agent_environ: the part of it that agents get.

    Raises:
        SettingError: the level that the settings name does not work on this machine.
    """
    sandbox = Sandbox(
        find_mechanism(settings.sandbox, environ),
        DataDir(settings.data_dir),
        SandboxPolicy(
            read=settings.sandbox_read,
            write=settings.sandbox_write,
            programs=tuple(
                (preset.command, *(preset.args or ()))
                for preset in settings.mcp_servers.values()
                if preset.command is not None
            ),
            roots=settings.workspace_roots,
        ),
        agent_environ,
        secret_files=(Path(".env"), installation.PACKAGE_FOLDER.parent / ".env"),
    )
    sandbox.prepare()
    return sandbox
