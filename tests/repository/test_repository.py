"""The conventions of the repository itself: pins, the lock, the Makefile's help, no stray paths."""

import base64
import json
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.agents.catalog import ACPX_VERSION

ROOT = Path(__file__).resolve().parents[2]
ACPX = "0.19.1"

# Where somebody's machine shows: home folders, and the folder that this checkout is in.
MACHINE_PATHS = re.compile(
    r"/root/|/Users/\w|/home/(?!clawdforge\b|user\b|you\b)\w"
    + ("|" + re.escape(f"{ROOT}/") if len(ROOT.parts) > 2 else "")
)


def read_pins(name: str) -> dict[str, str]:
    pins: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-r requirements"):
            continue
        package, _, version = text.partition("==")
        assert re.fullmatch(r"[A-Za-z0-9._-]+", package), f"{name} does not pin: {line}"
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name} does not pin: {line}"
        assert canonicalize_name(package) not in pins, f"{name} names {package} twice"
        pins[canonicalize_name(package)] = version
    return pins


def read_lock(folder: str = ".") -> dict[str, dict[str, Any]]:
    packages: dict[str, dict[str, Any]]
    packages = json.loads((ROOT / folder / "package-lock.json").read_text())["packages"]
    return packages


# The server's packages, and the agents and the clients that the tests run for real.
each_lock = pytest.mark.parametrize("folder", [".", "tests/support/real", "tests/openai/programs"])


def list_files() -> list[Path]:
    """Every file that is tracked, or would be with `git add`."""
    names = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout.split(b"\0")
    return [path for name in names if name and (path := ROOT / name.decode()).is_file()]


PINNED = (
    "requirements.txt",
    "requirements-cluster.txt",
    "requirements-otel.txt",
    "requirements-dev.txt",
)


@pytest.mark.parametrize("name", PINNED)
def test_installed_packages_are_the_pinned_ones(name: str) -> None:
    for package, version in read_pins(name).items():
        assert metadata.version(package) == version


@pytest.mark.parametrize("name", PINNED)
def test_dependencies_of_pinned_packages_are_pinned(name: str) -> None:
    pins = read_pins("requirements.txt") | read_pins(name)
    if name == "requirements-dev.txt":  # it includes the others
        pins |= read_pins("requirements-otel.txt")
    for package in read_pins(name):
        for text in metadata.requires(package) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in pins, f"{package} needs {text}"


def test_requirements_files_share_no_package() -> None:
    names = [name for file in PINNED for name in read_pins(file)]
    assert len(names) == len(set(names))


@each_lock
def test_package_json_pins_exact_versions_and_matches_the_lock(folder: str) -> None:
    package = json.loads((ROOT / folder / "package.json").read_text())
    lock = read_lock(folder)
    for kind in ("dependencies", "devDependencies", "optionalDependencies"):
        assert lock[""].get(kind) == package.get(kind)
        for name, version in package.get(kind, {}).items():
            version = re.sub(r"\Anpm:.+@", "", version)  # a second version, under another name
            assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name} is not pinned"
            assert lock[f"node_modules/{name}"]["version"] == version


def test_acpx_version_of_the_server_is_the_pinned_one() -> None:
    package = json.loads((ROOT / "package.json").read_text())
    assert package["dependencies"]["acpx"] == ACPX == ACPX_VERSION


@each_lock
def test_lock_has_hashes_and_no_registry_addresses(folder: str) -> None:
    for name, entry in read_lock(folder).items():
        if name:
            assert "resolved" not in entry, name
            algorithm, _, digest = entry["integrity"].partition("-")
            assert algorithm == "sha512"
            assert len(base64.b64decode(digest, validate=True)) == 64, name


@each_lock
def test_lock_has_the_packages_of_every_platform(folder: str) -> None:
    # npm leaves out what its registry does not have at that moment, and `npm ci` then refuses the
    # lock that npm itself has written: https://github.com/npm/cli/issues/9846
    lock = read_lock(folder)
    for name, entry in lock.items():
        for needed in entry.get("optionalDependencies", {}):
            assert f"node_modules/{needed}" in lock, f"{name} may need {needed}"


def test_files_contain_no_machine_paths() -> None:
    found = []
    for path in list_files():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_ignored_files_are_not_tracked() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in list_files()]
    assert not [name for name in names if re.match(r"(data|node_modules|\.venv)/|\.env$", name)]


def test_make_reinstalls_a_replaced_or_removed_acpx(tmp_path: Path) -> None:
    installed = (*PINNED, "package.json", "package-lock.json")
    for name in ("Makefile", ".venv", ".npmrc", "server", *installed):
        (tmp_path / name).symlink_to(ROOT / name)
    acpx = tmp_path / "node_modules" / "acpx" / "package.json"
    acpx.parent.mkdir(parents=True)
    for stamp in (ROOT / "node_modules").glob(".ci-*"):
        (tmp_path / "node_modules" / stamp.name).touch()

    def steps() -> str:
        argv = ["make", "--dry-run", "setup"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    def installs() -> bool:
        return "npm-cli.js" in steps()

    acpx.write_bytes((ROOT / "node_modules" / "acpx" / "package.json").read_bytes())
    assert not installs()
    assert "Bundling acpx" in steps()
    bundle = acpx.parent / "dist" / "bundle.mjs"
    bundle.parent.mkdir()
    bundle.touch()
    assert "Bundling acpx" not in steps()
    acpx.write_text('{\n  "version": "0.0.1"\n}\n', "utf-8")
    assert installs()
    acpx.unlink()
    assert installs()


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE))
    assert phony >= {"help", "run", "test", "lint", "fmt", "bench", "clean"}
    shown = subprocess.run(
        ["make", "-s"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert set(re.findall(r"^  make ([\w-]+) +\S", shown, re.MULTILINE)) == phony
