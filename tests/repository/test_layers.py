"""The layers of the server: which package may import which, read from the imports."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ..support.harness import ROOT

SERVER = ROOT / "server"

# A package imports only from packages above it in this list, and from itself. A module of the root
# is "root"; a package that has a name of its own in its parent ("agents.process") has its own line.
LAYERS = (
    "root",
    "reload",
    "storage.drivers",
    "storage",
    "cluster",
    "search",
    "sandbox",
    "agents.process",
    "agents.demo",
    "agents",
    "agents.host",
    "agents.cli",
    "backends",
    "workspace.snapshotter",
    "workspace",
    "accounts",
    "sessions",
    "uploads",
    "auth",
    "runs",
    "ws",
    "gateways",
    "acp",
    "openai",
    "outbox",
    "web",
    "web.resources",
    "wiring",
    "app",
    "commands",
    "serving",
    "connect",
    "command_line",
    "__main__",
)

# Programs that start before or beside the server: they need nothing but Python.
ALONE = {
    "agents.host.launch",
    "agents.process.spawn",
    "agents.process.supervise",
    "sandbox.attempts",
    "sandbox.network",
    "sandbox.program_files",
    "sandbox.resource_limits",
    "sandbox.restrict",
    *(f"agents.demo.{path.stem}" for path in (SERVER / "agents" / "demo").glob("[!_]*.py")),
    *(
        f"workspace.snapshotter.{path.stem}"
        for path in (SERVER / "workspace" / "snapshotter").glob("[!_]*.py")
    ),
}

AIOHTTP_FROM = "ws"
"""The first layer that may import aiohttp."""
ONLY_IN = {
    "orjson": {"codec"},
    "aiosqlite": {"storage.drivers.sqlite"},
    "asyncpg": {
        "storage.drivers.postgres",
        "storage.drivers.postgres_connections",
        "storage.drivers.postgres_listener",
        "storage.drivers.postgres_tail",
    },
}


def name_of(path: Path) -> str:
    """A file's module name below ``server``: ``agents.catalog``; ``""`` is the package."""
    parts = path.relative_to(SERVER).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(SERVER.rglob("*.py"))}


class Import(NamedTuple):
    """An import statement's line, and what it names; ours as ``server.<module>``.

    ``for_types``: under ``if TYPE_CHECKING``, it is never carried out.
    """

    line: int
    name: str
    for_types: bool


def imports_of(source: str, package: str, known: set[str]) -> Iterator[Import]:
    """Each import, wherever it stands.

    Args:
        package: the importing module's package below ``server``.
        known: the modules there are, to tell ``from . import log`` from a name of the package.
    """
    tree = ast.parse(source)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, id(node) in guarded)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["server", *package.split(".")] if package else ["server"]
                kept = parents[: len(parents) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                name = full if is_in(base, "server") and ours(full) in known else base
                yield Import(node.lineno, name, id(node) in guarded)


def package_of(name: str, path: Path) -> str:
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


@functools.cache
def graph() -> dict[str, list[Import]]:
    """Every module with its imports."""
    found = modules()
    return {
        name: list(imports_of(path.read_text("utf-8"), package_of(name, path), set(found)))
        for name, path in found.items()
    }


def ours(name: str) -> str | None:
    """The module below ``server`` that an import names, None for a foreign one."""
    return name.removeprefix("server").removeprefix(".") if is_in(name, "server") else None


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def where(name: str, line: int) -> str:
    return f"{modules()[name].relative_to(ROOT)}:{line}"


def layer_of(name: str) -> str:
    """The layer of a module: the longest of LAYERS that it is in."""
    return max((layer for layer in LAYERS if is_in(name, layer)), key=len, default="root")


def test_every_package_has_a_layer() -> None:
    packages = {name for name, path in modules().items() if path.name == "__init__.py" and name}
    assert packages <= set(LAYERS)


def test_module_imports_only_layers_above_its_own() -> None:
    wrong = []
    for name, found in graph().items():
        for line, imported, _ in found:
            other = ours(imported)
            if not other:
                continue
            if LAYERS.index(layer_of(other)) > LAYERS.index(layer_of(name)):
                wrong.append(f"{where(name, line)}: {layer_of(name)} imports {other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(set(LAYERS) - {"root"}))
def test_package_docstring_names_the_packages_that_it_imports(package: str) -> None:
    path = SERVER / package.replace(".", "/") / "__init__.py"
    text = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "") if path.exists() else ""
    sentence = re.search(r"Imports (.*?)\.(?:\s|$)", text, re.DOTALL)
    if sentence is None or sentence[1] == "every package above it":
        return
    named = set(re.findall(r"`([\w.]+)`", sentence[1]))
    used = {
        layer_of(other)
        for name, found in graph().items()
        for _, imported, _ in found
        if layer_of(name) == package and (other := ours(imported))
    }
    assert named == used - {"root", package}


@pytest.mark.parametrize("package", ["web.resources", "commands"])
def test_resources_and_commands_do_not_import_each_other(package: str) -> None:
    wrong = [
        f"{where(name, line)}: {name} imports {imported}"
        for name, found in graph().items()
        for line, imported, _ in found
        if is_in(name, package)
        and (other := ours(imported))
        and is_in(other, f"{package}")
        and other not in (package, "commands.admin")
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_are_acyclic() -> None:
    edges = {
        name: {ours(imported) for _, imported, for_types in found if not for_types} - {None, ""}
        for name, found in graph().items()
    }
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_aiohttp_is_not_imported_below_its_first_layer() -> None:
    wrong = [
        f"{where(name, line)}: {name} imports {imported}"
        for name, found in graph().items()
        for line, imported, _ in found
        if is_in(imported, "aiohttp") and LAYERS.index(layer_of(name)) < LAYERS.index(AIOHTTP_FROM)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", ONLY_IN)
def test_restricted_library_is_imported_only_by_its_module(library: str) -> None:
    users = {
        name
        for name, found in graph().items()
        for _, imported, _ in found
        if is_in(imported, library)
    }
    assert users == ONLY_IN[library]


@pytest.mark.parametrize("name", sorted(ALONE))
def test_standalone_program_needs_only_the_standard_library(name: str) -> None:
    imported = {imported for _, imported, for_types in graph()[name] if not for_types}
    beside = {other.rpartition(".")[2] for other in ALONE}  # found by its folder, not its package
    beside |= {f"server.{other}" for other in ALONE if is_in(other, name.rpartition(".")[0])}
    foreign = {
        other for other in imported if other.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign <= beside


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import orjson", "", ["orjson"]),
        ("from . import tasks, __version__", "", ["server.tasks", "server"]),
        ("from .tasks import Tasks", "", ["server.tasks"]),
        ("from ..tasks import Tasks", "web", ["server.tasks"]),
        ("from .stream import Lines", "agents", ["server.agents.stream"]),
        ("from server.agents import stream", "", ["server.agents.stream"]),
        ("def f():\n    import aiosqlite", "", ["aiosqlite"]),
        ("if TYPE_CHECKING:\n    from .tasks import Tasks", "", ["server.tasks"]),
    ],
)
def test_imports_are_resolved_as_python_does(source: str, package: str, found: list[str]) -> None:
    known = {"tasks", "agents", "agents.stream", "web"}
    read = list(imports_of(source, package, known))
    assert [one.name for one in read] == found
    assert [one.for_types for one in read] == ["TYPE_CHECKING" in source] * len(found)
