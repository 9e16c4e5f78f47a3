"""The shared folder of a cluster: nodes that have another one are noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.errors import StartError
from server.storage.database import Database
from server.storage.drivers.postgres import PostgresDriver
from server.storage.nodes import NodeTable
from server.storage.shared_folder import (
    FOLDER_ID,
    check_shared_folder,
    describe_shared_folder,
    make_id,
    node_file,
    node_numbers,
    read_id,
    remove_node_files,
)

from ..support.postgres import Postgres

LEASE_SECS = 10.0


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    opened = await Database.connect(postgres.new_database(), name="test")
    yield opened
    await opened.close()


async def register(database: Database, name: str) -> int:
    assert isinstance(database.driver, PostgresDriver)
    return await NodeTable(database.driver).register(name, "1")


def test_nodes_that_start_at_once_agree_on_the_id_of_their_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(5) as pool:
        ids = set(pool.map(make_id, [tmp_path] * 5))
    assert ids == {read_id(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER_ID]


async def test_node_with_another_folder_does_not_start_beside_the_others(
    database: Database, tmp_path: Path
) -> None:
    mounted, empty = tmp_path / "mounted", tmp_path / "empty"
    mounted.mkdir()
    empty.mkdir()
    await check_shared_folder(database, mounted, "one", LEASE_SECS)
    await register(database, "one")
    with pytest.raises(StartError, match="is not the shared folder of one"):
        await check_shared_folder(database, empty, "two", LEASE_SECS)
    report = await describe_shared_folder(database, empty)
    assert report.is_bad
    await check_shared_folder(database, mounted, "two", LEASE_SECS)
    # The only node may get a new folder, for example after a restore.
    await check_shared_folder(database, empty, "one", LEASE_SECS)
    assert not (await describe_shared_folder(database, empty)).is_bad


async def test_folder_that_cannot_be_written_is_an_error_at_the_start(
    database: Database, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match="CLAWDFORGE_SHARED_DIR"):
        await check_shared_folder(database, tmp_path / "missing", "one", LEASE_SECS)
    (tmp_path / "nodes").write_text("not a folder")
    with pytest.raises(StartError, match="CLAWDFORGE_SHARED_DIR"):
        async with node_file(tmp_path, 1, "one"):
            pass


async def test_doctor_sees_which_nodes_share_the_folder(database: Database, tmp_path: Path) -> None:
    missing = await describe_shared_folder(database, tmp_path / "missing")
    assert (missing.is_bad, missing.advice) == (False, None)
    await check_shared_folder(database, tmp_path, "one", LEASE_SECS)
    numbers = [await register(database, name) for name in ("one", "two")]
    async with node_file(tmp_path, numbers[0], "one"), node_file(tmp_path, numbers[1], "two"):
        report = await describe_shared_folder(database, tmp_path)
        assert not report.is_bad
        assert report.state.endswith("2 nodes use it")
        assert node_numbers(tmp_path) == set(numbers)
    report = await describe_shared_folder(database, tmp_path)
    assert not report.is_bad
    assert report.advice is not None
    assert "one, two" in report.state
    missing = await describe_shared_folder(database, tmp_path / "missing")
    assert missing.is_bad


async def test_files_of_ended_nodes_are_removed(tmp_path: Path) -> None:
    async with node_file(tmp_path, 1, "one"), node_file(tmp_path, 2, "two"):
        remove_node_files(tmp_path, {1, 7})
        assert node_numbers(tmp_path) == {2}
    assert node_numbers(tmp_path) == set()
