"""The tables of ``docs/reference/acp.md`` against the schema of the installed SDK of ACP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..support.harness import ROOT

SCHEMAS = ROOT / "node_modules" / "@agentclientprotocol" / "sdk" / "schema" / "v1"
EXTENSIONS = {"_session/steering", "session/set_model"}
"""Methods of the table that the schema does not have."""

Definitions = dict[str, Any]


def definitions(name: str) -> Definitions:
    found: Definitions = json.loads((SCHEMAS / f"{name}.json").read_text("utf-8"))["$defs"]
    return found


STABLE, ALL = definitions("schema"), definitions("schema.unstable")


def methods(defs: Definitions) -> set[str]:
    return {part["x-method"] for part in defs.values() if "x-method" in part}


def updates(defs: Definitions) -> set[str]:
    return {one["properties"]["sessionUpdate"]["const"] for one in defs["SessionUpdate"]["oneOf"]}


def capabilities(defs: Definitions, name: str, prefix: str = "") -> Iterator[str]:
    """The paths of the capabilities in a type, without their containers."""
    for field, schema in defs[name].get("properties", {}).items():
        if field == "_meta":
            continue
        kinds = re.findall(r'"#/\$defs/(\w+Capabilit\w+)"', json.dumps(schema))
        inner = [path for kind in kinds for path in capabilities(defs, kind, f"{prefix}{field}.")]
        yield from inner or [prefix + field]


def tables() -> str:
    """The rows of all tables in the section about the support of ACP."""
    page = (ROOT / "docs" / "reference" / "acp.md").read_text("utf-8")
    section = page.split("## What of ACP is supported")[1]
    return "\n".join(line for line in section.splitlines() if line.startswith("| "))


def first_cells() -> list[tuple[str, bool]]:
    """The names in the first cells, each with whether it is marked as unstable."""
    cells = "\n".join(row.split(" | ")[0] for row in tables().splitlines())
    return [(name, bool(mark)) for name, mark in re.findall(r"`([^`]+)`(¹?)", cells)]


def capabilities_of_both(defs: Definitions) -> set[str]:
    kinds = ("ClientCapabilities", "AgentCapabilities")
    return {path for kind in kinds for path in capabilities(defs, kind)}


def test_acp_tables_match_the_schema_and_mark_unstable_parts() -> None:
    cells = {(name, mark) for name, mark in first_cells() if not name.startswith("_meta.")}
    expected = {
        (name, name not in names_in(STABLE))
        for names_in in (methods, updates, capabilities_of_both)
        for name in names_in(ALL)
    }
    assert cells == expected | {(name, False) for name in EXTENSIONS}
