"""Checks the documentation against the code: settings, frames, codes, links, make targets."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from server import config, errors
from server.app import build_app
from server.config import PREFIX, Settings
from server.connect.target import TOKEN_VARIABLE, URL_VARIABLE
from server.sessions.content import check_content
from server.ws import protocol

from ..support import settings_pages
from ..support.harness import ROOT
from .test_layers import LAYERS, modules

DOCS = ROOT / "docs"
PROTOCOL = (DOCS / "reference" / "protocol.md").read_text("utf-8")


def markdown_files() -> list[Path]:
    """The pages that are tracked, or would be with `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    return [path for name in listed if name and (path := ROOT / name.decode()).is_file()]


PAGES = markdown_files()


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """The cells of every table row."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def section(heading: str) -> str:
    """A section of protocol.md."""
    _, found, rest = PROTOCOL.partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


# Settings.


@pytest.mark.parametrize("path", settings_pages.PAGES, ids=page_id)
def test_lists_of_settings_match_the_code(path: Path) -> None:
    text = path.read_text("utf-8")
    assert settings_pages.PAGES[path](text) == text, "run `make docs`"


def test_wrong_row_is_repaired_and_missing_row_is_an_error() -> None:
    text = settings_pages.PAGE.read_text("utf-8")
    wrong = text.replace("| `8800` | 0 to 65535 |", "| `80` | any |")
    assert wrong != text == settings_pages.page(wrong)
    with pytest.raises(LookupError, match="CLAWDFORGE_PORT"):
        settings_pages.page(text.replace("| `CLAWDFORGE_PORT` |", "| `CLAWDFORGE_DOOR` |"))


def test_env_example_shows_the_defaults(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    assert not re.search(rf"^{PREFIX}", text, re.MULTILINE)
    lines = re.findall(rf"^#({PREFIX}\w+=.*\n)", text, re.MULTILINE)
    assert len(lines) == len(config.variables())
    uncommented = tmp_path / ".env"
    uncommented.write_text("".join(lines), "utf-8")
    assert config.load(config.with_env_file({}, uncommented)) == Settings()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_pages_name_only_existing_settings(path: Path) -> None:
    of_the_tests = {"CLAWDFORGE_TEST_REQUIRE_ALL"}
    of_connect = {TOKEN_VARIABLE, URL_VARIABLE}
    of_the_example = {"CLAWDFORGE_MAX_PROMPT_BYTES"}  # docs/howto/add-a-setting.md
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", path.read_text("utf-8")))
    assert named <= {*config.variables(), *of_the_tests, *of_connect, *of_the_example}


FACTORS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "day": 86400}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_defaults_that_pages_give_are_those_of_the_code(path: Path) -> None:
    """`NAME` 16 MiB, `NAME` (10) and 10 s (`NAME`)"""
    text, settings = path.read_text("utf-8"), Settings()
    figure = r"(?P<value>\d[\d,]*)(?: (?P<unit>KiB|MiB|GiB|day|s)\b)?"
    name = rf"`{PREFIX}(?P<name>[A-Z_]+)`"
    for pattern in (rf"{name} \(?{figure}", rf"{figure} \({name}\)"):
        for match in re.finditer(pattern, text):
            default = getattr(settings, match["name"].lower(), None)
            value = int(match["value"].replace(",", "")) * FACTORS.get(match["unit"], 1)
            assert default in (None, value), match[0]


def test_systemd_unit_allows_enough_time_to_stop() -> None:
    unit = (DOCS / "howto" / "operations.md").read_text("utf-8")
    assert "\nKillMode=mixed\n" in unit, (
        "systemd would signal the agents and end their turns at once"
    )
    limit = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert limit
    assert int(limit[1]) > 2 * Settings().drain_secs + 5, "time for turns, runs and open sockets"


# The wire.


def up_types() -> set[str]:
    commands = get_args(protocol.AppCommand)
    return {str(msgspec.inspect.type_info(command).tag) for command in commands}  # type: ignore[attr-defined]


@functools.cache
def down_types() -> set[str]:
    """The types of the frames that the code creates, read from its calls."""
    found = set()
    for path in modules().values():
        source = path.read_text("utf-8")
        if not re.search(r"\bframe\(|log\.append\(", source):
            continue  # parsing all modules takes a second
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            called, kind = ast.unparse(node.func), node.args[0]
            if re.fullmatch(r"(protocol\.)?frame|.*\b_?log\.append", called):
                assert isinstance(kind, ast.Constant), f"{path}:{node.lineno}"
                found.add(str(kind.value))
    return found


def examples(text: str) -> list[dict[str, Any]]:
    """The JSON blocks of a text."""
    blocks = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [json.loads(block) for block in blocks]


def explained(text: str) -> set[str]:
    """The frame types that a section explains: `**`name`**`."""
    return set(re.findall(r"\*\*`(\w+)`\*\*", text))


def test_frame_types_are_read_from_the_code() -> None:
    assert {"turn_start", "event", "ready", "bye"} <= down_types()
    assert {"auth", "prompt", "set_mode"} <= up_types()


def test_down_frames_of_the_page_are_those_of_the_code() -> None:
    text = section("Down: log entries") + section("Down: other frames")
    assert explained(text) == down_types()
    assert {example["type"] for example in examples(text)} == down_types()


def test_golden_down_frames_are_those_of_the_code() -> None:
    lines = (ROOT / "tests/golden/down.ndjson").read_text("utf-8").splitlines()
    assert {json.loads(line)["type"] for line in lines} == down_types()


def test_only_log_entries_have_a_sequence_number() -> None:
    for heading, numbered in (("Down: log entries", True), ("Down: other frames", False)):
        for example in examples(section(heading)):
            assert ("seq" in example) is numbered, example
            assert ({"seq", "ts", "turn_index"} <= example.keys()) is numbered, example


def test_up_frames_of_the_page_are_those_of_the_code() -> None:
    assert explained(section("Up")) == up_types()
    assert {example["type"] for example in examples(section("Up"))} == up_types()


@pytest.mark.parametrize("example", examples(section("Up")), ids=lambda example: example["type"])
def test_server_parses_the_up_frames_of_the_page(example: dict[str, Any]) -> None:
    _, command = protocol.parse_addressed(json.dumps(example))
    if isinstance(command, protocol.PromptCommand):
        check_content(command.prompt)


def test_error_codes_of_the_page_are_those_of_the_code() -> None:
    table = [row for row in rows(section("Error codes")) if row[0].startswith("`")]
    shown = {code.strip("`"): (int(status), retry) for code, status, retry, _ in table}
    assert shown == {
        code: (code.status, "yes" if code.is_retryable else "no") for code in errors.ErrorCode
    }


