"""Functions on ACP content blocks and on text."""

from __future__ import annotations

import re
from itertools import groupby

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rpc import Json


def text_of(content: list[Json]) -> str:
    return "\n".join(block["text"] for block in content if block["type"] == "text").strip()


def split_attached(text: str) -> tuple[list[str], str]:
    """Split off the header `[Attached files]` and the absolute paths below it."""
    first, _, rest = text.partition("\n")
    if first.strip() != "[Attached files]":
        return [], text
    lines = rest.split("\n")
    count = 0
    while count < len(lines) and re.match(r"/.*/", lines[count]):  # `/help` is a command
        count += 1
    return lines[:count], "\n".join(lines[count:]).strip()


def title_of(prompt: list[Json]) -> str:
    return shorten(split_attached(text_of(prompt))[1], 60) or "Attachment"


def shorten(text: str, length: int = 80) -> str:
    """The first line, truncated to `length` characters."""
    line = (text.splitlines() or [""])[0].strip()
    return line if len(line) <= length else line[: length - 1] + "…"


def describe_block(block: Json) -> str:
    """One line that describes a content block."""

    def size(base64: str) -> str:
        return f"{len(base64) * 3 // 4 - base64[-2:].count('=')} bytes"

    kind = block["type"]
    if kind == "text":
        return str(block["text"])[:10_000] + "…"
    if kind in ("image", "audio"):
        return f"{kind}: `{block['mimeType']}`, {size(block['data'])}"
    if kind == "resource_link":
        return f"resource link: `{block['uri']}` ({block['name']})"
    resource = block["resource"]
    if "text" not in resource:
        return f"resource: `{resource['uri']}`, {size(resource['blob'])}"
    text = resource["text"]
    return f"resource: `{resource['uri']}`, {len(text)} characters, begins `{shorten(text)}`"


def count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def merge_chunks(chunks: list[Json]) -> list[Json]:
    """Merge adjacent text blocks."""
    content: list[Json] = []
    for kind, blocks in groupby(chunks, key=lambda block: block["type"]):
        if kind == "text":
            content.append({"type": "text", "text": "".join(block["text"] for block in blocks)})
        else:
            content.extend(blocks)
    return content
