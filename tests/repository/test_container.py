"""The Dockerfile and the compose file, as far as they can be looked at; `make image` runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from ..support.harness import ROOT
from ..support.real_agents import PACKAGES

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def test_hadolint_accepts_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [program, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_image_tests_and_docs_use_the_same_claude_code() -> None:
    compose = (ROOT / "compose.yml").read_text("utf-8")
    for name in ("CLAUDE_CODE_VERSION", "CLAUDE_AGENT_ACP_VERSION"):
        pinned = re.search(rf"^ARG {name}=([\d.]+)$", DOCKERFILE, re.MULTILINE)
        assert pinned, name
        assert f"${{{name}-{pinned[1]}}}" in compose
        assert f"#{name}={pinned[1]}\n" in (ROOT / ".env.example").read_text("utf-8")
    tested = json.loads((PACKAGES / "package.json").read_text("utf-8"))["dependencies"]
    assert f"ARG CLAUDE_CODE_VERSION={tested['@anthropic-ai/claude-code']}\n" in DOCKERFILE
    adapter = tested["claude-agent-acp-newest"].rpartition("@")[2]
    assert f"ARG CLAUDE_AGENT_ACP_VERSION={adapter}\n" in DOCKERFILE
    page = (ROOT / "docs" / "howto" / "agents.md").read_text("utf-8")
    assert f"claude-agent-acp@{adapter.rpartition('.')[0]}`" in page


def test_compose_variables_are_documented() -> None:
    compose = (ROOT / "compose.yml").read_text("utf-8")
    example = (ROOT / ".env.example").read_text("utf-8")
    page = (ROOT / "docs" / "howto" / "container.md").read_text("utf-8")
    names = set(re.findall(r"\$\{(\w+)", compose))
    assert len(names) >= 8
    assert [name for name in names if f"\n#{name}=" not in example] == []
    assert [name for name in names if name not in page] == []


def test_compose_allows_enough_time_to_stop() -> None:
    compose = (ROOT / "compose.yml").read_text("utf-8")
    grace = re.search(r"stop_grace_period: (\d+)s", compose)
    assert grace
    assert int(grace[1]) > 2 * 10 + 5, "running turns, runs, and sockets that do not leave"


def test_builder_receives_only_the_copied_files() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {line[1:].rstrip("/") for line in rules if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    # A file may be copied before the folder that it is in.
    within = {name for name in names if any(name.startswith(f"{other}/") for other in names)}
    assert let_in == names - within
