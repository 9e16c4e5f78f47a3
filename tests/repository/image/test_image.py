"""The image's steps run for real, and a server in what they make, shut in as compose.yml has it.

Not part of `make test`: it takes minutes and has to be root. `make image` and CI run it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from ...support.anthropic_stand_in import Text, stand_in
from ...support.harness import ADMIN, ROOT, Client, descendants, eventually, texts_of
from ...support.proxies import free_port
from .build import Build, Stage, base_root

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

MIB = 2**20
# The work of a container engine: a read-only root, volumes, and the other folders in memory.
SHUT_IN = """
set -e
root=$1 data=$2 home=$3 user=$4; shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/tmp"
mount -t tmpfs -o mode=0700,uid=$user,gid=$user,size=1g tmpfs "$root/home/clawdforge"
mkdir -p "$root/home/clawdforge/.claude"
mount --bind "$home" "$root/home/clawdforge/.claude"
mount --bind "$data" "$root/data"
exec chroot --userspec="$user:$user" --groups= "$root" setpriv --no-new-privs "$@"
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    missing = [name for name in ("debootstrap", "unshare") if shutil.which(name) is None]
    if os.getuid() != 0 or missing:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL"):
            pytest.fail(f"it has to be root, and needs {missing}")
        pytest.skip("it has to be root, and needs debootstrap")
    made = Build(base_root(), tmp_path_factory.mktemp("image"))
    made.run()
    return made


@pytest.fixture(scope="module")
def image(build: Build) -> Stage:
    return build.stages[-1]


