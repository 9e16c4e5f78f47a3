"""The calls of both clients, compared with each other and with their page."""

from __future__ import annotations

import inspect
import re
from typing import Any

import clawdforge_client as python

from ..support.harness import ROOT

PAGE = (ROOT / "docs" / "reference" / "clients.md").read_text("utf-8")
SOURCES = ROOT / "clients" / "javascript"
CLASSES: dict[str, tuple[type, str, str]] = {
    "": (python.Clawdforge, "client.js", "Clawdforge"),
    "webhook.": (python.Webhook, "notifications.js", "Webhook"),
    "push.": (python.Push, "notifications.js", "Push"),
    "session.": (python.Session, "session.js", "Session"),
    "files.": (python.Files, "files.js", "Files"),
    "turn.": (python.Turn, "turn.js", "Turn"),
    "watch.": (python.Watch, "watch.js", "Watch"),
    "run.": (python.BackgroundRun, "runs.js", "BackgroundRun"),
}
ONLY_PYTHON = {"files.download"}
OF_THE_CONNECTION = {"mark_accepted", "fail"}
"""Methods of a turn that are not for users."""


def python_calls(kind: type) -> set[str]:
    members: list[tuple[str, Any]] = inspect.getmembers(kind, callable)
    return {name for name, _ in members if not name.startswith("_")} - OF_THE_CONNECTION


def javascript_calls(file: str, name: str) -> set[str]:
    source = (SOURCES / file).read_text("utf-8")
    body = source.partition(f"export class {name} {{")[2].partition("\n}\n")[0]
    assert body, name
    methods = re.findall(r"^\t(?:async )?\*?([a-z]\w*)\(", body, re.MULTILINE)
    fields = re.findall(r"^\t([a-z]\w*) =\s*(?:async )?(?:\w+|\(.*\)) =>", body, re.MULTILINE)
    return {*methods, *fields} - {"constructor"}


def in_camel_case(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


def test_both_clients_have_the_same_calls() -> None:
    for prefix, (kind, file, name) in CLASSES.items():
        expected = {
            in_camel_case(call)
            for call in python_calls(kind)
            if f"{prefix}{call}" not in ONLY_PYTHON
        }
        assert javascript_calls(file, name) == expected, name


def test_page_of_the_clients_lists_all_calls() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    prefixes = {"Session": "session.", "Turn": "turn.", "Watch": "watch.", "Run": "run."}
    listed = set()
    for section in sections:
        prefix = prefixes.get(section.partition("\n")[0], "")
        for call, other in re.findall(
            r"^\| `([\w.]+)` \| (?:`([\w.]+)`)? ?\|", section, re.MULTILINE
        ):
            listed.add(call if "." in call else prefix + call)
            assert other == in_camel_case(call) or call in ONLY_PYTHON
    calls = {
        f"{prefix}{call}" for prefix, (kind, *_) in CLASSES.items() for call in python_calls(kind)
    }
    assert listed == calls
