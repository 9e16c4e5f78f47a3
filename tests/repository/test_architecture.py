"""The page docs/explanation/architecture.md: every method and file that it names exists."""

from __future__ import annotations

import ast
import re

from ..support.harness import ROOT

PAGE = ROOT / "docs" / "explanation" / "architecture.md"
SERVER = ROOT / "server"
METHOD = re.compile(r"\b([A-Z]\w+)\.(\w+)")
FILE = re.compile(r"\b[\w/]+\.(?:py|mjs)\b")

TEXT = PAGE.read_text("utf-8")
DIAGRAMS = "\n".join(re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL))
SPANS = re.findall(r"`([^`\n]+)`", TEXT)


def names_of(class_name: str) -> set[str]:
    """The methods and attributes of the classes of that name."""
    found = set()
    for path in SERVER.rglob("*.py"):
        source = path.read_text("utf-8")
        if not re.search(rf"^ *class {class_name}\b", source, re.MULTILINE):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                for part in ast.walk(node):
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                        found.add(part.name)
                    elif isinstance(part, ast.Attribute):
                        found.add(part.attr)
    return found


def test_page_has_a_diagram_of_a_prompt_and_one_of_an_update() -> None:
    assert DIAGRAMS.count("sequenceDiagram") == 2


def test_methods_that_the_page_names_exist() -> None:
    named = METHOD.findall(DIAGRAMS)
    named += [match.groups() for span in SPANS if (match := METHOD.fullmatch(span))]
    by_class: dict[str, set[str]] = {}
    for class_name, name in named:
        by_class.setdefault(class_name, set()).add(name)
    assert {"TurnQueue", "SettingsSync"} <= by_class.keys()
    missing = {owner: names - names_of(owner) for owner, names in by_class.items()}
    assert not {owner: names for owner, names in missing.items() if names}


def test_files_that_the_page_names_exist() -> None:
    folders = {SERVER, ROOT, *(path.parent for path in SERVER.rglob("*.py"))}
    named = FILE.findall(DIAGRAMS) + [span for span in SPANS if FILE.fullmatch(span)]
    assert len(named) > 10
    assert not [name for name in named if not any((one / name).is_file() for one in folders)]
