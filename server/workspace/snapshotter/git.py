"""Runs git on a repository of snapshots. Git never works in the folder itself."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from .objects import UNSAVED

HARDENING = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false"),
    *("-c", "core.attributesFile=/dev/null", "-c", "gc.auto=0", "-c", "maintenance.auto=false"),
    *("-c", "core.protectHFS=false", "-c", "core.protectNTFS=false"),
    *("-c", "core.pager=cat", "--literal-pathspecs", "--no-replace-objects"),
)
ENVIRON = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_PAGER": "cat",
    "LC_ALL": "C",
    "HOME": "/nonexistent",
    "PATH": os.defpath,
}
MAX_GIT_BYTES = 64 << 20


class GitError(Exception):
    """A failure of git; the message is for the server's log."""


class OutputTooLargeError(GitError):
    """The output exceeds the limit."""


class Confinement(NamedTuple):
    """The restriction of git on a repository that agents may change while it works.

    Attributes:
        module: the path of ``sandbox/restrict.py``, which needs only the standard library.
        plan: for its function ``confine``.
    """

    module: str
    plan: Mapping[str, Any]

    def of(self, argv: Sequence[str]) -> Callable[[], None]:
        """The function that a new process calls before it becomes the program."""
        spec = importlib.util.spec_from_file_location("restrict", self.module)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return functools.partial(module.confine, self.plan, argv)


class Git:
    """Git on one repository.

    Args:
        program: the path of git.
        keep: descriptors that the path of the repository needs.
        confinement: restricts git.
    """

    def __init__(
        self,
        program: str,
        repository: Path,
        keep: Sequence[int] = (),
        confinement: Confinement | None = None,
    ) -> None:
        self._program = program
        self._repository = repository
        self._keep = tuple(keep)
        self._confinement = confinement

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        argv = [self._program, *HARDENING, *arguments]
        confine = self._confinement.of(argv[:1]) if self._confinement is not None else None
        return subprocess.Popen(
            argv,
            env={**ENVIRON, "GIT_DIR": str(self._repository)},
            cwd="/",
            pass_fds=self._keep,
            preexec_fn=confine,
            **{"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options},
        )

    def index_pack(self, path: Path, index: Path) -> None:
        """Write the index of a pack."""
        self.output("index-pack", "-o", str(index), str(path))

    def output(self, *arguments: str, limit: int = MAX_GIT_BYTES) -> bytes:
        """Run git and return its output.

        Raises:
            GitError: it fails. :class:`OutputTooLargeError`: the output exceeds the limit.
        """
        with self.start(*arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            data = process.stdout.read(limit + 1)
            if len(data) > limit:
                process.kill()
                raise OutputTooLargeError
        if process.returncode:
            raise GitError(f"git {arguments[0]}: status {process.returncode}")
        return data


class TreeFile(NamedTuple):
    """A file, link or empty folder of a tree."""

    mode: int
    oid: bytes


def files_of(git: Git, tree: bytes) -> dict[str, TreeFile]:
    """Return the files and folders of a tree, by path."""
    files = {}
    for line in git.output("ls-tree", "-r", "-t", "-z", tree.hex()).split(b"\0"):
        if line:
            about, _, path = line.partition(b"\t")
            mode, _, oid = about.split(b" ")
            files[os.fsdecode(path)] = TreeFile(int(mode, 8), bytes.fromhex(oid.decode()))
    return files


class Blobs:
    """Reads blobs of a repository through one git process."""

    def __init__(self, git: Git) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = git.start("cat-file", "--batch", **pipes)

    def read(self, oid: bytes) -> bytes:
        """Return the content of a blob.

        Raises:
            GitError: it does not exist.
        """
        source: IO[bytes] | None = self._process.stdout
        target: IO[bytes] | None = self._process.stdin
        assert source is not None
        assert target is not None
        target.write(oid.hex().encode() + b"\n")
        target.flush()
        header = source.readline().split()
        if len(header) != 3 or header[1] != b"blob":
            raise GitError(f"the object {oid.hex()} is missing")
        data = source.read(int(header[2]) + 1)
        return data[:-1]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Change(NamedTuple):
    """A file that differs between two trees; lines are None if they cannot be counted."""

    path: str
    status: str
    additions: int | None
    deletions: int | None


STATUSES = {"A": "added", "D": "deleted"}


def changes_between(git: Git, old: bytes, new: bytes) -> list[Change]:
    """Return the files that differ between two trees, in the order of their paths."""
    output = git.output(
        *("diff-tree", "-r", "-z", "--raw", "--numstat", "--no-renames", "--no-abbrev"),
        *("--no-ext-diff", "--no-textconv", old.hex(), new.hex()),
    )
    parts = iter(os.fsdecode(output).split("\0"))
    statuses: dict[str, tuple[str, bool]] = {}
    lines: dict[str, tuple[int, int]] = {}
    for part in parts:
        if part.startswith(":"):
            old_mode, new_mode, _, _, letter = part[1:].split(" ")
            is_unsaved = UNSAVED in (int(old_mode, 8), int(new_mode, 8))
            statuses[next(parts)] = STATUSES.get(letter[0], "modified"), is_unsaved
        elif match := re.match(r"(\d+)\t(\d+)\t(.*)\Z", part, re.DOTALL):
            lines[match[3]] = int(match[1]), int(match[2])
    return [
        Change(path, status, *((None, None) if is_unsaved else lines.get(path, (None, None))))
        for path, (status, is_unsaved) in statuses.items()
    ]


def paths_between(git: Git, old: bytes, new: bytes) -> Iterator[str]:
    """Yield the paths that differ between two trees."""
    if old != new:
        output = git.output("diff-tree", "-r", "-z", "--name-only", old.hex(), new.hex())
        yield from filter(None, os.fsdecode(output).split("\0"))


def diff_between(git: Git, old: bytes, new: bytes, paths: Sequence[str], limit: int) -> bytes:
    """Return the unified diff of files between two trees.

    Args:
        paths: files or folders; all if it is empty.
        limit: bytes.

    Raises:
        OutputTooLargeError: the diff is longer.
    """
    return git.output(
        *("diff-tree", "-r", "-p", "--no-renames", "--no-ext-diff", "--no-textconv"),
        *("--no-color", "--src-prefix=a/", "--dst-prefix=b/", "--ignore-submodules=all"),
        *(old.hex(), new.hex(), "--", *paths),
        limit=limit,
    )


def pack_objects(git: Git) -> None:
    """Pack the objects of all snapshots, and delete those that no snapshot has."""
    git.output("repack", "-a", "-d", "-q", "--threads=1", "--window=2")
    git.output("prune", "--expire=now")
