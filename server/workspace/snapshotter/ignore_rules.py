"""The rules of ``.gitignore`` files: which untracked files a snapshot leaves out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

MAX_FILE_BYTES = 256 << 10
MAX_RULES = 2000
MAX_OPEN_SEGMENTS = 4
"""The ``**`` of a pattern. Each multiplies the time of a comparison."""
DEFAULTS = """\
node_modules/
.venv/
__pycache__/
.mypy_cache/
.pytest_cache/
.ruff_cache/
.tox/
.DS_Store
.clawdforge-*.tmp
"""
"""Folders that programs fill by themselves. A rule of the workspace may include them again."""


class Rule(NamedTuple):
    """One line of a ``.gitignore`` file.

    Attributes:
        segments: a pattern for each name of a path; None stands for any number of names.
        by_name: whether the pattern is compared with the name alone, not with the path.
    """

    segments: tuple[re.Pattern[str] | None, ...]
    is_exception: bool
    only_folders: bool
    by_name: bool


class RuleFile:
    """The rules of one ``.gitignore`` file.

    Args:
        prefix: the path of its folder with a slash at the end; empty for the top folder.
    """

    def __init__(self, text: str, prefix: str) -> None:
        self._prefix = len(prefix)
        rules = [rule for line in text.splitlines() if (rule := parse_rule(line)) is not None]
        self._rules = rules[-MAX_RULES:][::-1]

    def verdict(self, path: str, name: str, *, is_folder: bool) -> bool | None:
        """Whether a path is ignored; None if no rule names it. The last rule decides."""
        names: Sequence[str] = ()
        for rule in self._rules:
            if rule.only_folders and not is_folder:
                continue
            if rule.by_name:
                pattern = rule.segments[0]
                is_match = pattern is None or pattern.match(name) is not None
            else:
                names = names or path[self._prefix :].split("/")
                is_match = _segments_match(rule.segments, names)
            if is_match:
                return not rule.is_exception
        return None


class IgnoreRules:
    """The rules that apply in one folder: those of its parents, then its own."""

    def __init__(self, files: tuple[RuleFile, ...] = ()) -> None:
        self._files = files or (RuleFile(DEFAULTS, ""),)

    def with_file(self, text: str, prefix: str) -> IgnoreRules:
        return IgnoreRules((*self._files, RuleFile(text, prefix)))

    def ignores(self, path: str, name: str, *, is_folder: bool) -> bool:
        """Whether an untracked file or folder is left out."""
        for file in reversed(self._files):
            verdict = file.verdict(path, name, is_folder=is_folder)
            if verdict is not None:
                return verdict
        return False


def parse_rule(line: str) -> Rule | None:
    """Parse a line; None for a comment, an empty line or a malformed pattern."""
    line = re.sub(r"(?<!\\)[ \t]+$", "", line.rstrip("\r\n"))
    if line.startswith("#"):
        return None
    is_exception = line.startswith("!")
    pattern = line[1:] if is_exception else line
    only_folders = pattern.endswith("/")
    pattern = pattern.rstrip("/")
    by_name = "/" not in pattern
    names = [name for name in pattern.split("/") if name]
    if not names or names.count("**") > MAX_OPEN_SEGMENTS:
        return None
    try:
        segments = tuple(None if name == "**" else _compile(name) for name in names)
    except (re.error, RecursionError, OverflowError):
        return None
    return Rule(segments, is_exception, only_folders, by_name)


def _segments_match(segments: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    if not segments:
        return not names
    first, rest = segments[0], segments[1:]
    if first is None:
        if not rest:
            return bool(names)
        return any(_segments_match(rest, names[start:]) for start in range(len(names)))
    return bool(names) and first.match(names[0]) is not None and _segments_match(rest, names[1:])


def _compile(pattern: str) -> re.Pattern[str]:
    """Compile the pattern of one name. Its matching time is linear.

    A star takes as little as the piece after it allows, and does not try again: ``(?>...)``.
    """
    pieces = [""]
    position = 0
    while position < len(pattern):
        if pattern[position] == "*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append("")
            position += 1
        else:
            translated, position = _translate_character(pattern, position)
            pieces[-1] += translated
    first, *middle = pieces
    last = f".*{middle.pop()}" if middle else ""
    inner = "".join(f"(?>.*?{piece})" for piece in middle)
    return re.compile(f"(?s:{first}{inner}{last})\\Z")


def _translate_character(pattern: str, position: int) -> tuple[str, int]:
    """Translate one character or bracket expression. Return it and the position after it."""
    character = pattern[position]
    if character == "?":
        return ".", position + 1
    if character == "\\" and position + 1 < len(pattern):
        return re.escape(pattern[position + 1]), position + 2
    if character == "[":
        is_negated = pattern[position + 1 : position + 2] in ("!", "^")
        start = position + 1 + is_negated
        end = pattern.find("]", start + 1)
        if end > 0:
            members = re.sub(r"([\\\[&~|^])", r"\\\1", pattern[start:end])
            return f"[{'^' if is_negated else ''}{members}]", end + 1
    return re.escape(character), position + 1
