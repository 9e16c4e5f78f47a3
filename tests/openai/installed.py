"""The clients of OpenAI's API that the tests run, apart from the packages of the other tests.

They are 450 MB, so they are in the user's cache and not in the repository, once per machine and
version (``tests/openai/programs/``). The slow tests install them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ..support.caches import cached_folder, install_once, npm_ci, run_installer

PROGRAMS = Path(__file__).parent / "programs"
_SOURCES = [PROGRAMS / name for name in ("requirements.txt", "package.json", "package-lock.json")]
_PIP = ("install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off")


def install() -> Path:
    """Install the clients unless they are installed. Return their folder.

    Raises:
        NotInstalledError: they cannot be installed.
    """
    folder = cached_folder("openai-clients", _SOURCES)
    install_once(folder, _install)
    return folder


def _install(place: Path) -> None:
    place.mkdir()
    for source in (*_SOURCES, PROGRAMS / ".npmrc"):
        shutil.copy(source, place)
    npm_ci(place)
    run_installer(sys.executable, "-m", "venv", "python", cwd=place)
    python = str(place / "python" / "bin" / "python")
    run_installer(python, "-m", "pip", *_PIP, "-r", "requirements.txt", cwd=place)
