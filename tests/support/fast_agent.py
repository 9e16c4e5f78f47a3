"""The real fast-agent for the tests, from PyPI.

It needs a newer Python than the project, which is looked for beside the present one and on the
PATH. ``make agents`` installs it with ``python -m tests.support.fast_agent``, once per machine and
list of packages (``tests/support/real/fast-agent.txt``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .caches import NotInstalledError, cached_folder, install_once, run_installer

PACKAGES = Path(__file__).parent / "real" / "fast-agent.txt"
MINORS = (14, 13, 12)
"""The versions of Python 3 that it runs on, the preferred one first."""


def _candidates() -> Iterator[Path]:
    for minor in MINORS:
        if sys.version_info[:2] == (3, minor):
            yield Path(sys.executable)
        beside = Path(sys.base_prefix).parent.glob(f"3.{minor}.*/bin/python3.{minor}")
        yield from sorted(beside, reverse=True)
        if (found := shutil.which(f"python3.{minor}")) is not None:
            yield Path(found)


@cache
def find_python() -> Path:
    """A Python that fast-agent runs on.

    Raises:
        NotInstalledError: there is none.
    """
    for path in _candidates():
        asked = subprocess.run([path, "-m", "pip", "--version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return path
    raise NotInstalledError("fast-agent needs Python 3.12 or newer")


def folder() -> Path:
    """The path of its virtual environment, also if it is not installed."""
    return cached_folder(f"fast-agent-{find_python().name}", [PACKAGES])


def find_fast_agent() -> tuple[str, ...]:
    """The command of ``fast-agent-acp``.

    Raises:
        NotInstalledError: it is not installed.
    """
    program = folder() / "bin" / "fast-agent-acp"
    if not program.exists():
        raise NotInstalledError(
            "fast-agent is not installed: run `python -m tests.support.fast_agent`"
        )
    # Named with its interpreter, as the script names the place where it was made.
    return str(folder() / "bin" / "python"), str(program)


def install() -> None:
    """Install fast-agent unless it is installed.

    Raises:
        NotInstalledError: there is no Python for it, or pip failed or timed out.
    """
    install_once(folder(), _install)


def _install(place: Path) -> None:
    run_installer(str(find_python()), "-m", "venv", str(place), cwd=place.parent)
    pip = (str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps")
    run_installer(*pip, "--requirement", str(PACKAGES), cwd=place)


if __name__ == "__main__":
    try:
        install()
    except NotInstalledError as error:
        sys.exit(f"{error}\nThe tests on fast-agent are skipped.")
