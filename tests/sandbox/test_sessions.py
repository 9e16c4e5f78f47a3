"""Sessions in the sandbox: their homes, files and folders, and the tools that work there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.agent_commands import AgentCommand
from server.data_dir import DataDir
from server.sandbox.folder_locator import FolderError
from server.sandbox.homes import SandboxFolders
from server.sandbox.levels import RESTRICT
from server.sandbox.policy import SandboxLimits, SandboxPolicy
from server.sandbox.sandbox import Sandbox
from server.sandbox.trial import TrialSpec, run_attempts

from ..conftest import Serve
from ..support.harness import MOCK, Client, Clock, is_running, run_step, script
from ..support.runs import upload
from ..support.sandboxes import LEVELS, mechanism, plain_environ, system_python

each_level = pytest.mark.parametrize("level", LEVELS)


async def home_of(client: Client, session: str) -> Path:
    return Path((await run_step(client, session, {"env": ["HOME"]}))["HOME"])


async def test_home_survives_hibernation_and_is_deleted_with_the_session(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock, agent_idle_secs=10, session_hard_ttl_secs=100)
    client = await server.client()
    session, other = await client.create(), await client.create()
    home = await home_of(client, session)
    assert home == server.services.settings.data_dir / "homes" / session
    assert await home_of(client, other) != home
    (home / "kept").write_text("a login")
    clock.advance(11)
    await server.services.sessions.sweeper.sweep()
    assert (await client.state(session))["agent_state"] == "hibernated"
    assert await home_of(client, session) == home
    await client.turn(session, script({"crash": "SIGKILL"}))
    assert (home / "kept").exists()

    await client.delete(f"/sessions/{session}")
    clock.advance(101)
    await server.services.sessions.sweeper.sweep()
    folders = SandboxFolders(DataDir(server.services.settings.data_dir))
    left = [folders.home(session), folders.tmp(session), folders.files(session)]
    assert not any(folder.exists() for folder in left)
    assert folders.home(other).exists()


def test_home_is_copied_without_following_links(tmp_path: Path) -> None:
    """For a session that was forked from another one."""
    folders = SandboxFolders(DataDir(tmp_path))
    for key in ("source", "target"):
        folders.create(key)
    home, copy = folders.home("source"), folders.home("target")
    (home / ".agent" / "projects").mkdir(parents=True)
    (home / ".agent" / "projects" / "one.jsonl").write_text("said")
    (home / ".cache").mkdir()
    (home / "link").symlink_to("/etc")
    folders.copy_home("source", "target")
    assert (copy / ".agent" / "projects" / "one.jsonl").read_text() == "said"
    assert (copy / "link").is_symlink()
    assert not (copy / ".cache").exists()
    folders.remove("source")
    assert not home.exists()


def test_copy_of_a_home_needs_no_more_space_than_the_home(tmp_path: Path) -> None:
    folders = SandboxFolders(DataDir(tmp_path))
    for key in ("source", "target"):
        folders.create(key)
    home, copy = folders.home("source"), folders.home("target")
    (home / "first").write_bytes(b"x" * 5000)
    (home / "below").mkdir()
    for name in ("second", "below/third"):
        (home / name).hardlink_to(home / "first")
    with (home / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(1 << 32)
        file.write(b"middle")
        file.truncate(1 << 40)
    folders.copy_home("source", "target")
    names = ("first", "second", "below/third")
    assert {(copy / name).stat().st_ino for name in names} == {(copy / "first").stat().st_ino}
    assert (copy / "below" / "third").read_bytes() == b"x" * 5000
    found = (copy / "sparse").stat()
    assert (found.st_size, found.st_blocks < 1 << 10) == (1 << 40, True)
    with (copy / "sparse").open("rb") as file:
        assert file.read(5) == b"start"
        file.seek(1 << 32)
        assert file.read(6) == b"middle"


@pytest.mark.slow
async def test_agent_without_a_sandbox_has_the_users_home(serve: Serve, tmp_path: Path) -> None:
    server = await serve(sandbox="off")
    client = await server.client()
    assert await home_of(client, await client.create()) == Path.home()
    assert not (server.services.settings.data_dir / "homes").exists()


async def test_turn_reads_a_copy_of_an_uploaded_file(client: Client) -> None:
    token = await upload(client, b"content", "report.txt")
    session, other = await client.create(), await client.create()
    paths = []
    for one in (session, other, session):
        status, reply = await client.post(
            f"/sessions/{one}/turn", {"prompt": script({"echo": True}), "files": [token]}
        )
        assert status == 200, reply
        (text,) = [b["text"] for b in json.loads(_text(reply)) if "[Attached files]" in b["text"]]
        paths.append(Path(text.splitlines()[1]))
    assert paths[0] == paths[2] != paths[1]
    assert paths[0].read_bytes() == b"content"
    assert paths[0].name == "report.txt"
    paths[0].chmod(0o600)
    paths[0].write_bytes(b"changed")  # an agent that escaped would reach its own copy only
    assert paths[1].read_bytes() == b"content"


def _text(reply: dict[str, Any]) -> str:
    updates = [event.get("params", {}).get("update", {}) for event in reply["events"]]
    return "".join(update.get("content", {}).get("text", "") for update in updates)


@pytest.mark.parametrize("level", [pytest.param("landlock", marks=pytest.mark.slow), "off"])
async def test_turn_fails_if_its_folder_is_not_in_the_roots_any_more(
    serve: Serve, tmp_path: Path, level: str
) -> None:
    roots = [tmp_path / name for name in ("first", "second")]
    for root in roots:
        (root / "work").mkdir(parents=True)
    settings = {"data_dir": tmp_path / "data", "sandbox": level}
    server = await serve(workspace_roots=(roots[0],), **settings)
    client = await server.client()
    session = await client.create(cwd=str(roots[0] / "work"))
    assert (await client.turn(session, "hello"))[0] == 200
    assert await server.services.sessions.cached[session].agent.hibernate()

    (roots[0] / "work").rename(tmp_path / "moved")
    (roots[0] / "work").symlink_to(roots[1])
    status, reply = await client.turn(session, "hello")
    assert (status, reply["code"]) == (400, "bad_request")
    (roots[0] / "work").unlink()
    (tmp_path / "moved").rename(roots[0] / "work")
    assert (await client.turn(session, "hello"))[0] == 200


async def test_client_cannot_choose_the_data_folder_as_cwd(serve: Serve, tmp_path: Path) -> None:
    server = await serve(workspace_roots=(tmp_path,))
    client = await server.client()
    other = (await client.state(await client.create()))["cwd"]
    for folder in (other, tmp_path / "data", tmp_path):
        status, reply = await client.post("/sessions", {"cwd": str(folder)})
        assert (status, reply["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("cwd", "is_allowed"),
    [("work", True), ("work/below", True), ("link", False), ("missing", False), ("../out", False)],
)
def test_working_directory_is_opened_beneath_its_root(
    tmp_path: Path, cwd: str, is_allowed: bool
) -> None:
    (tmp_path / "root" / "work" / "below").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "out")
    policy = SandboxPolicy(roots=(tmp_path / "root",))
    sandbox = Sandbox(mechanism("off"), DataDir(tmp_path / "data"), policy)
    spec = TrialSpec("key", str(tmp_path / "root" / cwd))
    if is_allowed:
        assert sandbox.locate(spec) == (str(tmp_path / "root"), cwd)
    else:
        with pytest.raises(FolderError):
            sandbox.locate(spec)


@each_level
def test_listed_folders_are_granted_and_the_data_folder_stays_hidden(
    tmp_path: Path, level: str
) -> None:
    """Also if a folder that the operator lists contains it."""
    data = DataDir(tmp_path / "all" / "data")
    for folder in (tmp_path / "writable", data.workspace("own")):
        folder.mkdir(parents=True)
    data.database.write_text("secret")
    (tmp_path / "all" / "listed").write_text("readable")
    policy = SandboxPolicy(read=(tmp_path / "all",), write=(tmp_path / "writable",))
    sandbox = Sandbox(mechanism(level), data, policy, plain_environ())
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\nfrom pathlib import Path\n"
        "def tried(function):\n    try:\n        return str(function())\n"
        "    except OSError as error:\n        return None\n"
        "paths = json.loads(sys.argv[1])\n"
        "print(json.dumps({'listed': tried(Path(paths['listed']).read_text),"
        " 'database': tried(Path(paths['database']).read_text),"
        " 'list': tried(lambda: list(Path(paths['database']).parent.iterdir())),"
        " 'written': tried(lambda: Path(paths['writable'], 'file').write_text('x'))}))\n"
    )
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(sandbox.plan(TrialSpec("own", str(data.workspace("own"))), {})))
    targets = {
        "listed": str(tmp_path / "all" / "listed"),
        "database": str(data.database),
        "writable": str(tmp_path / "writable"),
    }
    python = system_python()
    found = run_attempts(plan, [python, "-I", "-S", str(program)], targets, plain_environ())
    assert found == {"listed": "readable", "database": None, "list": None, "written": "1"}


@each_level
def test_listed_folder_that_became_a_link_is_not_granted(tmp_path: Path, level: str) -> None:
    """Nor a root that lies in another one: an agent may be able to replace it."""
    secret, root = tmp_path / "operator" / "id_ed25519", tmp_path / "root"
    secret.parent.mkdir()
    secret.write_text("secret")
    data = DataDir(tmp_path / "data")
    for folder in (root / "listed", root / "inner" / "project", data.workspace("own")):
        folder.mkdir(parents=True)
    policy = SandboxPolicy(read=(root / "listed",), roots=(root / "inner", root))
    sandbox = Sandbox(mechanism(level), data, policy, plain_environ())
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(sandbox.plan(TrialSpec("own", str(data.workspace("own"))), {})))
    for path in (root / "listed", root / "inner"):
        path.rename(root / f"{path.name}.old")
        path.symlink_to(secret.parent)
    argv = [sys.executable, "-I", "-S", str(RESTRICT), str(plan), "/bin/sh", "-c"]
    argv += [f"cat {root}/listed/{secret.name}"]
    assert subprocess.run(argv, capture_output=True, check=False).stdout == b""
    (secret.parent / "project").mkdir()
    with pytest.raises(FolderError):
        sandbox.locate(TrialSpec("other", str(root / "inner" / "project")))


@each_level
def test_argument_of_a_client_does_not_grant_the_file_that_it_names(
    tmp_path: Path, level: str
) -> None:
    """A system prompt that is the path of a key, for example."""
    secret = tmp_path / "id_ed25519"
    secret.write_text("secret")
    data = DataDir(tmp_path / "data")
    data.workspace("own").mkdir(parents=True)
    sandbox = Sandbox(mechanism(level), data, environ=plain_environ())
    made = sandbox.plan(TrialSpec("own", str(data.workspace("own"))), {})
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({**made, "program": ["/bin/cat"]}))
    argv = [sys.executable, "-I", "-S", str(RESTRICT), str(plan), "/bin/cat", str(secret)]
    assert subprocess.run(argv, capture_output=True, check=False).stdout == b""


@pytest.mark.parametrize("level", [pytest.param("bwrap", marks=pytest.mark.slow), "landlock"])
@pytest.mark.parametrize("kind", ["interpreter", "link"])
def test_program_that_refers_to_the_database_does_not_open_it(
    tmp_path: Path, level: str, kind: str
) -> None:
    """An agent that can write its own program could name any file there."""
    data = DataDir(tmp_path / "data")
    data.workspace("own").mkdir(parents=True)
    data.database.write_text("secret")
    script, link = tmp_path / "agent.py", tmp_path / "link"
    first = f"#!{data.database}\n" if kind == "interpreter" else ""
    script.write_text(
        f"{first}print('runs', flush=True)\nprint(open({str(data.database)!r}).read())"
    )
    link.symlink_to(data.database)
    sandbox = Sandbox(mechanism(level), data, environ=plain_environ())
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(sandbox.plan(TrialSpec("own", str(data.workspace("own"))), {})))
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(RESTRICT), str(plan), system_python(), str(script), link],
        env=plain_environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("runs\n", 1), done


@pytest.mark.parametrize("level", [pytest.param("bwrap", marks=pytest.mark.slow), "landlock"])
async def test_ended_agent_leaves_no_process(serve: Serve, tmp_path: Path, level: str) -> None:
    """The pid of a process in a namespace is its own number, so the test reads its session."""
    mechanism(level)
    server = await serve(sandbox=level)
    client = await server.client()
    for ending in ("close", "crash", "cancel"):
        session = await client.create()
        pid_file = tmp_path / f"{ending}.pid"
        step = {"spawn": {"pid_file": str(pid_file), "double_fork": True, "ignore_sigterm": True}}
        assert (await client.turn(session, script(step)))[0] == 200
        if ending == "crash":
            await client.turn(session, script({"crash": "SIGKILL"}))
        await client.delete(f"/sessions/{session}")
        assert not processes_of(session)
        if level == "landlock":
            assert not is_running(int(pid_file.read_text()))


def processes_of(session: str) -> list[str]:
    """The processes that have the session in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if session.encode() in (entry / "environ").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


