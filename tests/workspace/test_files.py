"""The files in a session's folder, over REST."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from server.workspace.folders import WorkFolder
from server.workspace.writing import FileDraft

from ..conftest import Serve
from ..support.harness import Client, Json, failure


async def folder_of(client: Client, session: str) -> Path:
    return Path((await client.state(session))["cwd"])


def url_of(session: str, path: str | bytes = "") -> str:
    return f"/sessions/{session}/files" + (f"/{quote(path)}" if path else "")


async def fetch(
    client: Client, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, Any]:
    """The status, the body and the headers of a response."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.http.request(
        method, client.url + path, headers={**client.headers(), **names}
    ) as response:
        return response.status, await response.read(), response.headers


def own(names: Iterable[str]) -> list[str]:
    """The names in order, without the folder that the agent makes when it starts."""
    return sorted(name for name in names if not name.startswith(".mock-agent"))


async def listed(client: Client, session: str, query: str = "") -> dict[str, Json]:
    status, reply = await client.get(f"/sessions/{session}/files{query}")
    assert status == 200, reply
    # The agent, which may be starting, has a folder of its own.
    entries = [entry for entry in reply["entries"] if not entry["path"].startswith(".mock-agent")]
    return {entry["path"]: entry for entry in entries}


async def test_written_file_is_listed_and_read(client: Client) -> None:
    session = await client.create()
    status, reply = await client.call("PUT", url_of(session, "a/b/c.txt"), b"hello")
    assert (status, reply["path"], reply["size"]) == (200, "a/b/c.txt", 5)
    assert await listed(client, session) == {
        "a": {"path": "a", "type": "directory", "size": 0, "modified_at": reply["modified_at"]}
    }
    deep = await listed(client, session, "?depth=3")
    assert list(deep) == ["a", "a/b", "a/b/c.txt"]
    assert list(await listed(client, session, "?path=a/b")) == ["a/b/c.txt"]
    status, body, headers = await fetch(client, url_of(session, "a/b/c.txt"))
    assert (status, body) == (200, b"hello")
    assert headers["Content-Disposition"].startswith('attachment; filename="c.txt"')
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Length"] == "5"


async def test_replaced_file_keeps_its_mode_and_leaves_no_other(client: Client) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    (folder / "run.sh").write_text("old")
    (folder / "run.sh").chmod(0o750)
    assert (await client.call("PUT", url_of(session, "run.sh"), b"new"))[0] == 200
    assert (folder / "run.sh").read_text() == "new"
    assert (folder / "run.sh").stat().st_mode & 0o777 == 0o750
    assert own(path.name for path in folder.iterdir()) == ["run.sh"]


async def test_draft_without_unnamed_files_replaces_by_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.workspace.writing._UNNAMED", 0)
    (tmp_path / "a.txt").write_text("old")
    folder = WorkFolder(tmp_path, ())
    for path in ("a.txt", "x/y.txt"):
        draft = FileDraft(folder, path)
        draft.write(b"new")
        draft.commit(lambda _: True)
        draft.close()
        assert (tmp_path / path).read_text() == "new"
    FileDraft(folder, "b.txt").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "x"]


async def test_conditions_and_ranges_of_a_file(client: Client) -> None:
    session = await client.create()
    url = url_of(session, "a.txt")
    await client.call("PUT", url, b"0123456789")
    _, _, headers = await fetch(client, url)
    tag = headers["ETag"]
    assert (await fetch(client, url, If_None_Match=tag))[:2] == (304, b"")
    assert (await fetch(client, url, If_Match='"other"'))[0] == 412
    for wanted, part, content_range in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=5-99", b"56789", "bytes 5-9/10"),
    ):
        status, body, headers = await fetch(client, url, Range=wanted, If_Range=tag)
        assert (status, body, headers["Content-Range"]) == (206, part, content_range)
    assert (await fetch(client, url, Range="bytes=2-4", If_Range='"old"'))[0] == 200
    for ignored in ("bytes=4-2", "lines=1-2", "bytes=0-1,4-5", "bytes=-"):
        assert (await fetch(client, url, Range=ignored))[0] == 200
    status, _, headers = await fetch(client, url, Range="bytes=10-")
    assert (status, headers["Content-Range"]) == (416, "bytes */10")
    status, body, headers = await fetch(client, url, "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "10")
    assert (await client.call("PUT", url, b"x", headers={"If-None-Match": "*"}))[0] == 412
    assert (await client.call("PUT", url, b"x", headers={"If-Match": '"old"'}))[0] == 412
    assert (await client.call("PUT", url, b"x", headers={"If-Match": tag}))[0] == 200
    assert (await client.call("PUT", url, b"x", headers={"If-Match": tag}))[0] == 412


async def test_inline_is_for_images_and_plain_text_in_a_sandbox(client: Client) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "a.bin").write_bytes(b"\0\1")
    (folder / "a.txt").write_bytes(b"x" * 8191 + "é".encode())
    for name, kind in (
        ("page.html", "text/plain; charset=utf-8"),
        ("a.svg", "image/svg+xml"),
        ("a.txt", "text/plain; charset=utf-8"),
    ):
        status, _, headers = await fetch(client, url_of(session, name) + "?inline=true")
        assert (status, headers["Content-Type"]) == (200, kind)
        assert headers["Content-Disposition"].startswith("inline")
        assert "sandbox" in headers["Content-Security-Policy"]
    _, _, headers = await fetch(client, url_of(session, "a.bin") + "?inline=true")
    assert headers["Content-Disposition"].startswith("attachment")
    _, _, headers = await fetch(client, url_of(session, "page.html"))
    assert headers["Content-Disposition"].startswith("attachment")


