"""Snapshots before and after each turn: what the agent has changed, and undo."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from ..conftest import Serve
from ..support.harness import (
    Client,
    Json,
    LocalServer,
    eventually,
    failure,
    script,
)

Change = Callable[[Path], Any]


async def folder_of(client: Client, session: str) -> Path:
    return Path((await client.state(session))["cwd"])


async def turn_that(client: Client, session: str, change: Change) -> None:
    """Run a turn during which the folder is changed, as an agent would."""
    folder = await folder_of(client, session)
    async with running_turn(client, session):
        change(folder)


@contextlib.asynccontextmanager
async def running_turn(client: Client, session: str) -> AsyncIterator[None]:
    """A turn that runs during the block."""
    # The agent's own folder is ignored by snapshots, and its sandbox allows it.
    started, go = (f".mock-agent/{secrets.token_hex(4)}-{name}" for name in ("started", "go"))
    folder = await folder_of(client, session)
    turn = asyncio.create_task(client.turn(session, script({"touch": started}, {"gate": go})))
    await eventually("the turn to start", (folder / started).exists)
    yield
    (folder / go).touch()
    assert (await turn)[0] == 200


def write(path: str, text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)

    return change


async def changes(client: Client, session: str, query: str = "") -> list[Json]:
    status, reply = await client.get(f"/sessions/{session}/changes{query}")
    assert status == 200, reply
    files: list[Json] = reply["files"]
    return files


async def diff(client: Client, session: str, query: str) -> str:
    async with client.http.get(
        f"{client.url}/sessions/{session}/changes?{query}", headers=client.headers()
    ) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/x-diff"
        return await response.text()


async def undo(client: Client, session: str, **target: Any) -> Json:
    status, reply = await client.post(f"/sessions/{session}/undo", target)
    assert status == 200, reply
    return reply


def tree(folder: Path) -> dict[str, str]:
    """The content of each file and link but the agent's own, by path; folders end with a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".mock-agent"):
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[f"{name}/"] = ""
        elif path.is_file():
            found[name] = path.read_bytes().decode("latin-1")
    return found


async def test_changes_are_those_of_the_turns(client: Client, tmp_path: Path) -> None:
    session = await client.create()
    assert await changes(client, session) == []
    await client.call("PUT", f"/sessions/{session}/files/mine.txt", b"mine\n")
    await turn_that(client, session, write("a.txt", "one\n"))
    added = {"path": "a.txt", "status": "added", "additions": 1, "deletions": 0}
    assert await changes(client, session) == [added]
    await client.call("PUT", f"/sessions/{session}/files/other.txt", b"other\n")

    def second(folder: Path) -> None:
        (folder / "a.txt").write_text("two\n")
        (folder / "mine.txt").unlink()
        (folder / "b.bin").write_bytes(b"\0" * 10)

    await turn_that(client, session, second)
    assert await changes(client, session, "?since_turn=2") == [
        {"path": "a.txt", "status": "modified", "additions": 1, "deletions": 1},
        {"path": "b.bin", "status": "added", "additions": None, "deletions": None},
        {"path": "mine.txt", "status": "deleted", "additions": 0, "deletions": 1},
    ]
    assert [one["path"] for one in await changes(client, session)] == [
        "a.txt",
        "b.bin",
        "mine.txt",
    ]
    text = await diff(client, session, "since_turn=2&path=a.txt")
    assert text.endswith("--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n+two\n")
    assert await diff(client, session, "path=other.txt") == ""
    assert "mine.txt" in await diff(client, session, "since_turn=2&path=")
    for query in ("?since_turn=0", "?since_turn=x"):
        failure(await client.get(f"/sessions/{session}/changes{query}"), 400, "bad_request")
    for query in ("?since_turn=9", "?path=../x"):
        failure(await client.get(f"/sessions/{session}/changes{query}"), 404, "not_found")


