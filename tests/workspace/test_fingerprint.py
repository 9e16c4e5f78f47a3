"""The quick look at a session's folder that replaces a snapshot if nothing has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.workspace.fingerprint import MAX_SEEN_AT_ONCE, LastSeen, take_fingerprint
from server.workspace.folders import WorkFolder


def make_older(folder: Path) -> None:
    """Give every file an old time: of a file that was just changed, times prove nothing."""
    for path in folder.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def folder(tmp_path: Path) -> WorkFolder:
    return WorkFolder(tmp_path, ())


def test_empty_folder_without_snapshots_is_unchanged(folder: WorkFolder, tmp_path: Path) -> None:
    last_seen = LastSeen(folder, is_new=True, is_local=True)
    assert last_seen.is_plainly_unchanged()
    (tmp_path / "a.txt").touch()
    assert not last_seen.is_plainly_unchanged()


def test_folder_is_unchanged_until_something_in_it_changes(
    folder: WorkFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("one")
    # The time of a change cannot be set, so the present is moved instead.
    later = (tmp_path / "below" / "a.txt").stat().st_ctime_ns + 10**10
    monkeypatch.setattr("server.workspace.fingerprint.time.time_ns", lambda: later)
    make_older(tmp_path)
    last_seen = LastSeen(folder, is_new=True, is_local=True)
    last_seen.update(take_fingerprint(folder))
    assert last_seen.is_plainly_unchanged()
    (tmp_path / "below" / "a.txt").write_text("two")
    make_older(tmp_path)
    assert not last_seen.is_plainly_unchanged()


def test_snapshot_that_was_begun_or_is_outdated_proves_nothing(folder: WorkFolder) -> None:
    last_seen = LastSeen(folder, is_new=False, is_local=True)
    last_seen.update(take_fingerprint(folder))
    last_seen.forget()
    assert not last_seen.is_plainly_unchanged()


def test_large_or_remote_folder_is_not_looked_at_at_once(
    folder: WorkFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = LastSeen(folder, is_new=True, is_local=False)
    assert remote.equals(take_fingerprint(folder))
    assert not remote.is_plainly_unchanged()
    for number in range(MAX_SEEN_AT_ONCE + 1):
        (tmp_path / str(number)).touch()
    later = (tmp_path / "0").stat().st_ctime_ns + 10**10
    monkeypatch.setattr("server.workspace.fingerprint.time.time_ns", lambda: later)
    local = LastSeen(folder, is_new=True, is_local=True)
    local.update(take_fingerprint(folder))
    assert local.equals(take_fingerprint(folder))
    assert not local.is_plainly_unchanged()
