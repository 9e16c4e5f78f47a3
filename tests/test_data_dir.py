"""The data folder: its lock, and the paths in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from server.data_dir import DataDir, DataDirInUseError
from server.errors import StartError


def test_lock_is_exclusive(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    with data_dir.locked(), pytest.raises(DataDirInUseError), data_dir.locked():
        pass
    with data_dir.locked():
        pass


def test_lock_makes_the_folder_private(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "some" / "data")
    with data_dir.locked():
        assert data_dir.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["acpx", "acpx_cli", "runs", "stderr", "uploads"])
def test_link_in_place_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    data_dir = DataDir(tmp_path / "data")
    data_dir.path.mkdir()
    getattr(data_dir, name).symlink_to(tmp_path)
    with pytest.raises(StartError), data_dir.locked():
        pass


def test_split_returns_the_names_below_the_folder(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    path = data_dir.workspace("a-session")
    assert data_dir.split(path) == (tmp_path, "workspaces", "a-session")
    with pytest.raises(ValueError, match="subpath"):
        data_dir.split(tmp_path.parent)


def test_every_path_lies_in_the_folder_and_is_used_once() -> None:
    data_dir = DataDir(Path("/data"))
    names = [name for name, value in vars(DataDir).items() if isinstance(value, property)]
    values = [getattr(data_dir, name) for name in names]
    paths = [value for value in values if isinstance(value, Path)]
    assert len(names) - 1 == len(set(paths)) > len(dataclasses.fields(DataDir))
    assert all(path.parent == data_dir.path for path in paths)
