"""The files outside of the session that a sandboxed program may read."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from .. import installation
from . import program_files

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/etc"),
    *("/nix", "/gnu", "/snap", "/run/current-system"),
)
"""The folders of the system and of installed programs."""
PROCESSES = "/proc"
CONTROL_GROUPS = "/sys/fs/cgroup"
SYSTEM_INFO = ("/sys/devices/system/cpu", "/sys/devices/system/node", CONTROL_GROUPS)
KERNEL_SETTINGS = (
    *("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi"),
    *("/proc/scsi", "/proc/mtrr", "/proc/asound", "/proc/driver"),
)
DEVICES = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"),
    *("/dev/ptmx", "/dev/pts"),
)
FILES_IN_ENVIRON = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"),
    *("CLAUDE_CODE_EXECUTABLE", "GOOGLE_APPLICATION_CREDENTIALS", "VIRTUAL_ENV"),
)
"""Variables with which the operator names files that agents must read."""
MAX_SCANNED = 20_000
MAX_LINKS = 1000


def system_paths(hidden: Collection[Path]) -> list[str]:
    """The parts of the system that a sandbox contains, without the *hidden* paths."""
    paths = [top for top in SYSTEM if os.path.exists(top)]  # noqa: PTH110
    resolver = os.path.realpath("/etc/resolv.conf")
    if not resolver.startswith("/etc/") and os.path.exists(resolver):  # noqa: PTH110
        paths.append(resolver)
    parts: list[str] = []
    for path in paths:
        if os.path.islink(path):  # noqa: PTH114
            parts.append(path)
        else:
            parts.extend(parts_without(path, hidden))
    return parts


def parts_without(top: str, hidden: Iterable[Path]) -> Iterator[str]:
    """*top*, or its parts if a *hidden* path is in it; nothing if *top* itself is hidden."""
    yield from _parts_without(top, [str(path) for path in hidden])


def _parts_without(top: str, hidden: Iterable[str]) -> Iterator[str]:
    # Paths are compared as text: `Path` would take most of the time of a server's start here.
    beginning = top.rstrip("/") + "/"
    inside = [path for path in hidden if path == top or path.startswith(beginning)]
    if not inside:
        yield top
        return
    if top in inside:
        return
    try:
        names = sorted(os.listdir(top))  # noqa: PTH208
    except OSError:
        return
    for name in names:
        yield from _parts_without(beginning + name, inside)


def secret_paths(top: str = "/etc") -> list[Path]:
    """The files and folders below *top* that this process may read and other users may not.

    Of an ordinary user these are none or few; of root, for example, the hashes of passwords.
    """
    secret: list[Path] = []
    count = 0
    waiting = [top]
    while waiting and count < MAX_SCANNED:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            count += 1
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except OSError:
                continue
            if stat.S_ISLNK(mode):
                continue
            needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
            if mode & needed != needed:
                if os.access(entry.path, os.R_OK):
                    secret.append(Path(entry.path))
            elif stat.S_ISDIR(mode):
                waiting.append(entry.path)
    return secret


def installed_programs(
    environ: Mapping[str, str], hidden: Collection[Path], home: Path | None
) -> list[str]:
    """The programs on the PATH, this server's Python and Node packages, and what belongs to them.

    Args:
        environ: the environment of the agents.
        hidden: paths that are never granted, nor anything in them, nor a folder around them.
        home: the home of the server's user, in which programs may be installed.
    """
    paths = [str(installation.NODE_MODULES), str(installation.NODE_PROGRAMS)]
    paths.append(str(installation.PACKAGE_FOLDER))
    paths += _python()
    for folder in environ.get("PATH", "").split(os.pathsep):
        if folder.startswith("/") and os.path.isdir(folder):  # noqa: PTH112
            paths += _programs_in(os.path.normpath(folder))
    for name in FILES_IN_ENVIRON:
        value = environ.get(name, "")
        if value.startswith("/") and os.path.exists(value):  # noqa: PTH110
            paths += [value, *program_files.packages_of(os.path.realpath(value))]
    around = [*hidden, *([home] if home is not None else [])]
    return [
        path
        for path in dict.fromkeys(paths)
        if not any(folder.is_relative_to(path) for folder in around)
        and not any(Path(path).is_relative_to(folder) for folder in hidden)
    ]


def _python() -> Iterator[str]:
    """The Python that runs this server, and with it the demo agent."""
    yield from program_files.program_paths([sys.executable], None)
    for prefix in (sys.prefix, sys.base_prefix):
        yield from program_files.packages_of(os.path.join(prefix, "bin", "python"))  # noqa: PTH118


def _programs_in(folder: str) -> Iterator[str]:
    if any(Path(folder).is_relative_to(top) for top in SYSTEM):
        return
    yield folder
    yield from program_files.packages_of(os.path.join(folder, "program"))  # noqa: PTH118
    try:
        links = [entry.path for entry in os.scandir(folder) if entry.is_symlink()]
    except OSError:
        return
    for link in links[:MAX_LINKS]:
        real = os.path.realpath(link)
        if os.path.isfile(real):  # noqa: PTH113
            yield from program_files.packages_of(real)


def contains_any(folder: Path, paths: Iterable[Path]) -> bool:
    """Whether *folder* is one of the *paths*, or contains one."""
    return any(path.is_relative_to(folder) for path in paths)


def outermost(paths: Iterable[str]) -> list[str]:
    """The *paths* without those that lie in another one of them."""
    outer: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.count("/")):
        if not any(path == other or path.startswith(other.rstrip("/") + "/") for other in outer):
            outer.append(path)
    return outer
