"""The shared folder: a node that starts leaves alone what the others are working with."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from server.data_dir import ABANDONED_SECS

from ..support.harness import eventually
from ..support.postgres import Postgres
from .nodes import NodeCluster, running_nodes

pytestmark = pytest.mark.slow


@pytest.fixture
async def cluster(postgres: Postgres, tmp_path: Path) -> AsyncIterator[NodeCluster]:
    async with running_nodes(postgres, tmp_path, 1) as running:
        yield running


def make_old(path: Path) -> None:
    old = time.time() - 2 * ABANDONED_SECS
    for part in (*path.iterdir(), path):
        os.utime(part, (old, old))


async def test_starting_node_leaves_what_others_are_writing(cluster: NodeCluster) -> None:
    [one] = cluster.nodes
    shared = cluster.folder / "shared" / "data"
    go_on = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"half "
        await go_on.wait()
        yield b"and half"

    form = aiohttp.MultipartWriter("form-data")
    part = aiohttp.payload.AsyncIterablePayload(content())
    part.set_content_disposition("form-data", name="file", filename="notes.txt")
    form.append_payload(part)
    uploading = asyncio.create_task(one.client.call("POST", "/files", data=form))
    uploads = shared / "uploads"
    await eventually("the upload to begin", lambda: any(uploads.glob("*/notes.txt")))
    (uploads / "abandoned").mkdir()
    (uploads / "abandoned" / "notes.txt").write_text("ha")
    make_old(uploads / "abandoned")
    state = shared / "acpx"
    fresh = [state / "probe-1", state / "sessions" / "acpx-write-1"]
    old = [state / "probe-2", state / "sessions" / "acpx-write-2"]
    for folder in (*fresh, *old):
        folder.mkdir()
        (folder / "file").write_text("x")
    for folder in old:
        make_old(folder)
    two = await cluster.add("node-2")
    assert [folder.exists() for folder in (*fresh, *old)] == [True, True, False, False]
    assert not (uploads / "abandoned").exists()
    go_on.set()
    status, reply = await uploading
    assert status == 200, reply
    [stored] = uploads.glob("*/notes.txt")
    assert stored.read_bytes() == b"half and half"
    two.client.token = cluster.token
    session_id = await two.client.create()
    status, reply = await two.client.post(
        f"/sessions/{session_id}/turn", {"prompt": "read it", "files": [reply["file_token"]]}
    )
    assert status == 200, reply
