"""The image without an engine: the Dockerfile's own steps, run in Debian roots.

A root made by debootstrap stands for the base image, which has the same Debian and
the same Python; the context is what .dockerignore lets through, and nothing else.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from ...support.harness import ROOT

SUITE = "trixie"
PYTHON = "3.13"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
NETWORK = re.compile(r"(PIP_|npm_config_|NODE_EXTRA_CA|SSL_CERT_).*|.*_proxy", re.IGNORECASE)
"""Variables of this machine's that a build needs to reach the registries, as it does."""


@dataclasses.dataclass
class Stage:
    """A stage of the build: its root, and what its instructions have set."""

    root: Path
    environ: dict[str, str] = dataclasses.field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    entrypoint: list[str] = dataclasses.field(default_factory=list)
    command: list[str] = dataclasses.field(default_factory=list)
    healthcheck: list[str] = dataclasses.field(default_factory=list)
    volumes: list[str] = dataclasses.field(default_factory=list)


def base_root() -> Path:
    """A Debian root with Python, made once for a machine."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "clawdforge-tests" / f"debian-{SUITE}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(made, ignore_errors=True)
            packages = "ca-certificates,python3,python3-venv"
            argv = ["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(made)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr
            (made / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            made.rename(folder)
    return folder


def context(folder: Path) -> Path:
    """The build context: what .dockerignore, which begins with ``*``, lets through."""
    folder.mkdir()
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*", "an allow-list"
    ignore = shutil.ignore_patterns("__pycache__", "*.py[cod]")
    for line in lines:
        if line.startswith("!"):
            source = ROOT / line[1:]
            if source.is_dir():
                shutil.copytree(source, folder / line[1:], ignore=ignore)
            else:
                shutil.copy2(source, folder / line[1:])
    return folder


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n", "", text)
    found = []
    for line in text.splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            found.append((name.upper(), rest.strip()))
    return found


class Build:
    """Runs the instructions, one stage after the other; the last one is the image."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base = base
        self._folder = folder
        self._context = context(folder / "context")
        self._arguments: dict[str, str] = {}
        self._names: dict[str, Stage] = {}
        self.stages: list[Stage] = []
        self.log: list[str] = []

    def run(self) -> Stage:
        for name, rest in instructions():
            getattr(self, f"_{name.lower()}")(rest)
        return self._stage

    @property
    def _stage(self) -> Stage:
        return self.stages[-1]

    def _expand(self, text: str) -> str:
        known = {**self._arguments, **(self._stage.environ if self.stages else {})}
        return re.sub(r"\$\{?(\w+)\}?", lambda m: known.get(m[1], ""), text)

    def _arg(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        self._arguments[name] = value

    def _from(self, rest: str) -> None:
        words = self._expand(rest).split()
        assert words[0].startswith(f"python:{PYTHON}-slim-{SUITE}"), words
        root = self._folder / f"root-{len(self.stages)}"
        # As `cp -a`, which also keeps what only root may read.
        subprocess.run(["cp", "-a", "--reflink=auto", self._base, root], check=True)
        host = Path("/") / CERTIFICATES
        if host.exists():
            shutil.copyfile(host, root / CERTIFICATES)
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        stage = Stage(root, {"PATH": path})
        self.stages.append(stage)
        if len(words) == 3:
            self._names[words[2]] = stage

    def _workdir(self, rest: str) -> None:
        self._stage.workdir = rest
        self._at(rest).mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        words = rest.split()
        source = self._context
        if words[0].startswith("--from="):
            source = self._names[words.pop(0).removeprefix("--from=")].root
        *names, target = words
        for name in names:
            found = source / name.lstrip("/")
            into = self._at(target)
            into = into / found.name if target.endswith("/") else into
            into.parent.mkdir(parents=True, exist_ok=True)
            argv = ["cp", "-a", "--no-preserve=ownership", str(found), str(into)]
            subprocess.run(argv, check=True)

    def _run(self, rest: str) -> None:
        network = {k: v for k, v in os.environ.items() if NETWORK.fullmatch(k)}
        network.pop("PIP_FIND_LINKS", None)
        # Node knows certificates of its own only; where a mirror has another, the system has it.
        network.setdefault("NODE_EXTRA_CA_CERTS", f"/{CERTIFICATES}")
        # Args are seen by what runs and are not kept.
        environ = {**network, **self._arguments, **self._stage.environ, "HOME": "/root"}
        done = subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                f"--mount-proc={self._stage.root}/proc",
                *("chroot", str(self._stage.root), "/usr/bin/env", "-i"),
                *(f"{name}={value}" for name, value in environ.items()),
                *("sh", "-c", f"cd {shlex.quote(self._stage.workdir)} && {rest}"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        self.log.append(done.stdout)

    def _env(self, rest: str) -> None:
        for word in shlex.split(rest):
            name, _, value = word.partition("=")
            self._stage.environ[name] = self._expand(value)

    def _user(self, rest: str) -> None:
        self._stage.user = rest

    def _volume(self, rest: str) -> None:
        self._stage.volumes.append(rest)

    def _expose(self, rest: str) -> None:
        assert rest == self._stage.environ["CLAWDFORGE_PORT"]

    def _healthcheck(self, rest: str) -> None:
        self._stage.healthcheck = json.loads(rest.partition("CMD ")[2])

    def _entrypoint(self, rest: str) -> None:
        self._stage.entrypoint = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self._stage.command = json.loads(rest)

    def _at(self, path: str) -> Path:
        place = path if path.startswith("/") else f"{self._stage.workdir}/{path}"
        return self._stage.root / os.path.normpath(place).lstrip("/")
