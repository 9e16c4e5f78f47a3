"""Files and folders that are reached without following links."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server import safe_files

WORKS: dict[str, Callable[[Path], object]] = {
    "make a folder": lambda top: safe_files.make_folder(top, "link", "new"),
    "make a file": lambda top: safe_files.new_file(top, "link", "new"),
    "remove a file": lambda top: safe_files.remove(top, "link", "file"),
    "empty a folder": lambda top: safe_files.empty(top, "link"),
    "replace a file": lambda top: safe_files.new_file(top, "link-to-file"),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
def test_link_in_a_path_is_refused(tmp_path: Path, work: Callable[[Path], object]) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.mkdir()
    top.mkdir()
    (outside / "file").write_text("precious")
    (top / "link").symlink_to(outside)
    (top / "link-to-file").symlink_to(outside / "file")
    with pytest.raises(OSError, match="link"):
        work(top)
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"


def test_remove_does_not_follow_links(tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "folder"
    precious.mkdir()
    (precious / "file").touch()
    (folder / "below").mkdir(parents=True)
    (folder / "link").symlink_to(precious)
    (folder / "below" / "link").symlink_to(precious)
    os.link(precious / "file", folder / "hard")
    os.mkfifo(folder / "pipe")
    (tmp_path / "link").symlink_to(precious)
    for name in ("folder", "link", "missing"):
        safe_files.remove(tmp_path, name)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert [path.name for path in precious.iterdir()] == ["file"]


def test_remove_of_deeply_nested_folders(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("deep", dir_fd=descriptor)
        below = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    safe_files.empty(tmp_path.parent, tmp_path.name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_RDWR])
def test_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path, flags: int) -> None:
    os.mkfifo(tmp_path / "file")
    with (
        safe_files.folder(tmp_path) as parent,
        pytest.raises(OSError, match=r"file|No such device"),
    ):
        safe_files.open_file("file", parent, flags)
