"""Generates the lists of settings in the docs: ``python -m tests.support.settings_pages``.

Names, defaults and ranges come from the code. People write the descriptions: in full in
``docs/reference/settings.md``, briefly in the README. ``.env.example`` combines both. ``make docs``
writes all three files, and a test checks that they are up to date.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server import config
from server.config import PREFIX, Settings

from .harness import ROOT

README, EXAMPLE = ROOT / "README.md", ROOT / ".env.example"
PAGE = ROOT / "docs" / "reference" / "settings.md"
ROW = re.compile(rf"^\| `({PREFIX}\w+)` \|.*\|$", re.MULTILINE)
ROWS = re.compile(rf"(?:^\| `{PREFIX}\w+` \|.*\|\n)+", re.MULTILINE)
OF_COMPOSE = "# For compose.yml alone"


def default_of(name: str) -> str:
    """A setting's default, as a user would write it; empty for none."""
    value: Any = getattr(Settings(), name.removeprefix(PREFIX).lower())
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, Path):
        return f"./{value.name}"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def values_of(name: str) -> str | None:
    """The accepted values, from the error for an invalid value; None for free text."""
    try:
        config.load({name: "\0"})
    except config.SettingError as error:
        if bounds := re.search(r"from (\S+ to \S+)$", str(error)):
            return bounds[1]
        if choices := re.search(r"one of (.*)", str(error)):
            return ", ".join(f"`{choice}`" for choice in choices[1].split(", "))
    return None


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r" \|(?= )", row.strip("|"))]


def shown(name: str) -> str:
    default = default_of(name)
    return f"`{default}`" if default else "none"


def words(text: str) -> dict[str, str]:
    """The descriptions of all settings on a page.

    Raises:
        LookupError: a setting has no row, or a row has no setting.
    """
    found = {row[1]: cells(row[0])[-1] for row in ROW.finditer(text)}
    if odd := set(found) ^ set(config.variables()):
        raise LookupError(f"settings without a row, or rows without a setting: {sorted(odd)}")
    return found


def readme(text: str) -> str:
    said = words(text)
    rows = "".join(f"| `{n}` | {shown(n)} | {said[n]} |\n" for n in config.variables())
    return ROWS.sub(lambda _: rows, text)


def page(text: str) -> str:
    words(text)

    def row(match: re.Match[str]) -> str:
        name, (_, _, values, about) = match[1], cells(match[0])
        return f"| `{name}` | {shown(name)} | {values_of(name) or values} | {about} |"

    return ROW.sub(row, text)


def example(text: str) -> str:
    """The head and the part for compose.yml are kept; the part between them is generated."""
    head = text.partition("\n\n")[0]
    tail = text[text.index(OF_COMPOSE) :]
    short = words(README.read_text("utf-8"))
    parts = [head]
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]:
        lines = [f"# {section.partition(chr(10))[0]}"]
        for name in (row[1] for row in ROW.finditer(section)):
            lines += [f"# {short[name].replace('`', '')}", f"#{name}={default_of(name)}"]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, tail])


PAGES: dict[Path, Callable[[str], str]] = {README: readme, PAGE: page, EXAMPLE: example}
"""The generated files, and the functions that update their text."""


def main() -> None:
    for path, make in PAGES.items():
        path.write_text(make(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