async def test_changes_of_a_running_turn_are_shown_so_far(client: Client, tmp_path: Path) -> None:
    session = await client.create()

    folder = await folder_of(client, session)
    async with running_turn(client, session):
        (folder / "a.txt").write_text("x")
        assert [one["path"] for one in await changes(client, session)] == ["a.txt"]
        undone = await client.post(f"/sessions/{session}/undo", {"turn_index": 1})
        failure(undone, 409, "conflict")


async def test_undo_restores_the_folder_and_can_be_undone(client: Client, tmp_path: Path) -> None:
    session = await client.create()
    folder = await folder_of(client, session)

    def first(folder: Path) -> None:
        (folder / "keep.txt").write_text("keep")
        (folder / "run.sh").write_text("old")
        (folder / "run.sh").chmod(0o755)
        (folder / "empty").mkdir()
        (folder / "link").symlink_to("/etc/passwd")
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "c\nd").write_text("deep")
        (folder / os.fsdecode(b"\xff" * 255)).write_text("odd")
        for number in range(250):  # so many that their objects become one pack
            (folder / "a" / f"{number}").write_text(f"{number}")

    await turn_that(client, session, first)
    before = tree(folder)

    def second(folder: Path) -> None:
        shutil.rmtree(folder / "a")
        (folder / "a").write_text("a file now")
        (folder / "run.sh").unlink()
        (folder / "run.sh").mkdir()
        (folder / "link").unlink()
        (folder / "link").symlink_to("elsewhere")
        (folder / "empty").rmdir()
        (folder / "new").mkdir()
        (folder / "new" / "file").write_text("new")

    await turn_that(client, session, second)
    after = tree(folder)
    assert after != before
    reply = await undo(client, session, turn_index=2)
    assert tree(folder) == before
    assert (folder / "run.sh").stat().st_mode & 0o111
    assert reply["not_restored"] == []
    assert [one["path"] for one in await changes(client, session, "?since_turn=2")] == []
    again = await undo(client, session, snapshot_id=reply["snapshot_id"])
    assert tree(folder) == after
    await undo(client, session, snapshot_id=again["snapshot_id"])
    assert tree(folder) == before
    await undo(client, session, turn_index=1)
    assert tree(folder) == {}
    assert await changes(client, session) == []
    status, listed = await client.get(f"/sessions/{session}/snapshots")
    assert status == 200
    kinds = [one["kind"] for one in listed["snapshots"]]
    assert kinds == ["end", "end", *["undo", "restored"] * 4]
    # The clients that watch the session see each undo.
    notices = [one for one in await client.events(session) if one["type"] == "notice"]
    assert [(one["notice"], one["turn_index"]) for one in notices] == [("undone", 2)] * 4
    assert [one.get("restored_turn") for one in notices] == [2, None, None, 1]
    assert [one["snapshot_id"] for one in notices[:2]] == [
        reply["snapshot_id"],
        again["snapshot_id"],
    ]
    assert notices[1]["restored_snapshot"] == reply["snapshot_id"]


async def test_names_that_are_not_utf8_are_changes_and_undone(
    client: Client, tmp_path: Path
) -> None:
    session = await client.create()
    name = os.fsdecode(b"odd-\xff")
    await turn_that(client, session, write("plain.txt", "1\n"))
    await turn_that(client, session, write(name, "1\n"))
    changed = [(one["path"], one["status"]) for one in await changes(client, session)]
    assert changed == [(name, "added"), ("plain.txt", "added")]
    url = f"{client.url}/sessions/{session}/changes?path=odd-%FF"
    async with client.http.get(URL(url, encoded=True), headers=client.headers()) as response:
        assert b"+1" in await response.read()
    path = f"/sessions/{session}/undo"
    status, reply = await client.post(path, {"turn_index": 2})
    assert status == 200, reply
    assert [one["path"] for one in await changes(client, session)] == ["plain.txt"]
    assert (await client.post(path, {"snapshot_id": reply["snapshot_id"]}))[0] == 200
    assert (await folder_of(client, session) / name).exists()


