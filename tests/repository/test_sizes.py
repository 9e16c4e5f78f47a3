"""The size limits of ``server/`` and the uniqueness of its names; exceptions: ``sizes.toml``."""

from __future__ import annotations

import ast
import functools
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.harness import ROOT

SERVER = ROOT / "server"
EXCEPTIONS = tomllib.loads((Path(__file__).parent / "sizes.toml").read_text("utf-8"))

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CLASS_METHODS = 25

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def trees() -> dict[str, tuple[ast.Module, int]]:
    """The syntax tree and the number of lines of each module, by its path below ``server/``."""
    sources = {path: path.read_text("utf-8") for path in sorted(SERVER.rglob("*.py"))}
    return {
        path.relative_to(SERVER).as_posix(): (ast.parse(source), len(source.splitlines()))
        for path, source in sources.items()
    }


def long_modules() -> Iterator[tuple[str, int]]:
    for path, (_, lines) in trees().items():
        if lines > MAX_MODULE_LINES:
            yield path, lines


def long_functions() -> Iterator[tuple[str, int]]:
    for path, (tree, _) in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    yield f"{path}:{node.name}", lines


def large_classes() -> Iterator[tuple[str, int]]:
    for path, (tree, _) in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(part, FUNCTIONS) for part in node.body)
                if methods > MAX_CLASS_METHODS:
                    yield f"{path}:{node.name}", methods


def top_level_names(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines, without a leading underscore."""
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.name.lstrip("_")
        elif isinstance(node, ast.Assign):
            yield from (t.id.lstrip("_") for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id.lstrip("_")


def repeated_names() -> Iterator[tuple[str, int]]:
    modules = defaultdict(set)
    for path, (tree, _) in trees().items():
        for name in top_level_names(tree):
            modules[name].add(path)
    for name, paths in modules.items():
        if len(paths) > 1:
            yield name, len(paths)


FINDERS = {
    "modules": long_modules,
    "functions": long_functions,
    "classes": large_classes,
    "names": repeated_names,
}


@pytest.mark.parametrize("kind", FINDERS)
def test_code_stays_below_the_limit_unless_listed(kind: str) -> None:
    found = {name: count for name, count in FINDERS[kind]() if name not in EXCEPTIONS[kind]}
    assert not found, f"split it, rename it, or give a reason in sizes.toml: {found}"


@pytest.mark.parametrize("kind", FINDERS)
def test_exceptions_have_a_reason_and_are_needed(kind: str) -> None:
    found = dict(FINDERS[kind]())
    for name, reason in EXCEPTIONS[kind].items():
        assert reason.strip(), f"{name} has no reason"
        assert name in found, f"{name} is below the limit; remove it from sizes.toml"
