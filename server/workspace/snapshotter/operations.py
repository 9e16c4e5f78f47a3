"""The operations of the snapshotter. Each has a request, a response and sometimes data."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator

from . import git as git_module
from .git import Change, Confinement, Git, GitError, OutputTooLargeError
from .index_file import INDEX_NAME, load_index, save_index
from .job import Job, Json, Refusal, packing_after
from .objects import EMPTY_TREE, create_repository, size_of_objects
from .records import Record, Records
from .restore import Restoration
from .scan import Scan, TooManyFilesError, open_below, skipped_by
from .undoing import recover, settle, undo
from .worktrees import Repository, RepositoryError

ENDING = "ending"
"""The file of a snapshot after a turn that is being taken. It has the index of the turn."""


def perform(request: Json) -> tuple[Json, bytes]:
    """Carry out a request. Failures become responses with ``error``."""
    base = -1
    try:
        base = open_below(*_split(request["base"]), make=True)
        job = Job(request, base)
        if request["op"] in AFTER_TURNS:
            complete_turn(job)
        return OPERATIONS[request["op"]](job)
    except Refusal as refusal:
        return {"error": str(refusal)}, b""
    except RepositoryError as error:
        return {"error": error.code, "detail": str(error)}, b""
    except TooManyFilesError:
        return {"error": "too_many_files"}, b""
    except OutputTooLargeError:
        return {"error": "too_large"}, b""
    except (GitError, MemoryError) as error:
        return {"error": "failed", "detail": f"{type(error).__name__}: {error}"}, b""
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return {"error": "disk_full" if is_full else "failed", "detail": str(error)}, b""
    finally:
        if base >= 0:
            os.close(base)


def _split(path: list[str]) -> tuple[str, list[str]]:
    return path[0], path[1:]


def take_snapshot(job: Job) -> tuple[Json, bytes]:
    """Scan the folder, and add a record if it has changed since the last one."""
    kind, turn_index = job.request["kind"], job.request["turn_index"]
    if kind == "start":
        complete_turn(job)
    with job.folder() as folder, _ending(job, turn_index if kind == "end" else None):
        scan = job.scan(folder)
        _record_missed(job)
        _record_scan(job, scan, kind, turn_index)
    return {**packing_after(job, scan), "skipped": skipped_by(scan)}, b""


def _record_scan(job: Job, scan: Scan, kind: str, turn_index: int) -> None:
    records = job.records()
    if scan.index.tree != records.last_tree or (records.all and records.all[-1].kind == "missed"):
        create_repository(job.repository)
        records.add(kind, turn_index, scan.index.tree)


@contextlib.contextmanager
def _ending(job: Job, turn_index: int | None) -> Iterator[None]:
    """Note that the snapshot after a turn is being taken, for the case that it is interrupted."""
    if turn_index is None:
        yield
        return
    create_repository(job.repository)
    (job.repository / ENDING).write_text(str(turn_index), "utf-8")
    try:
        yield
    finally:
        (job.repository / ENDING).unlink(missing_ok=True)


def complete_turn(job: Job) -> None:
    """Take the snapshot after a turn that a kill has interrupted, unless a turn has run since.

    Otherwise the changes of the turn would not be attributed to the agent.
    """
    try:
        turn_index = int((job.repository / ENDING).read_text("utf-8"))
    except (OSError, ValueError):
        return
    try:
        if all(record.turn_index <= turn_index for record in job.records().all):
            with job.folder() as folder:
                _record_scan(job, job.scan(folder), "end", turn_index)
    except (Refusal, TooManyFilesError):
        pass  # the turn has no snapshot, as it would have none without the kill
    finally:
        (job.repository / ENDING).unlink(missing_ok=True)


def warm_up(job: Job) -> tuple[Json, bytes]:
    """Scan the folder without a record, so that the first snapshot is quick."""
    with job.folder() as folder:
        scan = job.scan(folder)
    return packing_after(job, scan), b""


def _record_missed(job: Job) -> None:
    for turn_index in job.request.get("missed", ()):
        create_repository(job.repository)
        job.records().add("missed", turn_index, EMPTY_TREE)


def list_records(job: Job) -> tuple[Json, bytes]:
    """List the snapshots, the oldest first."""
    records = [
        {"id": record.id, "kind": record.kind, "turn_index": record.turn_index, "at": record.at}
        for record in job.records().all
        if record.kind != "missed"
    ]
    return {"records": records}, b""


class Comparison:
    """The range of snapshots that a request compares.

    Attributes:
        old, new: the trees.
        paths: the paths that the agent has changed; None if there were no other changes.
        skipped: what the snapshots leave out.
    """

    def __init__(self, job: Job) -> None:
        request, records = job.request, job.records()
        since = request["since_turn"]
        old = records.first_tree if since is None else records.before_turn(since)
        if old is None:
            raise Refusal("no_snapshot")
        self.old, self.new = old, records.last_tree
        self.skipped: Json = {}
        later = [record for record in records.all if since is None or record.key > (since, 0)]
        if request["is_live"]:
            with job.folder() as folder:
                scan = job.scan(folder)
            self.new, self.skipped = scan.index.tree, skipped_by(scan)
            later.append(Record(0, "end", 0, 0, "", self.new))
        self.paths = self._paths_of_agent(job.git, later)

    def _paths_of_agent(self, git: Git, later: list[Record]) -> set[str] | None:
        before, by_others, by_agent = self.old, False, []
        for record in later:
            if record.kind == "end":
                by_agent.append((before, record.tree))
            elif record.kind != "restored":
                by_others = by_others or record.tree != before
            before = record.tree if record.kind != "missed" else before
        if not by_others:
            return None
        return {path for old, new in by_agent for path in git_module.paths_between(git, old, new)}


def compare_folders(job: Job) -> tuple[Json, bytes]:
    """List what the agent has changed."""
    compared = Comparison(job)
    changes: list[Change] = []
    if compared.old != compared.new:
        changes = git_module.changes_between(job.git, compared.old, compared.new)
    if compared.paths is not None:
        changes = [change for change in changes if change.path in compared.paths]
    return {"files": [change._asdict() for change in changes], "skipped": compared.skipped}, b""


def compare_files(job: Job) -> tuple[Json, bytes]:
    """Return the unified diff of what the agent has changed."""
    compared = Comparison(job)
    if compared.old == compared.new:
        return {}, b""
    changes = git_module.changes_between(job.git, compared.old, compared.new)
    wanted = job.request["path"]
    paths = [
        change.path
        for change in changes
        if (compared.paths is None or change.path in compared.paths)
        and (not wanted or change.path == wanted or change.path.startswith(f"{wanted}/"))
    ]
    if not paths:
        return {}, b""
    if len(paths) == len(changes):
        paths = []
    elif sum(map(len, paths)) > 1 << 17:  # more than a command line may have
        raise OutputTooLargeError
    limit = job.request["max_bytes"]
    return {}, git_module.diff_between(job.git, compared.old, compared.new, paths, limit)


def pack_repository(job: Job) -> tuple[Json, bytes]:
    """Pack the objects; with ``drop``, first drop the older half of the snapshots."""
    records = job.records()
    if job.request["drop"] and len(records.all) > 2:
        records.drop((len(records.all) - 1) // 2)
        records.save()
    # The index may have objects that no record has yet; the next scan must store them again.
    index = load_index(job.repository)
    git_module.pack_objects(job.git)
    if index is not None:
        if index.tree == records.last_tree:
            index.stored_bytes, index.loose = size_of_objects(job.repository), 0
            save_index(job.repository, index)
        else:
            (job.repository / INDEX_NAME).unlink(missing_ok=True)
    return {}, b""


def copy_snapshots(job: Job) -> tuple[Json, bytes]:
    """Copy the snapshots up to a turn to another session. Objects are shared by hard links.

    The response has the ``tree`` that the other folder gets: without a turn the present state of
    the folder, otherwise the state after the turn; None if no snapshot has it.
    """
    source, turn_index = job.repository, job.request["turn_index"]
    target = source.with_name(job.request["target_id"])
    tree: bytes | None = None
    if turn_index is None:
        with job.folder() as folder:
            tree = job.scan(folder).index.tree
    if not (source / "HEAD").exists():
        return {"tree": None}, b""
    shutil.rmtree(target, ignore_errors=True)
    create_repository(target)
    shutil.copytree(source / "objects", target / "objects", copy_function=_link, dirs_exist_ok=True)
    records, copied = Records(source), Records(target)
    copied.all = [
        record for record in records.all if turn_index is None or record.key <= (turn_index, 1)
    ]
    copied.save()
    if tree is None:
        tree = next(
            (record.tree for record in reversed(copied.all) if record.kind != "missed"), None
        )
    return {"tree": None if tree is None else tree.hex()}, b""


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:
        shutil.copy2(source, target)


def populate(job: Job) -> tuple[Json, bytes]:
    """Give the folder the state of a tree."""
    target = git_module.files_of(job.git, bytes.fromhex(job.request["tree"]))
    with job.folder() as folder:
        restoration = Restoration(folder, job.git, job.scan(folder).index.entries, target)
        restoration.run()
    return {"restored": restoration.restored, "not_restored": restoration.failed}, b""


def _repository(request: Json) -> Repository:
    given = request["confinement"]
    confinement = Confinement(given["module"], given["plan"]) if given is not None else None
    return Repository(request["git"], request["repository"], request["roots"], confinement)


def add_worktree(job: Job) -> tuple[Json, bytes]:
    """Add a worktree of a user's repository at an empty folder."""
    request = job.request
    repository = _repository(request)
    with job.folder() as folder:
        missing = repository.add_worktree(
            folder, request["path"], request["session_id"][:8], request["branch"]
        )
    return {"missing": missing}, b""


def remove_worktree(job: Job) -> tuple[Json, bytes]:
    """Remove what a user's repository keeps of a worktree whose folder was deleted."""
    request = job.request
    repository = _repository(request)
    repository.remove_worktree(request["path"], request["session_id"][:8])
    return {}, b""


OPERATIONS: dict[str, Callable[[Job], tuple[Json, bytes]]] = {
    "snapshot": take_snapshot,
    "warm_up": warm_up,
    "records": list_records,
    "changes": compare_folders,
    "diff": compare_files,
    "undo": undo,
    "recover": recover,
    "settle": settle,
    "pack": pack_repository,
    "copy": copy_snapshots,
    "populate": populate,
    "add_worktree": add_worktree,
    "remove_worktree": remove_worktree,
}
AFTER_TURNS = frozenset({"records", "changes", "diff", "undo", "copy"})
"""The operations that need the snapshot after the last turn."""
