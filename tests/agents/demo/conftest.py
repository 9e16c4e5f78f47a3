"""Fixtures: demo agents as programs of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.stand_ins.stdio_client import Json, StdioAgent

PROJECT = Path(__file__).resolve().parents[3]
DEMO = [sys.executable, "-I", "-S", str(PROJECT / "server/agents/demo/demo_agent.py")]
NOTES = "demo-notes.md"

Start = Callable[..., StdioAgent]


def environ(pace_ms: str = "0") -> dict[str, str]:
    return {"DEMO_PACE_MS": pace_ms, "PYTHONPATH": str(PROJECT)}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts demo agents in one folder and ends them with the test."""
    with ExitStack() as stack:

        def start_one(command: list[str] = DEMO, pace_ms: str = "0") -> StdioAgent:
            return stack.enter_context(StdioAgent(command, tmp_path, environ(pace_ms)))

        yield start_one


@pytest.fixture
def agent(start: Start) -> StdioAgent:
    return start()


@pytest.fixture(scope="module")
def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdioAgent]:
    """An agent for the tests of a module that open no session."""
    with StdioAgent(DEMO, tmp_path_factory.mktemp("demo"), environ()) as agent:
        yield agent


def text(words: str) -> Json:
    return {"type": "text", "text": words}
