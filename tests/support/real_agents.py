"""Real agents for the tests, from npm.

``claude`` with two versions of its ACP adapter, Codex, Gemini CLI, OpenCode and Qwen Code. They
are 1.9 GB, so they are in the user's cache and not in the repository, once per machine and lock
file (``tests/support/real/``). ``make agents`` installs them with
``python -m tests.support.real_agents``. They connect only to the stand-ins of
``anthropic_stand_in.py`` and ``model_stand_ins.py``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .caches import NODE as NODE
from .caches import NotInstalledError as NotInstalledError
from .caches import cached_folder, install_once, npm_ci

PACKAGES = Path(__file__).parent / "real"


def folder() -> Path:
    """The path of the agents, also if they are not installed."""
    return cached_folder(
        "agents", [PACKAGES / name for name in ("package.json", "package-lock.json")]
    )


def install() -> None:
    """Install the agents unless they are installed.

    Raises:
        NotInstalledError: npm failed or timed out.
    """
    install_once(folder(), _install)


def _install(place: Path) -> None:
    shutil.copytree(PACKAGES, place)
    npm_ci(place)


def find_claude() -> Path:
    """The ``claude`` program.

    Raises:
        NotInstalledError: it is not installed.
    """
    return _find("@anthropic-ai/claude-code-*/claude")


def find_claude_adapter() -> Path:
    """The program ``claude-agent-acp``, a script for Node."""
    return _find(".bin/claude-agent-acp")


def find_newest_claude_adapter() -> Path:
    """The newest version of ``claude-agent-acp``."""
    return _find("claude-agent-acp-newest/dist/index.js")


def find_program(name: str) -> Path:
    """The program that npm calls *name*, a script for Node: ``codex-acp``, ``gemini``, ``qwen``."""
    return _find(f".bin/{name}")


def find_opencode() -> Path:
    """The ``opencode`` program."""
    return _find("opencode-*/bin/opencode")


def _find(pattern: str) -> Path:
    for program in folder().glob(f"node_modules/{pattern}"):
        return program
    raise NotInstalledError(
        f"{pattern} is not installed: run `python -m tests.support.real_agents`"
    )


if __name__ == "__main__":
    if not folder().exists():
        sys.stdout.write(f"Installing real agents into {folder()} …\n")
        sys.stdout.flush()
    try:
        install()
    except NotInstalledError as error:
        sys.exit(f"{error}\nThe tests on real agents are skipped.")