def test_close_codes_of_the_page_are_those_of_the_code() -> None:
    table = [row for row in rows(section("Close codes")) if row[0].isdecimal()]
    assert [int(code) for code, _ in table] == sorted(errors.CloseCode)


async def test_rest_calls_of_the_page_are_those_of_the_code(tmp_path: Path) -> None:
    application = await build_app(Settings(data_dir=tmp_path))
    calls = {
        f"`{route.method} {route.resource.canonical}`"
        for route in application.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    pages = {call for call in calls if re.match(r"`GET /((docs)?`|static/|lib/)|.*/ws`$", call)}
    table = [row[0] for row in rows(section("REST")) if row[0].startswith("`")]
    assert sorted(table) == sorted(calls - pages)


def test_explained_messages_exist_in_the_code() -> None:
    sources = "".join(path.read_text("utf-8") for path in modules().values())
    # Join adjacent strings.
    said = re.sub(r"\"\s*\n?\s*f?\"", "", sources)
    page = (DOCS / "howto" / "troubleshooting.md").read_text("utf-8")
    shown = [match[1] for row in rows(page) if (match := re.match(r"`([^`]+)`", row[0]))]
    of_agents = {"Authentication required", '"context": "lost"'}
    assert len(shown) > 15
    missing = [text for text in shown if text not in said and text not in of_agents]
    assert not missing


# The pages themselves.


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text("utf-8"))):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        wanted = path.parent / name if name else path
        assert wanted.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(wanted), f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_named_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^\.PHONY: (\w+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)\b", path.read_text("utf-8"), re.MULTILINE))
    assert named <= targets


def test_glossary_has_at_most_25_words() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text("utf-8")
    glossary = page.partition("## Glossary")[2].partition("\n## ")[0]
    assert 20 < len(re.findall(r"^\| [a-z]", glossary, re.MULTILINE)) <= 26  # with the heading


def test_architecture_page_shows_the_layers_in_order() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text("utf-8")
    table = page.partition("| package of")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE) == list(LAYERS)


def test_architecture_page_names_only_existing_modules() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text("utf-8")
    table = page.partition("| package of")[2].partition("\n\n")[0]
    known = set(modules())
    missing = []
    for package, contents in re.findall(r"^\| `([\w.]+)` \| (.*) \|$", table, re.MULTILINE):
        prefix = "" if package == "root" else f"{package}."
        named = re.findall(r"`([a-z_]\w*)`", contents)
        missing += [f"{package}: {name}" for name in named if prefix + name not in known]
    assert not missing


def test_version_is_the_newest_in_the_changelog() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    package = (ROOT / "server" / "__init__.py").read_text("utf-8")
    assert newest is not None
    assert f'__version__ = "{newest[1]}"' in package
