"""ACP content blocks: the checks of a prompt before it is accepted."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..errors import bad_request
from ..validation import form, in_words

MAX_FILES = 100
"""Uploaded files of one prompt."""
BASE64 = form(r"^[A-Za-z0-9+/]+={0,2}$(?!\n)", "base64")


class _Block(msgspec.Struct, frozen=True, tag_field="type", rename="camel"):
    pass


class Text(_Block, frozen=True, tag="text"):
    text: str


class Image(_Block, frozen=True, tag="image"):
    data: Annotated[str, msgspec.Meta(pattern=BASE64)]
    mime_type: Annotated[
        str, msgspec.Meta(pattern=form(r"^image/", "a media type that begins with image/"))
    ]


class Audio(_Block, frozen=True, tag="audio"):
    data: Annotated[str, msgspec.Meta(pattern=BASE64)]
    mime_type: Annotated[
        str, msgspec.Meta(pattern=form(r"^audio/", "a media type that begins with audio/"))
    ]


class Contents(msgspec.Struct, frozen=True, rename="camel"):
    uri: str
    text: str | None = None
    blob: str | None = None
    mime_type: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.blob is None):
            raise ValueError("one of text and blob is needed")


class Resource(_Block, frozen=True, tag="resource"):
    resource: Contents


class ResourceLink(_Block, frozen=True, tag="resource_link"):
    uri: str
    name: str


ContentBlock = Text | Image | Audio | Resource | ResourceLink


def check_content(prompt: str | list[Any]) -> list[dict[str, Any]]:
    """Check a prompt and return it as ACP content blocks.

    Args:
        prompt: text, or content blocks. Blocks are returned unchanged, with any further fields.

    Raises:
        Error: ``bad_request``, with the index of the block and the name of the field.
    """
    if isinstance(prompt, str):
        prompt = [{"type": "text", "text": prompt}]
    try:
        blocks = msgspec.convert(prompt, list[ContentBlock])
    except msgspec.ValidationError as error:
        words = in_words(error)
        separator = "" if words.startswith("[") else ": "
        raise bad_request(f"prompt{separator}{words}") from None
    if not any(not isinstance(block, Text) or block.text for block in blocks):
        raise bad_request("prompt: must not be empty")
    return prompt
