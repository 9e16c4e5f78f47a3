"""One request to the snapshotter: the folder, the repository and git."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .git import Git
from .records import Records
from .scan import Limits, Scan, open_below

Json = dict[str, Any]

LOOSE_OBJECTS = 2000
"""Objects that are packed together."""


class Refusal(Exception):  # noqa: N818 - an outcome, not a defect
    """An operation that cannot be done; the message is a code for the server."""


class Job:
    """One request: the folder, the repository and git."""

    def __init__(self, request: Json, base: int) -> None:
        self.request = request
        self.repository = Path(f"/proc/self/fd/{base}") / request["session_id"]
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(self.repository).st_mode):
                raise Refusal("broken")
        self.git = Git(request["git"], self.repository, [base])
        self.limits = Limits(*request["limits"])

    @contextlib.contextmanager
    def folder(self) -> Iterator[int]:
        """The descriptor of the folder."""
        top, *names = self.request["folder"]
        try:
            descriptor = open_below(top, names)
        except OSError:
            raise Refusal("no_folder") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def scan(self, folder: int) -> Scan:
        scan = Scan(folder, self.repository, self.limits, self.git.index_pack)
        scan.run()
        return scan

    def records(self) -> Records:
        return Records(self.repository)


def packing_after(job: Job, scan: Scan) -> Json:
    """Say whether the repository should be packed."""
    return {
        "pack": scan.index.loose > LOOSE_OBJECTS or scan.was_over_budget,
        "drop": scan.was_over_budget,
        "stored_bytes": scan.index.stored_bytes if scan.has_repository else 0,
    }
