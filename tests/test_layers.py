"""The house's rooms: who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .harness import ROOT

SERVER = ROOT / "server"

# A module imports only modules of lower levels. A new module gets its line here.
LEVELS = {
    "": 0,  # the package itself: its version
    "config": 0,
    "errors": 0,
    "codec": 0,
    "escapes": 0,
    "tasks": 0,
    "origins": 0,
    "beneath": 0,
    "words": 0,
    "acp": 0,
    "acp.rpc": 1,
    "acp.messages": 2,
    "acp.fit": 3,
    "acp.story": 3,
    "acp.attachment": 4,
    "acp.connection": 6,
    "frames": 1,
    "incoming": 2,
    "limits": 1,
    "logs": 1,
    "metrics": 1,
    "schema": 0,
    "store": 1,
    "tcp": 1,
    "agents": 0,
    "agents.acpx": 1,
    "agents.acpx_commands": 1,
    "agents.attach": 1,
    "agents.base": 1,
    "agents.cli": 1,
    "agents.cli_agent": 1,
    "agents.demo": 1,
    "agents.demo_script": 1,
    "agents.environ": 1,
    "agents.agent_errors": 1,
    "agents.host": 1,
    "agents.host_agent": 1,
    "agents.host_process": 1,
    "agents.last_words": 0,
    "agents.launch": 1,
    "agents.programs": 1,
    "agents.spawn": 1,
    "agents.processes": 1,
    "agents.outline": 1,
    "agents.seam": 1,
    "agents.settings": 1,
    "agents.stderr": 1,
    "agents.supervise": 1,
    "agents.traits": 1,
    "agents.transcript": 1,
    "failures": 2,
    "file_names": 1,
    "log": 2,
    "negotiation": 1,
    "upgrade": 2,
    "session_settings": 2,
    "turn": 2,
    "permissions": 3,
    "prewarmed": 3,
    "session": 3,
    "files": 3,
    "live_agents": 4,
    "runs": 0,
    "runs.answers": 1,
    "runs.places": 2,
    "runs.run": 2,
    "runs.outcome": 2,
    "runs.claude": 4,
    "runs.turn": 4,
    "runner": 5,
    "sessions": 4,
    "auth": 5,
    "bodies": 5,
    "control": 5,
    "health": 5,
    "peer": 5,
    "shapes": 5,
    "replies": 5,
    "sse": 6,
    "viewer": 6,
    "door": 6,
    "sockets": 6,
    "operations": 6,
    "services": 7,
    "openapi": 7,
    "routes": 0,
    "routes.acp": 8,
    "routes.admin": 8,
    "routes.docs": 8,
    "routes.files": 8,
    "routes.health": 8,
    "routes.page": 8,
    "routes.run": 8,
    "routes.sessions": 8,
    "routes.socket": 8,
    "middleware": 8,
    "app": 9,
    "commands": 0,
    "commands.house": 10,
    "commands.backup": 11,
    "commands.doctor": 11,
    "commands.sessions": 11,
    "commands.tokens": 11,
    "__main__": 12,
}

# The only neighbours of one level that know each other: the demo and its words, and an agent's
# way through acpx. No route knows another.
SIBLINGS = {
    "config": {"origins"},
    "agents.demo": {"agents.demo_script"},
    "agents.demo_script": {"agents.demo"},
    "agents.acpx": {"agents.base"},
    "agents.base": {"agents.traits"},
    "agents.settings": {"agents.base"},
    "agents.acpx_commands": {
        *("agents.base", "agents.agent_errors", "agents.processes", "agents.programs"),
    },
    "agents.cli": {
        *("agents.acpx", "agents.acpx_commands", "agents.base", "agents.cli_agent"),
        "agents.traits",
    },
    "agents.cli_agent": {
        *("agents.acpx_commands", "agents.base", "agents.agent_errors", "agents.programs"),
        *("agents.seam", "agents.settings", "agents.transcript"),
    },
    "agents.seam": {"agents.base", "agents.outline", "agents.processes", "agents.settings"},
    "agents.processes": {"agents.supervise"},
    "agents.programs": {"agents.processes"},
    "agents.attach": {
        *("agents.base", "agents.processes", "agents.seam", "agents.stderr"),
        "agents.traits",
    },
    "agents.host_process": {"agents.acpx", "agents.base", "agents.processes", "agents.seam"},
    "agents.host_agent": {
        *("agents.base", "agents.agent_errors", "agents.processes", "agents.seam"),
        *("agents.attach", "agents.host_process", "agents.outline", "agents.settings"),
    },
    "agents.host": {
        *("agents.acpx", "agents.attach", "agents.base", "agents.stderr"),
        *("agents.host_agent", "agents.host_process", "agents.traits"),
    },
    "agents.spawn": {"agents.supervise"},
    "turn": {"session_settings"},
    "session": {"permissions", "prewarmed"},
    "peer": {"bodies"},
    "sessions": {"live_agents"},
}

# Run as programs of their own, before or beside the server: they need nothing but Python.
ALONE = {"agents.launch", "agents.spawn", "agents.supervise", "agents.demo", "agents.demo_script"}

AIOHTTP_LEVEL = 5
ONLY_IN = {"orjson": {"codec"}, "aiosqlite": {"store"}}


def name_of(path: Path) -> str:
    """A file's module name below ``server``: ``agents.seam``; ``""`` is the package."""
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


