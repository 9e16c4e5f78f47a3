"""The program that takes snapshots: any name and kind of file."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from server.workspace.snapshotter.operations import perform

from ..support.harness import (
    Json,
)
from .test_snapshots import tree

ODD_NAMES = (
    b"new\nline",
    b"x" * 255,
    b"bad-\xff",
    "Gr\u00fc\u00dfe-\u65e5\u672c".encode(),
    b'"quoted"',
    b" space ",
    b":(glob)*",
    b"-dash",
    b"carriage\rreturn",
)


def test_odd_names_and_files_are_compared_and_restored(tmp_path: Path) -> None:
    folder, git = tmp_path / "folder", shutil.which("git")
    assert git is not None
    inner = folder / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "snapshots").mkdir()
    subprocess.run([git, "init", "--quiet", str(inner)], check=True)
    head = (inner / ".git" / "HEAD").read_text()
    paths = [folder / os.fsdecode(name) for name in ODD_NAMES]
    deep = folder.joinpath(*"abcdefgh", "deep")
    deep.parent.mkdir(parents=True)
    for path in (*paths, inner / "tracked", deep):
        path.write_text("one\n")
    (folder / "outside").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(folder):
        listener.bind("socket")  # its whole path would be too long

    def call(operation: str, **fields: Any) -> Json:
        request = {
            "op": operation,
            "session_id": "session",
            "folder": [str(folder)],
            "base": [str(tmp_path), "snapshots"],
            "git": git,
            "limits": [1000, 1 << 20, 1 << 24],
        }
        response, _ = perform({**request, **fields})
        assert "error" not in response, response
        return response

    def snapshot(kind: str) -> Json:
        return call("snapshot", kind=kind, turn_index=1, missed=[])

    assert snapshot("start")["skipped"] == {"special": 2}
    before = tree(folder)
    for path in paths[1:]:
        path.write_text("two\n")
    paths[0].unlink()
    shutil.rmtree(folder / "a")
    (folder / "outside").unlink()
    (folder / "outside").mkdir()
    (folder / "outside" / "file").write_text("now a folder")
    (inner / "tracked").unlink()
    snapshot("end")
    files = call("changes", since_turn=None, is_live=False)["files"]
    changed = {folder / one["path"]: one["status"] for one in files}
    assert changed == {
        paths[0]: "deleted",
        **dict.fromkeys(paths[1:], "modified"),
        deep: "deleted",
        folder / "outside": "deleted",
        folder / "outside" / "file": "added",
        inner / "tracked": "deleted",
    }
    target = {"turn_index": 1, "snapshot_id": None}
    undone = call("undo", **target, undo_id="a", last_turn=1, entry_index=1, position=1)
    assert undone["not_restored"] == []
    assert tree(folder) == before
    assert (inner / ".git" / "HEAD").read_text() == head
