"""Checks prose and names against docs/style.md: ``python -m tests.repository.prose [PATH ...]``.

Without arguments it checks every file; with path prefixes, all files below them.

It reads docstrings, comments, strings and identifiers of Python, comments and strings of
JavaScript, and the text of Markdown and HTML. It needs only the standard library, so that
`make lint` stays fast.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

SENTENCE = r"(?:^|[.;:!?] )"
NO_QUESTION = r"(?![^.]*\?)"
PROXIES = r"(?:an?|the|your|nginx|Caddy|real)\b[\w ,]*\b(?:prox|nginx|Caddy|firewall)"

# Each pattern, with what to write instead.
PROSE = {
    rf"(?<!left )(?<!leave )(?<!leaves )(?<!fall )(?<!falls )\bbehind (?!{PROXIES})": (
        '"behind" for time or order: write "after"'
    ),
    r"\b(?:is|are|was|were|be|been|being) (?:\w+ )?told\b|\btold (?:of|that|what|so)\b": (
        'name the actor and the message: "receives", "reports", "gets"'
    ),
    r"\bas (?:many|much|long|far) as (?:(?:it|they|there|one) )?may\b": '"the limit is reached"',
    r"\b(?:all|everything) (?:that )?(?:it|they|there) may\b": '"the limit is reached"',
    r"\b(?:come|comes|came) to nothing\b": '"fails", "is rejected", "is abandoned"',
    r"\b(?:is|are|was|were) gone\b": '"disconnected", "deleted", "has ended"',
    rf"{SENTENCE}(?:[Ww]ho|[Ww]hom|[Ww]hose) [a-z]+\b{NO_QUESTION}": (
        'a clause as the subject: name the actor ("A client that ...")'
    ),
    rf"(?:^|[.;] )(?:What|Whatever) [a-z' ]+\b{NO_QUESTION}": (
        'a clause as the subject: write a noun ("The data that ...")'
    ),
    rf"{SENTENCE}Where (?:an?|the|it|there|none|no|that|nothing|nobody|one)\b{NO_QUESTION}": (
        '"Where" for a condition: write "If"'
    ),
    r"(?<!here )\b(?:is|was) no (?!longer\b|more\b)[a-z]": 'write "is not a ..."',
    r"\bfor (?:want|lack) of\b": '"because ... is missing"',
    r"\b(?:viewers?|seams?)\b": "a private word: name the socket, the subscriber, the stdio proxy",
    r"\blest\b": '"so that ... not"',
    r"\banew\b": '"again"',
    r"\bchews?\b": '"parse", "process"',
    r"\bas good as\b": '"almost"',
    r"\b(?:make|makes|made|making) room\b": '"evict", "free a slot"',
    r"\b(?:[Ss]ome|[Nn]o|[Ee]very)body else": '"another client", "no other ..."',
    r"\b[Ww]ho(?:so)?ever\b": 'name the actor ("a client that ...")',
}
DOCSTRING_START = re.compile(
    r"(?:What|Who|Whose|Whom|How|So long|So many|As many|As long|That|Where|Whatever|Whoever)\b"
)
DOCSTRING_HINT = "a docstring begins with a noun phrase or a verb"

BANNED_NAMES = frozenset(
    {"house", "door", "viewer", "viewers", "seam", "wishes", "story", "places"}
)
TCP_NAMES = frozenset({"peer", "peers"})
"""Allowed only in the modules of ``ws`` and the listener, which handle TCP connections."""

TEST_START = re.compile(r"test_(?:what|whatever|who|whose|whoever|where|how|it|of|nobody)_")
TEST_HINT = "a test is named test_<subject>_<behaviour>"

# Text that must stay as it is, with a reason.
ALLOWED: dict[str, str] = {}

MAX_PAGE_LINE = 120
PAGE_LINE_HINT = f"a line of a page has at most {MAX_PAGE_LINE} characters"

CACHE = ROOT / ".pytest_cache" / "prose"
"""The checksums of the files without findings."""
SUFFIXES = {".py", ".js", ".mjs", ".md", ".html"}


class Finding(NamedTuple):
    path: str
    line: int
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text.strip()[:90]!r}: {self.hint}"


class Text(NamedTuple):
    """One piece of prose: a docstring, a comment, a string, or a line of a page."""

    line: int
    text: str
    is_docstring: bool = False


def files(prefixes: tuple[str, ...]) -> list[str]:
    """The paths of the files to check, among those tracked or that would be with `git add`."""
    argv = ["git", "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return [
        name
        for name in names.split("\0")
        if Path(name).suffix in SUFFIXES
        and name.startswith(prefixes or "")
        and not name.startswith("tests/js/golden/")
        and name not in ("tests/repository/prose.py", "docs/style.md")
        and (ROOT / name).is_file()
    ]


def python_texts(source: str) -> Iterator[Text]:
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for statement in body:  # docstrings, and the strings that describe a constant
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value
                if isinstance(value.value, str):
                    docstrings.add(id(value))
                    yield Text(value.lineno, value.value, is_docstring=True)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
            and " " in node.value.strip()
        ):
            yield Text(node.lineno, node.value)
    yield from python_comments(source)


def python_comments(source: str) -> Iterator[Text]:
    """Comments; those on consecutive lines are one text."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("# ")
        if block and line == last + 1:
            block.append(text)
        else:
            if block:
                yield Text(first, " ".join(block))
            block, first = [text], line
        last = line
    if block:
        yield Text(first, " ".join(block))