def test_every_module_has_a_level() -> None:
    names = set(modules())
    new, gone = sorted(names - LEVELS.keys()), sorted(LEVELS.keys() - names)
    assert not new, f"give {new} a level in LEVELS, above all that they import"
    assert not gone, f"these are no more, take them out of LEVELS: {gone}"


def test_a_module_imports_only_lower_levels() -> None:
    wrong = []
    for name, found in graph().items():
        for line, imported, _ in found:
            other = ours(imported)
            if other is None or other in SIBLINGS.get(name, ()):
                continue
            if LEVELS.get(other, 0) >= LEVELS.get(name, 99) and other != name:
                wrong.append(
                    f"{where(name, line)}: {name} (level {LEVELS[name]}) imports"
                    f" {other or 'the package'} (level {LEVELS[other]})"
                )
    assert not wrong, "\n".join(wrong)


def test_neighbours_that_may_know_each_other_do() -> None:
    found = {name: {ours(imported) for _, imported, _ in of} for name, of in graph().items()}
    unused = {
        name: others - found[name] for name, others in SIBLINGS.items() if others - found[name]
    }
    assert not unused, f"no longer needed in SIBLINGS: {unused}"


def test_nothing_imports_in_a_circle() -> None:
    edges = {
        name: {ours(imported) for _, imported, for_types in found if not for_types} - {None, ""}
        for name, found in graph().items()
    }
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_aiohttp_is_known_from_level_five_up() -> None:
    wrong = [
        f"{where(name, line)}: {name} (level {LEVELS[name]}) imports {imported}"
        for name, found in graph().items()
        for line, imported, _ in found
        if is_in(imported, "aiohttp") and LEVELS.get(name, 99) < AIOHTTP_LEVEL
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_with_one_home_is_imported_only_there(library: str) -> None:
    users = {
        name
        for name, found in graph().items()
        for _, imported, _ in found
        if is_in(imported, library)
    }
    assert users == ONLY_IN[library]


@pytest.mark.parametrize("name", sorted(ALONE))
def test_a_program_of_its_own_needs_nothing_but_python(name: str) -> None:
    imported = {imported for _, imported, for_types in graph()[name] if not for_types}
    beside = {other.rpartition(".")[2] for other in ALONE}  # found by its folder, not its package
    foreign = {
        other for other in imported if other.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign <= beside


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import orjson", "", ["orjson"]),
        ("from . import log, __version__", "", ["server.log", "server"]),
        ("from .log import LogWriter", "", ["server.log"]),
        ("from ..log import LogWriter", "routes", ["server.log"]),
        ("from .seam import Lines", "agents", ["server.agents.seam"]),
        ("from server.agents import seam", "", ["server.agents.seam"]),
        ("def f():\n    import aiosqlite", "", ["aiosqlite"]),
        ("if TYPE_CHECKING:\n    from .log import SessionLog", "", ["server.log"]),
    ],
)
def test_imports_are_read_as_python_reads_them(source: str, package: str, found: list[str]) -> None:
    known = {"log", "agents", "agents.seam", "routes"}
    read = list(imports_of(source, package, known))
    assert [one.name for one in read] == found
    assert [one.for_types for one in read] == ["TYPE_CHECKING" in source] * len(found)
