"""The sequence diagrams of docs/explanation/architecture.md: every name in them exists."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from ..support.harness import ROOT

PAGE = ROOT / "docs" / "explanation" / "architecture.md"
SERVER = ROOT / "server"
METHOD = re.compile(r"\b([A-Z]\w+)\.(\w+)")
FILE = re.compile(r"\b[\w/]+\.(?:py|mjs)\b")


def diagrams() -> str:
    text = PAGE.read_text("utf-8")
    return "\n".join(re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL))


@functools.cache
def methods() -> dict[str, set[str]]:
    """The names of each class's methods, by the class."""
    found: dict[str, set[str]] = {}
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = {
                    part.name
                    for part in node.body
                    if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))
                }
                found.setdefault(node.name, set()).update(names)
    return found


def test_page_has_a_diagram_of_a_prompt_and_one_of_an_update() -> None:
    assert diagrams().count("sequenceDiagram") == 2


@pytest.mark.parametrize(("owner", "method"), sorted(set(METHOD.findall(diagrams()))))
def test_method_in_a_diagram_exists(owner: str, method: str) -> None:
    assert method in methods().get(owner, set())


@pytest.mark.parametrize("name", sorted(set(FILE.findall(diagrams()))))
def test_file_in_a_diagram_exists(name: str) -> None:
    assert (SERVER / name).is_file()