def succeeds(*argv: str | Path) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def in_root(stage: Stage, *argv: str) -> str:
    done = subprocess.run(
        ["chroot", str(stage.root), *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


@contextlib.asynccontextmanager
async def container(
    image: Stage, folder: Path, **variables: str
) -> AsyncIterator[tuple[int, str, Path]]:
    """The image's server in namespaces of its own; its process, its address and its log.

    It shares this machine's network, so its port is another than the image's own.
    """
    volumes = {name: folder / name for name in ("data", "home")}
    assert succeeds("cp", "-a", image.root / "data", volumes["data"])
    assert succeeds("cp", "-a", image.root / "home/clawdforge/.claude", volumes["home"])
    port = str(free_port())
    environ = {**image.environ, "CLAWDFORGE_PORT": port, "HOME": "/home/clawdforge", **variables}
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", SHUT_IN, "sh", str(image.root)),
            *(str(volumes["data"]), str(volumes["home"]), image.user),
            *("/usr/bin/env", "-i", "-C", image.workdir),
            *(f"{name}={value}" for name, value in environ.items()),
            *(*image.entrypoint, *image.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def ready() -> bool:
        assert process.returncode is None, log.read_text("utf-8")
        return "is ready on" in log.read_text("utf-8")

    try:
        await eventually("the server to be ready", ready, 60)
        yield min(descendants(process.pid)), f"http://127.0.0.1:{port}", log
    finally:
        if process.returncode is None:
            process.kill()  # and all in its namespace with it
        await process.wait()


async def test_server_works_in_the_restricted_container(image: Stage, tmp_path: Path) -> None:
    async with (
        stand_in() as api,
        container(image, tmp_path, CLAWDFORGE_ADMIN_TOKEN=ADMIN, **api.environ) as (init, url, log),
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http,
    ):
        admin = Client(url, ADMIN, http)
        _, made = await admin.post("/admin/tokens", {"name": "app"})
        client = Client(url, made["token"], http)

        port = f"CLAWDFORGE_PORT={url.rpartition(':')[2]}"
        path = f"PATH={image.environ['PATH']}"
        in_root(image, "env", port, path, *image.healthcheck)

        # tini is the first process; it, the server and the agents are nobody special.
        assert Path(f"/proc/{init}/comm").read_text() == "tini\n"
        session = await client.create("demo")
        status, reply = await client.turn(session, "help")
        assert status == 200
        assert "What I can show" in texts_of(reply["events"])
        everybody = [init, *descendants(init)]
        assert len(everybody) >= 5
        for pid in everybody:
            facts = Path(f"/proc/{pid}/status").read_text()
            assert re.search(rf"^Uid:\s+{image.user}\s", facts, re.MULTILINE)
            assert re.search(r"^CapEff:\s+0+$", facts, re.MULTILINE)
        # The root cannot be written, what is meant to be can.
        for path, is_writable in (("/app/x", False), ("/x", False), ("/data/x", True)):
            argv = ["nsenter", "-t", str(init), "-m", "-p", "-r", "-S", image.user]
            assert succeeds(*argv, "touch", path) is is_writable, path

        # The real claude, by both ways, at a stand-in for its API.
        api.always(Text("hello from claude"))
        status, reply = await client.post("/run", {"prompt": "hi"})
        assert (status, reply["result"]) == (200, "hello from claude"), log.read_text("utf-8")
        status, agents = await client.get("/agents")
        claude = next(one for one in agents["agents"] if one["name"] == "claude")
        assert (claude["installed"], claude["default"]) == (True, True)
        status, reply = await client.turn(await client.create("claude"), "hi")
        assert status == 200, (reply, log.read_text("utf-8"))
        assert "hello from claude" in texts_of(reply["events"])

        os.kill(init, signal.SIGTERM)
        await eventually("the server to end", lambda: not Path(f"/proc/{init}").exists())
        assert "Traceback" not in log.read_text("utf-8")


def test_image_contains_no_build_tools_and_no_other_files(image: Stage) -> None:
    for tool in ("gcc", "make", "curl"):
        assert not (image.root / "usr/bin" / tool).exists()
    assert sorted(p.name for p in (image.root / "app").iterdir()) == sorted(
        [".venv", "node_modules", "package.json", "LICENSE", "static", "server"]
    )
    for path in (image.root / "app" / "server").rglob("*"):
        assert path.stat().st_uid == 0, "its user cannot change the program"


def test_operator_commands_work_in_the_image(image: Stage) -> None:
    environ = [f"{name}={value}" for name, value in image.environ.items()]
    said = in_root(image, "env", "-C", image.workdir, *environ, "python", "-m", "server", "--help")
    assert "doctor" in said


def test_image_size_matches_the_docs(image: Stage) -> None:
    """Of the layers above the base: what a pull of a new version brings."""

    def size(*paths: str) -> int:
        argv = ["du", "-scm", *(str(image.root / path) for path in paths)]
        out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return int(out.splitlines()[-1].split()[0])

    shown = (ROOT / "docs" / "howto" / "container.md").read_text("utf-8")
    for paths, what in (
        (["app"], "all of `/app`"),
        (["app/.venv"], "Python packages and Node"),
        (["app/node_modules/@anthropic-ai/claude-code-linux-x64"], "Claude Code"),
    ):
        row = re.search(rf"^\| {re.escape(what)} \| (\d+) MiB", shown, re.MULTILINE)
        assert row, f"{what}: {size(*paths)} MiB"
        assert int(row[1]) == pytest.approx(size(*paths), rel=0.2), what


def test_docker_compose_accepts_the_file(build: Build) -> None:
    # Debian's client, in the stage that is thrown away.
    stage = build.stages[0]
    in_root(stage, "apt-get", "-qq", "update")
    in_root(stage, "apt-get", "-qq", "install", "-y", "--no-install-recommends", "docker-compose")
    folder = stage.root / "compose"
    folder.mkdir()
    for name in ("compose.yml", "Dockerfile", ".env.example"):
        (folder / name.replace(".env.example", ".env")).write_bytes((ROOT / name).read_bytes())
    argv = ["docker-compose", "--project-directory", "/compose", "--profile", "tls", "config"]
    project = json.loads(in_root(stage, *argv, "--format", "json"))
    service = project["services"]["clawdforge"]
    assert service["read_only"] is True
    assert {one["target"] for one in service["volumes"]} == {
        *("/data", "/data/acpx/sessions", "/home/clawdforge/.claude")
    }
    environ = ["env", "CLAUDE_HOME=/srv/claude", "ACPX_SESSIONS_FOLDER=/srv/acpx"]
    project = json.loads(in_root(stage, *environ, *argv, "--format", "json"))
    sources = {one["source"] for one in project["services"]["clawdforge"]["volumes"]}
    assert {"/srv/claude", "/srv/acpx"} <= sources
    argv[argv.index("tls")] = "cluster"
    services = json.loads(in_root(stage, *argv, "--format", "json"))["services"]
    nodes = [services[name] for name in ("node-1", "node-2")]
    for node in nodes:
        assert node["read_only"] is True
        assert not node.get("ports")
        assert node["environment"]["CLAWDFORGE_SHARED_DIR"] == "/shared"
    data, shared = ([one["volumes"][i]["source"] for one in nodes] for i in (0, 1))
    assert len(set(data)) == 2
    assert len(set(shared)) == 1
