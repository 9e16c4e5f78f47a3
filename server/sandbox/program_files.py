"""The files that a program needs to run, and their mounts. Needs only the standard library."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any


def program_paths(argv: Sequence[str], path: str | None) -> list[str]:
    """The files and folders that a program needs: itself, its script, and their packages.

    Args:
        argv: the program and its arguments. Every argument that is the absolute path of a file
            counts as a script.
        path: the folders to search for the program, as in ``PATH``.
    """
    files: list[str] = []
    named = [_find_program(argv[0], path), *(file for file in argv[1:] if file.startswith("/"))]
    waiting = [file for file in named if file is not None and os.path.isfile(file)]
    while waiting and len(files) < 100:
        file = waiting.pop()
        if file in files:
            continue
        files.append(file)
        if os.path.islink(file):
            waiting.append(os.path.join(os.path.dirname(file), os.readlink(file)))
        files.extend(packages_of(os.path.realpath(file)))
        interpreter = _interpreter_of(file)
        if interpreter is not None and os.path.isfile(interpreter):
            waiting.append(interpreter)
    return [os.path.normpath(file) for file in dict.fromkeys(files)]


def without_private(paths: Iterable[str], private: Sequence[str]) -> list[str]:
    """The *paths* that neither lead into a *private* one nor contain one.

    An agent may be able to write its own program: the first line of a script, or a link in its
    place, must not open the database.
    """
    tops = [os.path.realpath(path) for path in private]
    kept = []
    for path in paths:
        real = os.path.realpath(path)
        if not any(_is_in(real, top) or _is_in(top, real) for top in tops):
            kept.append(path)
    return kept


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def packages_of(file: str) -> Iterator[str]:
    """The folders of the installation that a program belongs to, if it has a known form."""
    folder, prefix = os.path.dirname(file), os.path.dirname(os.path.dirname(file))
    yield file
    parts = file.split("/")
    if "node_modules" in parts:
        yield "/".join(parts[: parts.index("node_modules") + 1])
    if os.path.basename(folder) != "bin":
        return
    if os.path.exists(os.path.join(prefix, "pyvenv.cfg")):
        yield prefix
    elif _is_prefix(prefix):
        for name in ("bin", "lib", "lib64", "libexec", "include"):
            if os.path.isdir(os.path.join(prefix, name)):
                yield os.path.join(prefix, name)


def _is_prefix(prefix: str) -> bool:
    """Whether Node or Python is installed below *prefix*."""
    try:
        names = os.listdir(os.path.join(prefix, "lib"))
    except OSError:
        return False
    return any(name == "node_modules" or name.startswith("python3") for name in names)


def _find_program(name: str, path: str | None) -> str | None:
    if "/" in name:
        return os.path.abspath(name)
    for folder in (path or os.defpath).split(os.pathsep):
        program = os.path.join(folder, name)
        if folder.startswith("/") and os.access(program, os.X_OK) and not os.path.isdir(program):
            return program
    return None


def _interpreter_of(file: str) -> str | None:
    """The program that a script's first line names."""
    try:
        with open(file, "rb") as script:
            line = script.readline(256)
    except OSError:
        return None
    words = line[2:].split() if line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words and words[0].startswith(b"/") else None


# bubblewrap.


def uncovered(paths: Iterable[str], plan: Mapping[str, Any]) -> Iterator[str]:
    """The *paths* that no other one contains, unless a hidden folder lies between them."""
    granted: set[str] = set()
    for path in sorted(paths, key=lambda path: path.count("/")):
        around = path
        while around not in granted and around not in plan["hidden"] and len(around) > 1:
            around = os.path.dirname(around)
        if around not in granted:
            granted.add(path)
            yield path


def mount_of(path: str) -> list[str]:
    """The options by which bubblewrap mounts a readable path."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    real = os.path.realpath(path)
    if real == path:
        return ["--ro-bind-try", path, path]
    return ["--ro-bind-try", real, real, "--ro-bind-try", real, path]


def mask_of(path: str) -> list[str]:
    """The options by which bubblewrap hides a path."""
    if os.path.isdir(path):  # which the program can pass through and not list
        return ["--perms", "0111", "--tmpfs", path]
    return ["--ro-bind", "/dev/null", path] if os.path.exists(path) else []
