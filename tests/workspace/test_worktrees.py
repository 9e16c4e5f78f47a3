"""Sessions in a worktree of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.workspace.snapshotter.git import GitError
from server.workspace.snapshotter.worktrees import Repository, RepositoryError
from server.workspace.worktrees import confinement_to

from ..conftest import Serve
from ..support.harness import Client, Json, LocalServer, failure


def git(folder: Path, *arguments: str) -> str:
    config = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *config, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def repository(root: Path) -> Path:
    """A repository with two commits, whose hooks and filters would leave a file."""
    path = root / "repo"
    git(root, "init", "-q", "-b", "main", str(path))
    (path / "a.txt").write_text("one\n")
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    (path / "link").symlink_to("a.txt")
    git(path, "add", "-A")
    git(path, "commit", "-qm", "first")
    git(path, "branch", "old")
    (path / "a.txt").write_text("two\n")
    (path / ".gitattributes").write_text("* filter=evil\n")
    git(path, "add", "-A")
    git(path, "commit", "-qm", "second")
    evil = f"touch {root.parent / 'executed'}; cat"
    for name in ("filter.evil.clean", "filter.evil.smudge", "core.fsmonitor"):
        git(path, "config", name, evil)
    for hook in ("post-checkout", "post-index-change", "reference-transaction"):
        script = path / ".git" / "hooks" / hook
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ntouch {root.parent / 'executed'}\n")
        script.chmod(0o755)
    return path


@pytest.fixture
async def rooted(serve: Serve, root: Path) -> LocalServer:
    return await serve(workspace_roots=(root,), session_hard_ttl_secs=0)


async def create(client: Client, repository: Path, **git_fields: Any) -> tuple[str, Path]:
    workspace = {"git": {"repository": str(repository), **git_fields}}
    session = await client.create(workspace=workspace)
    return session, Path((await client.state(session))["cwd"])


async def test_session_has_a_worktree_which_is_removed_with_it(
    rooted: LocalServer, repository: Path
) -> None:
    client = await rooted.client()
    session, folder = await create(client, repository)
    assert (folder / "a.txt").read_text() == "two\n"
    assert (folder / "run.sh").stat().st_mode & 0o111
    assert (folder / "link").is_symlink()
    assert not (repository.parent.parent / "executed").exists()
    state = await client.state(session)
    assert state["workspace"]["git"]["repository"] == str(repository)
    for name in ("filter.evil.clean", "filter.evil.smudge", "core.fsmonitor"):
        git(repository, "config", "--unset", name)
    shutil.rmtree(repository / ".git" / "hooks")
    assert git(folder, "status", "--porcelain") == ""
    branch = f"clawdforge/{session[:8]}"
    assert git(folder, "branch", "--show-current").strip() == branch
    assert (await client.turn(session, "hello"))[0] == 200
    await client.delete(f"/sessions/{session}")
    await rooted.services.sessions.sweeper.sweep()
    assert not folder.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert branch not in git(repository, "branch")


@pytest.mark.slow
async def test_branch_with_own_commits_is_kept(rooted: LocalServer, repository: Path) -> None:
    client = await rooted.client()
    session, folder = await create(client, repository)
    git(repository, "config", "--remove-section", "filter.evil")
    git(repository, "config", "--unset", "core.fsmonitor")
    (folder / "a.txt").write_text("three\n")
    git(folder, "commit", "-qam", "work")
    await client.delete(f"/sessions/{session}?purge=true")
    assert f"clawdforge/{session[:8]}" in git(repository, "branch")


async def test_fork_has_a_worktree_with_the_uncommitted_work(
    rooted: LocalServer, repository: Path
) -> None:
    client = await rooted.client()
    session, folder = await create(client, repository)
    assert (await client.turn(session, "hello"))[0] == 200
    (folder / "a.txt").write_text("three\n")
    (folder / "run.sh").unlink()
    status, fork = await client.post(f"/sessions/{session}/fork", {})
    assert status == 200, fork
    copy = Path(fork["cwd"])
    assert (copy / "a.txt").read_text() == "three\n"
    assert not (copy / "run.sh").exists()
    assert (copy / "link").is_symlink()
    assert git(copy, "branch", "--show-current").strip() == f"clawdforge/{fork['session_id'][:8]}"


async def test_branch_is_checked_out_or_created(rooted: LocalServer, repository: Path) -> None:
    client = await rooted.client()
    _, folder = await create(client, repository, branch="old")
    assert (folder / "a.txt").read_text() == "one\n"
    _, folder = await create(client, repository, branch="new/one")
    assert (folder / "a.txt").read_text() == "two\n"
    workspace = {"git": {"repository": str(repository), "branch": "old"}}
    failure(await client.post("/sessions", {"workspace": workspace}), 409, "conflict")
    _, folder = await create(client, repository, worktree=False)
    assert folder == repository


async def test_unusable_repository_is_refused_and_leaves_nothing(
    rooted: LocalServer, repository: Path, root: Path, tmp_path: Path
) -> None:
    client = await rooted.client()
    (root / "plain").mkdir()
    git(root, "init", "-q", "empty")
    outside = tmp_path / "outside"
    git(tmp_path, "clone", "-q", "--no-local", str(repository), str(outside))
    (root / "stolen").mkdir()
    (root / "stolen" / ".git").write_text(f"gitdir: {outside}/.git\n")
    (root / "linked").symlink_to(outside)
    git(root, "init", "-q", "borrowing")
    info = root / "borrowing" / ".git" / "objects" / "info"
    (info / "alternates").write_text(f"{outside}/.git/objects\n")
    for name in ("plain", "empty", "stolen", "linked", "borrowing", "missing", "repo/.."):
        workspace = {"git": {"repository": str(root / name)}}
        failure(await client.post("/sessions", {"workspace": workspace}), 400, "bad_request")
    wrong: list[Json] = [{"branch": "-f"}, {"branch": "a..b"}, {"branch": "x", "worktree": False}]
    for fields in wrong:
        workspace = {"git": {"repository": str(repository), **fields}}
        failure(await client.post("/sessions", {"workspace": workspace}), 400, "bad_request")
    both = {"cwd": str(root), "workspace": {"git": {"repository": str(repository)}}}
    failure(await client.post("/sessions", both), 400, "bad_request")
    relative = {"workspace": {"git": {"repository": "repo"}}}
    failure(await client.post("/sessions", relative), 400, "bad_request")
    workspaces = rooted.services.settings.data_dir / "workspaces"
    assert not workspaces.exists() or list(workspaces.iterdir()) == []
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("place", ["logs", "logs/refs/heads", "refs/heads/team"])
async def test_links_in_a_repository_do_not_lead_the_server_outside(
    rooted: LocalServer, repository: Path, tmp_path: Path, place: str
) -> None:
    """An agent could otherwise let git write into a file of the operator: ``~/.ssh/rc``."""
    outside = tmp_path / "outside"
    outside.mkdir()
    link = repository / ".git" / place
    if link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(outside)
    client = await rooted.client()
    branch = "team/rc" if "team" in place else "rc"
    workspace = {"git": {"repository": str(repository), "branch": branch}}
    failure(await client.post("/sessions", {"workspace": workspace}), 400, "bad_request")
    assert list(outside.iterdir()) == []


def test_git_is_confined_to_the_roots_while_an_agent_exchanges_folders(
    repository: Path, root: Path, tmp_path: Path
) -> None:
    if (confinement := confinement_to([str(root)], str(tmp_path / "worktree"))) is None:
        pytest.skip("the kernel has no Landlock")
    outside, folder = tmp_path / "outside", tmp_path / "worktree"
    outside.mkdir()
    folder.mkdir()
    (repository / ".git" / "config").write_text(
        f"[core]\nbare = false\nalternateRefsCommand = touch {outside}/executed\n"
    )
    program = root / "git"
    program.write_text(
        "#!/bin/sh\n"
        f"case \"$*\" in *'worktree add'*) rm -r {repository}/.git/logs\n"
        f"ln -s {outside} {repository}/.git/logs;; esac\n"
        'exec git "$@"\n'
    )
    program.chmod(0o755)
    found = Repository(str(program), str(repository), [str(root)], confinement)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        found.add_worktree(descriptor, str(folder), "name", "rc")
    except (RepositoryError, GitError):
        pass
    finally:
        os.close(descriptor)
    assert (repository / ".git" / "logs").is_symlink()
    assert list(outside.iterdir()) == []