async def test_no_path_leads_out_of_the_folder(client: Client, tmp_path: Path) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (folder / "file-link").symlink_to(secret)
    (folder / "folder-link").symlink_to(tmp_path)
    (folder / "inside.txt").write_text("inside")
    (folder / "inside-link").symlink_to("inside.txt")
    for path in (
        "..%2f..%2fclawdforge.db",
        "%2e%2e/%2e%2e/clawdforge.db",
        "a/../inside.txt",
        "./inside.txt",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "inside.txt/",
        "inside.txt%00",
        "file-link",
        "inside-link",
        "folder-link/secret.txt",
        "x" * 300,
    ):
        url = URL(client.url + f"/sessions/{session}/files/{path}", encoded=True)
        async with client.http.get(url, headers=client.headers()) as response:
            assert response.status == 404, path
            assert (await response.json())["code"] == "not_found"
        async with client.http.put(url, data=b"evil", headers=client.headers()) as response:
            if path not in ("file-link", "inside-link"):
                assert response.status in (400, 409), path
    assert secret.read_text() == "secret"
    assert (folder / "inside.txt").read_text() == "inside"
    assert not (folder / "file-link").is_symlink()  # the link was replaced
    for path in ("..", "%2e%2e", "folder-link", "/etc", "inside.txt", "a%00"):
        failure(await client.get(f"/sessions/{session}/files?path={path}"), 404, "not_found")
        failure(await client.get(f"/sessions/{session}/archive?path={path}"), 404, "not_found")
    assert (await listed(client, session))["folder-link"]["type"] == "link"


async def test_special_files_are_neither_listed_nor_read(client: Client) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    os.mkfifo(folder / "pipe")
    assert await listed(client, session) == {}
    failure(await client.get(url_of(session, "pipe")), 404, "not_found")
    failure(await client.call("PUT", url_of(session, "pipe/x"), b""), 409, "conflict")
    (folder / "folder").mkdir()
    failure(await client.get(url_of(session, "folder")), 404, "not_found")
    failure(await client.call("PUT", url_of(session, "folder"), b""), 409, "conflict")


@pytest.mark.parametrize(
    "name",
    [b"a\nb", "ü 日本.txt".encode(), b"\xff\xfe", b"%41", b'"quoted"; x', b"n" * 255],
    ids=repr,
)
async def test_odd_name_is_listed_read_written_and_archived(client: Client, name: bytes) -> None:
    session = await client.create()
    url = url_of(session, name)
    assert (await client.call("PUT", url, b"odd"))[0] == 200
    assert name in os.listdir(os.fsencode(await folder_of(client, session)))  # noqa: PTH208
    assert (await fetch(client, url))[:2] == (200, b"odd")
    (path,) = await listed(client, session)
    assert os.fsencode(path) == name
    _, body, _ = await fetch(client, f"/sessions/{session}/archive")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        [member] = [one for one in archive.infolist() if ".mock-agent" not in one.filename]
        assert archive.read(member) == b"odd"


async def test_huge_sparse_file_is_read_in_parts_and_not_archived(client: Client) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    with (folder / "sparse").open("wb") as file:
        file.truncate(10 << 30)
    assert (await listed(client, session))["sparse"]["size"] == 10 << 30
    url = url_of(session, "sparse")
    status, body, headers = await fetch(client, url, Range="bytes=-5")
    assert (status, body) == (206, b"\0" * 5)
    assert headers["Content-Range"] == f"bytes {(10 << 30) - 5}-{(10 << 30) - 1}/{10 << 30}"
    failure(await client.get(f"/sessions/{session}/archive"), 413, "payload_too_large")


