"""``GET /folders``: the folders in which sessions can work."""

from __future__ import annotations

from pathlib import Path

from ..conftest import Serve
from ..support.client import failure
from ..support.harness import LocalServer


async def test_folders_in_workspace_roots_are_listed(serve: Serve, tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    for name in ("app/.git", "App two", ".hidden", "app/src"):
        (root / name).mkdir(parents=True)
    (root / "file").touch()
    (root / "link").symlink_to(tmp_path)
    (tmp_path / "outside").mkdir()
    server = await serve(workspace_roots=(root,))
    client = await server.client("app")

    status, reply = await client.get("/folders")
    roots = {"roots": [str(root)], "truncated": False}
    assert status == 200
    assert reply == {
        "ok": True,
        **roots,
        "folders": [{"path": str(root), "repository": False}],
    }
    status, reply = await client.get(f"/folders?path={root}")
    assert reply == {
        "ok": True,
        **roots,
        "folders": [
            {"path": f"{root}/app", "repository": True},
            {"path": f"{root}/App two", "repository": False},
        ],
    }
    # A listed folder can be a session's folder.
    session = await client.create(cwd=reply["folders"][0]["path"])
    assert (await client.state(session))["cwd"] == f"{root}/app"
    for path in (tmp_path, tmp_path / "outside", root / "link", root / "none", "x", f"{root}/.."):
        failure(await client.get(f"/folders?path={path}"), 400, "bad_request")
    failure(await client.get("/folders?path="), 400, "bad_request")


async def test_server_without_roots_lists_no_folders(server: LocalServer) -> None:
    client = await server.client("without-roots")
    empty = {"ok": True, "roots": [], "folders": [], "truncated": False}
    assert await client.get("/folders") == (200, empty)
    failure(await client.get("/folders?path=/"), 400, "bad_request")
