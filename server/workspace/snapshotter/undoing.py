"""Undo: restores a folder to an earlier state, also if the server is killed meanwhile."""

from __future__ import annotations

import contextlib
import json

from . import git as git_module
from .index_file import replace
from .job import Job, Json, Refusal, packing_after
from .objects import create_repository
from .restore import Restoration, remove_temporaries
from .scan import Scan, skipped_by

JOURNAL = "restoring"
"""The file of an undo that is not finished, or that the server's log may lack."""


def undo(job: Job) -> tuple[Json, bytes]:
    """Restore the folder to an earlier state, and keep the present state as a snapshot."""
    request, records = job.request, job.records()
    if (name := request["snapshot_id"]) is not None:
        target = records.by_id(name)
    else:
        target = records.before_turn(request["turn_index"])
    if target is None:
        raise Refusal("no_snapshot")
    with job.folder() as folder:
        scan = job.scan(folder)
        create_repository(job.repository)
        record = records.add("undo", request["last_turn"], scan.index.tree)
        journal = {
            "undo_id": request["undo_id"],
            "target": target.hex(),
            "last_turn": request["last_turn"],
            "turn_index": request["turn_index"],
            "restored_id": name,
            "snapshot_id": record.id,
            "entry_index": request["entry_index"],
            "position": request["position"],
        }
        _write_journal(job, journal)
        return {"snapshot_id": record.id, **_restore(job, folder, scan, journal)}, b""


def _write_journal(job: Job, journal: Json) -> None:
    replace(job.repository / JOURNAL, json.dumps(journal).encode())


def _restore(job: Job, folder: int, scan: Scan, journal: Json) -> Json:
    """Restore the folder, record the result, and note in the journal that this is done.

    The server removes the journal when its own log has the undo, or when that has failed.

    Returns:
        What the response says about the folder.
    """
    files = git_module.files_of(job.git, bytes.fromhex(journal["target"]))
    restoration = Restoration(folder, job.git, scan.index.entries, files)
    restoration.run()
    scan = job.scan(folder)
    job.records().add("restored", journal["last_turn"], scan.index.tree)
    _write_journal(job, {**journal, "is_done": True})
    response = {"restored": restoration.restored, "not_restored": restoration.failed}
    return {**response, **packing_after(job, scan), "skipped": skipped_by(scan)}


def recover(job: Job) -> tuple[Json, bytes]:
    """Finish an undo that a killed server or worker left unfinished.

    With an ``undo_id``, only that undo. The response has its ``journal``, and what :func:`undo`
    says unless it was finished already. The journal is None if there is no undo, or if it failed
    and other turns have run since.
    """
    try:
        journal = json.loads((job.repository / JOURNAL).read_bytes())
    except OSError:
        return {"journal": None}, b""
    if job.request["undo_id"] not in (None, journal.get("undo_id")):
        return {"journal": None}, b""
    if journal.get("is_done"):
        return {"journal": journal}, b""
    try:
        if any(record.turn_index > journal["last_turn"] for record in job.records().all):
            raise Refusal("conflict")
        with job.folder() as folder:
            scan = job.scan(folder)
            remove_temporaries(folder, scan.temporaries)
            response = _restore(job, folder, scan, journal)
    except Refusal:  # or the folder was deleted
        (job.repository / JOURNAL).unlink()
        return {"journal": None}, b""
    return {"journal": journal, **response}, b""


def settle(job: Job) -> tuple[Json, bytes]:
    """Remove the journal of an undo: the server's log has it, or it has failed.

    The undo is that of ``undo_id`` or of ``snapshot_id``; with neither, any undo. The response has
    the ``journal``; None if there is none.
    """
    wanted = {name: job.request[name] for name in ("undo_id", "snapshot_id")}
    with contextlib.suppress(FileNotFoundError):
        journal = json.loads((job.repository / JOURNAL).read_bytes())
        if all(value in (None, journal.get(name)) for name, value in wanted.items()):
            (job.repository / JOURNAL).unlink()
            return {"journal": journal}, b""
    return {"journal": None}, b""