async def test_archive_has_folders_and_files_but_no_links(client: Client) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    (folder / "a" / "empty").mkdir(parents=True)
    (folder / "a" / "b.bin").write_bytes(os.urandom(1 << 20))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("/etc/passwd")
    status, body, headers = await fetch(client, f"/sessions/{session}/archive")
    assert (status, headers["Content-Type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert own(archive.namelist()) == ["a/", "a/b.bin", "a/empty/", "run.sh"]
        assert archive.read("a/b.bin") == (folder / "a" / "b.bin").read_bytes()
        assert archive.getinfo("run.sh").external_attr >> 16 & 0o111
    _, body, headers = await fetch(client, f"/sessions/{session}/archive?path=a")
    assert 'filename="a.zip"' in headers["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert own(archive.namelist()) == ["b.bin", "empty/"]
    assert (await fetch(client, f"/sessions/{session}/archive", "HEAD"))[:2] == (200, b"")


async def test_file_that_becomes_shorter_ends_the_response_early(client: Client) -> None:
    session = await client.create()
    path = await folder_of(client, session) / "big"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    async with client.http.get(
        client.url + url_of(session, "big"), headers=client.headers()
    ) as response:
        os.truncate(path, 1 << 20)
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_limits_of_files_are_enforced(serve: Serve) -> None:
    server = await serve(
        max_file_bytes=1000, max_listed_files=3, max_archive_files=4, max_archive_bytes=5000
    )
    client = await server.client()
    session = await client.create()
    folder = await folder_of(client, session)
    large = await client.call("PUT", url_of(session, "x/large"), b"x" * 1001)
    failure(large, 413, "payload_too_large")
    assert own(path.name for path in folder.iterdir()) == []
    for number in range(5):
        (folder / f"{number}").write_bytes(b"x")
    status, reply = await client.get(f"/sessions/{session}/files")
    assert (status, len(reply["entries"]), reply["truncated"]) == (200, 3, True)
    failure(await client.get(f"/sessions/{session}/archive"), 413, "payload_too_large")
    for query in ("depth=0", "depth=65", "depth=x"):
        failure(await client.get(f"/sessions/{session}/files?{query}"), 400, "bad_request")


async def test_files_of_another_app_look_like_a_missing_session(
    client: Client, server: Any
) -> None:
    session = await client.create()
    await client.call("PUT", url_of(session, "a.txt"), b"x")
    other = await server.client("other-app")
    for method, path, body in (
        ("GET", "/files", None),
        ("GET", "/files/a.txt", None),
        ("PUT", "/files/a.txt", b"y"),
        ("GET", "/archive", None),
    ):
        missing = await other.call(method, f"/sessions/{'0' * 36}{path}", body)
        foreign = await other.call(method, f"/sessions/{session}{path}", body)
        for reply in (missing, foreign):
            reply[1].pop("request_id")
        assert foreign == missing
        assert foreign[0] == 404


async def test_closed_session_can_be_read_but_not_written(client: Client) -> None:
    session = await client.create()
    await client.call("PUT", url_of(session, "a.txt"), b"x")
    await client.delete(f"/sessions/{session}")
    assert (await fetch(client, url_of(session, "a.txt")))[:2] == (200, b"x")
    failure(await client.call("PUT", url_of(session, "a.txt"), b"y"), 410, "session_closed")


async def test_session_folder_that_became_a_link_is_not_followed(
    client: Client, tmp_path: Path
) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    (tmp_path / "a.txt").write_text("outside")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    failure(await client.get(url_of(session)), 404, "not_found")
    failure(await client.get(url_of(session, "a.txt")), 404, "not_found")
    failure(await client.call("PUT", url_of(session, "b.txt"), b"x"), 409, "conflict")


async def test_link_that_replaces_a_folder_meanwhile_is_never_followed(
    client: Client, tmp_path: Path
) -> None:
    session = await client.create()
    folder = await folder_of(client, session)
    (tmp_path / "secret").write_text("secret")
    (folder / "a").mkdir()
    (folder / "a" / "secret").write_text("own")
    stop = asyncio.Event()

    def swap() -> None:
        """Exchange the folder and a link to another folder."""
        with contextlib.suppress(OSError):
            (folder / "a").rename(folder / "b")
            (folder / "a").symlink_to(tmp_path)
        with contextlib.suppress(OSError):
            (folder / "a").unlink()
        with contextlib.suppress(OSError):
            shutil.rmtree(folder / "a")  # a write has created it
        with contextlib.suppress(OSError):
            (folder / "b").rename(folder / "a")

    async def swap_forever() -> None:
        while not stop.is_set():
            await asyncio.to_thread(swap)

    swapping = asyncio.create_task(swap_forever())
    for _ in range(60):
        status, body, _ = await fetch(client, url_of(session, "a/secret"))
        assert (status, body) == (200, b"own") or status == 404
        await client.call("PUT", url_of(session, "a/other"), b"x")
    stop.set()
    await swapping
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "data") == ["secret"]