@each_level
def test_variables_of_a_client_reach_only_the_sandbox(tmp_path: Path, level: str) -> None:
    """Not the launcher or bubblewrap, which would carry out code of the client."""
    data = DataDir(tmp_path / "data")
    data.workspace("own").mkdir(parents=True)
    policy = SandboxPolicy(limits=SandboxLimits(processes=200))  # which takes a further program
    sandbox = Sandbox(mechanism(level), data, policy, plain_environ())
    library = str(data.workspace("own") / "evil.so")
    environ = {"LD_PRELOAD": library, "PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(sandbox.plan(TrialSpec("own", str(data.workspace("own"))), environ)))
    done = subprocess.run(
        [system_python(), "-I", "-S", str(RESTRICT), str(plan), "/usr/bin/env"],
        env=plain_environ(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"LD_PRELOAD={library}" in done.stdout.splitlines()
    assert done.stderr.count(library) == 1  # the loader of the program alone complains


@pytest.mark.slow
@each_level
def test_git_works_in_a_worktree_and_cannot_change_hooks(tmp_path: Path, level: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    data = DataDir(tmp_path / "data")
    data.workspace("own").parent.mkdir(parents=True)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (
        [*git, "init", "-q", str(root)],
        [*git, "-C", str(root), "commit", "-q", "--allow-empty", "-m", "first"],
        [*git, "-C", str(root), "worktree", "add", "-q", str(data.workspace("own"))],
    ):
        subprocess.run(command, check=True)
    policy = SandboxPolicy(roots=(root,))
    sandbox = Sandbox(mechanism(level), data, policy, plain_environ())
    spec = TrialSpec("own", str(data.workspace("own")), repository=str(root))
    commands = {
        "commit": f"echo x > f && git add f && {' '.join(git)} commit -q -m second",
        "hook": f"echo x > {root}/.git/hooks/post-commit",
        "configuration": f"{' '.join(git)} config core.fsmonitor evil",
    }
    found = run_commands(sandbox, spec, commands, tmp_path)
    assert found.pop("commit") is None
    assert all(found.values())


def run_commands(
    sandbox: Sandbox, spec: TrialSpec, commands: dict[str, str], folder: Path
) -> dict[str, str | None]:
    """Run shell commands in the sandbox. Returns the error of each, or None."""
    program, plan = folder / "commands.py", folder / "plan.json"
    program.write_text(
        "import json, subprocess, sys\n"
        "def fail(command):\n"
        "    done = subprocess.run(['sh', '-c', command], capture_output=True, text=True)\n"
        "    return (done.stderr or 'failed')[-500:] if done.returncode else None\n"
        "commands = json.loads(sys.argv[1])\n"
        "print(json.dumps({name: fail(command) for name, command in commands.items()}))\n"
    )
    plan.write_text(json.dumps(sandbox.plan(spec, {})))
    python = system_python()
    return run_attempts(plan, [python, "-I", "-S", str(program)], commands, sandbox.environ)


TOOLS = {
    "git": "git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x",
    "node": 'node -e \'require("fs").writeFileSync("a", require("os").tmpdir())\'',
    "npm": "npm --version && npm init -y",
    "python": "python3 -c 'import ssl, subprocess; subprocess.run([\"true\"], check=True)'",
    "virtual environment": "python3 -m venv --without-pip v && v/bin/python -c 1",
    "processes": "ps -e | grep -q ps",
    "compiler": "echo 'int main(){return 0;}' > a.c && cc a.c -o a.out && ./a.out",
    "curl": "curl --version && curl -s file:///etc/hostname",
    "pipe": (
        "python3 -c 'import multiprocessing as m\n"
        "a, b = m.Pipe()\np = m.Process(target=b.send, args=(1,)); p.start()\n"
        "assert a.recv() == 1; p.join()'"
    ),
    "terminal": "python3 -c 'import pty; assert pty.spawn([\"true\"]) == 0'",
    "temporary file": 'f=$(mktemp) && echo x > "$f" && rm "$f"',
    "home": "echo x > ~/.config-file && cat ~/.config-file",
    "shell": "for i in 1 2 3; do (echo $i | cat > /dev/null) & done; wait; nice -n 5 true",
}
MORE_TOOLS = {
    "pip": "python3 -m pip --version || ! python3 -c 'import pip'",
    "archive": "echo x > t && tar -czf t.tgz t && rm t && tar -xzf t.tgz && test -f t",
    "text": "seq 9 | sed s/1/2/ | awk '{print $1}' | sort | xargs -n 3 echo | grep -q 2",
    "search": "echo needle > n && find . -name n -exec grep -l needle {} +",
    "database": (
        'python3 -c \'import sqlite3; c = sqlite3.connect("d.db");'
        ' c.execute("PRAGMA journal_mode=wal"); c.execute("CREATE TABLE t (a)")\''
    ),
    **{
        program: f"command -v {program} > /dev/null || exit 0; {use}"
        for program, use in {
            "make": "printf 'all:\\n\\ttrue\\n' > Makefile && make",
            "patch": "echo a > p; echo b > q; diff p q > d || patch p d && cmp p q",
            "ssh": "ssh -V && ssh-keygen -q -t ed25519 -N '' -f key",
            "openssl": "openssl rand -hex 4 && openssl genpkey -algorithm ed25519 -out pem",
            "strace": "strace -f -o trace true && grep -q exit trace",
            "gdb": "gdb -batch -ex run -ex quit true",
        }.items()
    },
}
ONLY_IN_NAMESPACE = {
    "pool": (
        "python3 -c 'import multiprocessing as m\n"
        "q = m.Queue(); q.put(1); assert q.get() == 1\n"
        "with m.Pool(2) as p: assert p.map(abs, [-1]) == [1]'"
    ),
}


@pytest.mark.slow
@each_level
@pytest.mark.parametrize("tools", [TOOLS, MORE_TOOLS], ids=["languages", "others"])
def test_tools_work_in_the_sandbox(level: str, tools: dict[str, str], tmp_path: Path) -> None:
    if level == "bwrap" and tools is TOOLS:
        tools = {**tools, **ONLY_IN_NAMESPACE}
    data = DataDir(tmp_path / "data")
    data.workspace("own").mkdir(parents=True)
    sandbox = Sandbox(mechanism(level), data, environ=plain_environ())
    spec = TrialSpec("own", str(data.workspace("own")))
    found = run_commands(sandbox, spec, tools, tmp_path)
    assert found == dict.fromkeys(tools)


@pytest.mark.slow
async def test_agent_outside_of_the_system_needs_no_listing(serve: Serve, tmp_path: Path) -> None:
    """Its program and its script are readable, and a package around them."""
    package = tmp_path / "elsewhere" / "node_modules" / "agent"
    package.mkdir(parents=True)
    (package / "agent.py").write_bytes(MOCK.read_bytes())
    shutil.copytree(MOCK.parents[1] / "mock_agent", package.parent / "mock_agent")
    program = tmp_path / "elsewhere" / "start-agent"
    program.write_text(f"#!{sys.executable}\nimport os, sys\nos.execv(sys.argv[1], sys.argv[1:])\n")
    program.chmod(0o755)
    command = (str(program), sys.executable, "-I", "-S", str(package / "agent.py"))
    server = await serve(
        agents={"mine": AgentCommand(command)}, default_agent="mine", sandbox_write=()
    )
    client = await server.client()
    assert (await client.turn(await client.create("mine"), "hello"))[0] == 200