async def test_undo_needs_one_existing_target(client: Client, tmp_path: Path) -> None:
    session = await client.create()
    await turn_that(client, session, write("a", "x"))
    path = f"/sessions/{session}/undo"
    wrong: list[Json] = [{}, {"turn_index": 1, "snapshot_id": "x"}, {"turn_index": 0}]
    for body in wrong:
        failure(await client.post(path, body), 400, "bad_request")
    unknown: list[Json] = [{"turn_index": 2}, {"snapshot_id": "0" * 16}]
    for body in unknown:
        failure(await client.post(path, body), 404, "not_found")
    await client.delete(f"/sessions/{session}")
    failure(await client.post(path, {"turn_index": 1}), 410, "session_closed")
    assert [one["path"] for one in await changes(client, session)] == ["a"]


async def test_prompt_sent_during_an_undo_waits_for_it(
    own_server: LocalServer, own_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, session = own_client, await own_client.create()
    await turn_that(client, session, write("a", "x"))
    snapshots = own_server.services.sessions.cached[session].snapshots
    call, is_called, release = snapshots.call, asyncio.Event(), asyncio.Event()

    async def slow_call(operation: str, **fields: Any) -> Any:
        if operation == "undo":
            is_called.set()
            await release.wait()
        return await call(operation, **fields)

    monkeypatch.setattr(snapshots, "call", slow_call)
    undoing = asyncio.create_task(undo(client, session, turn_index=1))
    await is_called.wait()
    turn = asyncio.create_task(client.turn(session, script({"touch": "b"})))

    async def is_running() -> bool:
        return bool((await client.state(session))["state"] == "running")

    await eventually("the turn to be accepted", is_running)
    assert not (await folder_of(client, session) / "b").exists()
    release.set()
    await undoing
    assert (await turn)[0] == 200
    assert list(tree(await folder_of(client, session))) == ["b"]
    assert [one["path"] for one in await changes(client, session, "?since_turn=2")] == ["b"]


async def test_ignored_files_are_neither_changes_nor_undone(client: Client, tmp_path: Path) -> None:
    session = await client.create()

    def change(folder: Path) -> None:
        (folder / ".gitignore").write_text("*.log\n!keep.log\n/build/\ndocs/**/*.tmp\n")
        for path in ("a.log", "keep.log", "build/x", "sub/build/x", "docs/a/b.tmp", "b.tmp"):
            write(path, "x")(folder)
        write("node_modules/pkg/index.js", "x")(folder)

    await turn_that(client, session, change)
    shown = [one["path"] for one in await changes(client, session)]
    assert shown == [".gitignore", "b.tmp", "keep.log", "sub/build/x"]
    reply = await undo(client, session, turn_index=1)
    assert reply["skipped"]["ignored"] >= 3
    left = [path for path in tree(await folder_of(client, session)) if not path.endswith("/")]
    assert left == ["a.log", "build/x", "docs/a/b.tmp", "node_modules/pkg/index.js"]


async def test_files_that_no_snapshot_has_are_left_alone_and_named(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(max_snapshot_file_bytes=100)
    client = await server.client()
    session = await client.create()
    await turn_that(client, session, write("a", "x"))

    def grow(folder: Path) -> None:
        (folder / "a").write_text("y" * 101)
        with (folder / "sparse").open("wb") as file:
            file.truncate(10 << 30)
        os.mkfifo(folder / "pipe")

    await turn_that(client, session, grow)
    assert await changes(client, session, "?since_turn=2") == [
        {"path": "a", "status": "modified", "additions": None, "deletions": None},
        {"path": "sparse", "status": "added", "additions": None, "deletions": None},
    ]
    reply = await undo(client, session, turn_index=2)
    assert reply["not_restored"] == ["a", "sparse"]
    assert {"large": 2, "special": 1}.items() <= reply["skipped"].items()
    folder = await folder_of(client, session)
    assert (folder / "a").stat().st_size == 101
    assert (folder / "sparse").stat().st_size == 10 << 30


@pytest.mark.slow
async def test_snapshots_stay_within_their_size(serve: Serve, tmp_path: Path) -> None:
    server = await serve(max_snapshot_bytes=300_000)
    client = await server.client()
    session = await client.create()
    for _ in range(6):
        await turn_that(
            client, session, lambda folder: (folder / "a").write_bytes(os.urandom(99_000))
        )
    await changes(client, session)
    stored = server.services.settings.data_dir / "snapshots" / session
    await eventually("the objects to be packed", lambda: size_of(stored) < 320_000)
    content = (await folder_of(client, session) / "a").read_bytes()
    await turn_that(client, session, write("b", "x"))
    await undo(client, session, turn_index=7)
    assert (await folder_of(client, session) / "a").read_bytes() == content


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def git(folder: Path, *arguments: str) -> str:
    config = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *config, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


async def test_users_repository_is_untouched_and_nothing_of_it_is_executed(
    serve: Serve, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    server = await serve(workspace_roots=(root,))
    client = await server.client()
    proof = tmp_path / "executed"
    git(root, "init", "-q", "repo")
    repository = root / "repo"
    (repository / ".gitattributes").write_text("* filter=evil diff=evil text eol=crlf\n")
    (repository / "a.txt").write_bytes(b"one\r\ntwo\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "first")
    git(repository, "init", "-q", "nested")
    evil = f"touch {proof}; cat"
    for place in (repository, repository / "nested"):
        for name in ("filter.evil.clean", "filter.evil.smudge", "core.fsmonitor", "diff.external"):
            git(place, "config", name, evil)
        git(place, "config", "diff.evil.textconv", evil)
        for hook in ("post-checkout", "post-index-change", "reference-transaction", "pre-commit"):
            path = place / ".git" / "hooks" / hook
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\ntouch {proof}\n")
            path.chmod(0o755)
    of_git = tree(repository / ".git")
    session = await client.create(cwd=str(repository))

    def change(folder: Path) -> None:
        (folder / "a.txt").write_bytes(b"three\r\nfour\n")
        (folder / "nested" / "inner.txt").write_text("inner")

    await turn_that(client, session, change)
    shown = [one["path"] for one in await changes(client, session)]
    assert shown == ["a.txt", "nested/inner.txt"]
    assert "+three" in await diff(client, session, "path=a.txt")
    await undo(client, session, turn_index=1)
    assert (repository / "a.txt").read_bytes() == b"one\r\ntwo\n"
    assert not (repository / "nested" / "inner.txt").exists()
    assert tree(repository / ".git") == of_git
    assert not proof.exists()


async def test_link_that_replaces_a_folder_is_not_followed_by_an_undo(
    client: Client, tmp_path: Path
) -> None:
    session = await client.create()
    outside = tmp_path / "outside"
    outside.mkdir()
    await turn_that(client, session, write("a/file", "x"))

    def change(folder: Path) -> None:
        shutil.rmtree(folder / "a")
        (folder / "a").symlink_to(outside)
        (outside / "file").write_text("secret")

    await turn_that(client, session, change)
    shown = await changes(client, session, "?since_turn=2")
    assert [(one["path"], one["status"]) for one in shown] == [
        ("a", "added"),
        ("a/file", "deleted"),
    ]
    await undo(client, session, turn_index=2)
    assert (outside / "file").read_text() == "secret"
    assert tree(await folder_of(client, session)) == {"a/": "", "a/file": "x"}


@pytest.mark.slow
async def test_snapshots_are_deleted_with_the_session(serve: Serve, tmp_path: Path) -> None:
    server = await serve(session_hard_ttl_secs=0)
    client = await server.client()
    session = await client.create()
    await turn_that(client, session, write("a", "x"))
    await changes(client, session)
    stored = server.services.settings.data_dir / "snapshots" / session
    assert stored.is_dir()
    await client.delete(f"/sessions/{session}")
    await server.services.sessions.sweeper.sweep()
    assert not stored.exists()


async def test_without_git_or_with_snapshots_off_it_is_not_supported(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    for number, settings in enumerate(({}, {"max_snapshot_bytes": 0})):
        with monkeypatch.context() as patch:
            if not settings:
                patch.setattr(
                    shutil, "which", lambda name, **o: None if name == "git" else which(name, **o)
                )
            server = await serve(data_dir=tmp_path / f"data-{number}", **settings)
        client = await server.client()
        session = await client.create()
        await turn_that(client, session, write("a", "x"))
        path = f"/sessions/{session}"
        failure(await client.get(f"{path}/changes"), 400, "not_supported")
        failure(await client.get(f"{path}/snapshots"), 400, "not_supported")
        failure(await client.post(f"{path}/undo", {"turn_index": 1}), 400, "not_supported")
        assert not (tmp_path / f"data-{number}" / "snapshots").exists()


@pytest.mark.slow
async def test_too_many_files_let_the_turn_run_without_a_snapshot(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(max_snapshot_files=5)
    client = await server.client()
    session = await client.create()

    def change(folder: Path) -> None:
        for number in range(6):
            (folder / f"{number}").touch()

    await turn_that(client, session, change)
    failure(await client.post(f"/sessions/{session}/undo", {"turn_index": 1}), 400, "not_supported")
    await turn_that(client, session, lambda folder: (folder / "1").unlink())
    failure(await client.get(f"/sessions/{session}/changes?since_turn=2"), 404, "not_found")


async def test_changes_of_another_app_look_like_a_missing_session(
    client: Client, server: LocalServer, tmp_path: Path
) -> None:
    session = await client.create()
    await turn_that(client, session, write("a", "x"))
    other = await server.client("other-app")
    for method, path, body in (
        ("GET", "/changes", None),
        ("GET", "/snapshots", None),
        ("POST", "/undo", {"turn_index": 1}),
    ):
        missing = await other.call(method, f"/sessions/{'0' * 36}{path}", body)
        foreign = await other.call(method, f"/sessions/{session}{path}", body)
        for reply in (missing, foreign):
            reply[1].pop("request_id")
        assert foreign == missing
        assert foreign[0] == 404


async def test_snapshot_after_a_turn_that_a_kill_interrupts_is_taken_later(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    await turn_that(client, session, write("a", "x"))
    assert [one["path"] for one in await changes(client, session)] == ["a"]
    repository = server.services.settings.data_dir / "snapshots" / session
    assert not (repository / "ending").exists()
    write("b", "y")(await folder_of(client, session))
    (repository / "ending").write_text("1")  # as the worker does before it looks at the folder
    assert [one["path"] for one in await changes(client, session)] == ["a", "b"]
    assert not (repository / "ending").exists()
    write("c", "z")(await folder_of(client, session))
    assert [one["path"] for one in await changes(client, session)] == ["a", "b"]


async def test_fork_has_the_files_of_its_turn(client: Client) -> None:
    source = await client.create()
    await turn_that(client, source, write("a/one", "1"))
    await turn_that(client, source, write("two", "2"))
    write("by-user", "3")(await folder_of(client, source))
    _, earlier = await client.post(f"/sessions/{source}/fork", {"turn_index": 1})
    _, head = await client.post(f"/sessions/{source}/fork", {})
    earlier_folder, head_folder = Path(earlier["cwd"]), Path(head["cwd"])
    assert tree(earlier_folder) == {"a/": "", "a/one": "1"}
    assert tree(head_folder) == {"a/": "", "a/one": "1", "two": "2", "by-user": "3"}
    await client.delete(f"/sessions/{source}?purge=true")
    found = await changes(client, head["session_id"])
    assert {one["path"] for one in found} >= {"a/one", "two"}
    await client.turn(earlier["session_id"], "hello")
    await undo(client, earlier["session_id"], turn_index=1)
    assert tree(earlier_folder) == {}


async def test_fork_of_a_session_without_files_begins_empty(client: Client) -> None:
    source = await client.create()
    await client.turn(source, "hello")
    _, fork = await client.post(f"/sessions/{source}/fork", {})
    assert tree(Path(fork["cwd"])) == {}
