"""The minified page that ``bundle_page.mjs`` writes; it is used only if it matches the sources."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import msgspec

# Anybody may request files: the sources are looked at once in this time.
LOOK_EVERY_SECS = 1.0

UNVERSIONED = frozenset({"sw.js", "highlight.worker.js", "docs.js"})
"""Files with one address for all versions, which browsers ask about at each use."""

# In the file names of the bundler: a hash of the content.
_HASHED = re.compile(r"-[0-9A-Z]{8}\.\w+")


class _Facts(msgspec.Struct):
    """Facts that ``bundle_page.mjs`` writes about its result."""

    digest: str
    version: str


class BuiltPage:
    """The folder of minified files, as long as they were built from the sources of today.

    A developer who edits the sources sees them at once: another digest turns the built files off.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[object, ...] = ()
        self._looked: tuple[Path, float] | None = None
        self._version: str | None = None

    def version(self, sources: Path) -> str | None:
        """Return the version of the built files, or None if they do not match *sources*."""
        now = time.monotonic()
        if self._looked and self._looked[0] == sources and now < self._looked[1] + LOOK_EVERY_SECS:
            return self._version
        try:
            seen = (sources, *_stamps(sources), *_stamps(self._folder))
        except OSError:
            return None
        if seen != self._seen:
            self._seen, self._version = seen, self._read(sources)
        self._looked = sources, now
        return self._version

    def _read(self, sources: Path) -> str | None:
        try:
            facts = msgspec.json.decode((self._folder / "built.json").read_bytes(), type=_Facts)
            return facts.version if facts.digest == digest_of_sources(sources) else None
        except (OSError, msgspec.DecodeError):
            return None

    def find_file(self, sources: Path, name: str, version: str | None) -> Path | None:
        """Return the built file of that name, if the request asks for today's version of it."""
        is_known = name in UNVERSIONED or _HASHED.search(name)
        if "/" in name or (version is None and not is_known):
            return None
        known = self.version(sources)
        if known is None or version not in (None, known):
            return None
        file = self._folder / name
        return file if file.is_file() else None

    def page(self, sources: Path) -> Path | None:
        """Return the page that names the built files."""
        return self._folder / "index.html" if self.version(sources) else None


def _served_files(folder: Path) -> list[tuple[str, Path]]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    served = (path for path in paths if not path.name.endswith(".d.ts"))
    return sorted((path.relative_to(folder).as_posix(), path) for path in served)


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Return what changes when a file does, at the cost of a look at each."""
    return [
        (name, stat.st_mtime_ns, stat.st_size)
        for name, path in _served_files(folder)
        for stat in [path.stat()]
    ]


def digest_of_sources(sources: Path) -> str:
    """Return the same digest as ``bundle_page.mjs``: of the names and bytes of all sources."""
    digest = hashlib.sha256()
    for name, path in _served_files(sources):
        content = path.read_bytes()
        digest.update(b"%b\0%d\0" % (name.encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()