def script_texts(source: str) -> Iterator[Text]:
    """Comments of JavaScript, and strings that contain a blank."""
    pattern = re.compile(
        r"(?<![:'\"`])//(?P<line>[^\n]*)|/\*(?P<block>.*?)\*/"
        r"|'(?P<single>[^'\n\\]* [^'\n\\]*)'|`(?P<template>[^`]* [^`]*)`"
        r'|"(?P<double>[^"\n\\]* [^"\n\\]*)"',
        re.DOTALL,
    )
    for match in pattern.finditer(source):
        text = next(part for part in match.groups() if part is not None)
        yield Text(source.count("\n", 0, match.start()) + 1, re.sub(r"\n\s*\*?", " ", text).strip())


def page_texts(source: str) -> Iterator[Text]:
    """Paragraphs of Markdown outside code; a table row and a list item are paragraphs."""
    source = re.sub(
        r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE
    )
    first, block = 1, ""
    for number, line in enumerate([*source.splitlines(), ""], 1):
        starts = not line.strip() or re.match(r"\s*(?:[-*#|<]|\d+\.) ?", line)
        if starts and block:
            yield from (Text(first, cell.strip()) for cell in block.split(" | "))
            block = ""
        if line.strip():
            first = first if block else number
            block = f"{block} {line.strip()}".strip(" |*-")
    # Code spans stay, so that sentences keep their subjects.


def html_texts(source: str) -> Iterator[Text]:
    for match in re.finditer(r">([^<>]*[a-z][^<>]* [^<>]*)<|=\"([^\"]* [^\"]*)\"", source):
        yield Text(source.count("\n", 0, match.start()) + 1, (match[1] or match[2]).strip())


def long_lines(source: str) -> Iterator[tuple[int, str]]:
    """The lines of a page that are too long. Tables, code and links may have any length."""
    is_code = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif len(line) > MAX_PAGE_LINE and not is_code and not re.match(r"[|!<]|.*https?:", line):
            yield number, line


READERS = {
    ".py": python_texts,
    ".js": script_texts,
    ".mjs": script_texts,
    ".md": page_texts,
    ".html": html_texts,
}


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """The identifiers that a Python module defines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def check_text(text: Text) -> Iterator[tuple[str, str]]:
    """Pairs of a passage and a hint, one for each rule that it breaks."""
    prose = " ".join(text.text.split())
    for passage in ALLOWED:
        prose = prose.replace(passage, "")
    if text.is_docstring and DOCSTRING_START.match(prose) and "?" not in prose[:60]:
        yield prose, DOCSTRING_HINT
    for pattern, hint in PROSE.items():
        if text.is_docstring and hint.startswith("a clause") and DOCSTRING_START.match(prose):
            continue  # reported above
        if match := re.search(pattern, prose):
            yield prose[max(0, match.start() - 20) :], hint


def check(name: str) -> Iterator[Finding]:
    path = ROOT / name
    source = path.read_text("utf-8")
    for text in READERS[path.suffix](source):
        for passage, hint in check_text(text):
            yield Finding(name, text.line, passage, hint)
    if path.suffix == ".md" and name != "CHANGELOG.md":
        for number, text_line in long_lines(source):
            yield Finding(name, number, text_line, PAGE_LINE_HINT)
    if path.suffix == ".py":
        banned = BANNED_NAMES
        if not name.startswith(("server/ws/", "server/web/listener", "tests/")):
            banned |= TCP_NAMES
        for line, identifier in names_in(source):
            if TEST_START.match(identifier):
                yield Finding(name, line, identifier, TEST_HINT)
            if found := words_of(identifier) & banned:
                yield Finding(name, line, identifier, f"{min(found)!r} is a private word")


def main(*prefixes: str) -> int:
    """Check the files, except those that were without findings when they were checked last."""
    rules = hashlib.sha256(Path(__file__).read_bytes()).digest()
    clean = set(CACHE.read_text("utf-8").split()) if CACHE.exists() else set()
    seen: set[str] = set()
    failed = False
    for name in files(prefixes):
        content = name.encode() + b"\0" + (ROOT / name).read_bytes()
        key = hashlib.sha256(rules + content).hexdigest()
        found = [] if key in clean else list(check(name))
        for finding in found:
            sys.stderr.write(f"{finding}\n")
        if not found:
            seen.add(key)
        failed = failed or bool(found)
    CACHE.parent.mkdir(exist_ok=True)
    CACHE.write_text("\n".join(seen | clean if prefixes else seen), "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
