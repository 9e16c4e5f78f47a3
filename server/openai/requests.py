"""Requests of OpenAI's chat API, as prompts for an agent."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from ..errors import bad_request
from ..sessions.content import check_content

MAX_MESSAGES = 10_000
_DATA_URL = re.compile(r"data:([^;,]+)(?:;[^;,]+)*;base64,(.*)\Z", re.DOTALL | re.IGNORECASE)
_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool", "function": "Tool"}
_SYSTEM_ROLES = ("system", "developer")


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, frozen=True):
    """A request for a completion. Options of models that agents do not have are ignored."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=1)] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class ChatPrompt(msgspec.Struct, frozen=True):
    """A request's messages as an agent receives them.

    Attributes:
        system: the system prompt; None if there is none.
        prompt: ACP content blocks.
    """

    system: str | None
    prompt: list[dict[str, Any]]


def check_format(request: ChatRequest) -> None:
    """Refuse a format of the answer that an agent cannot be held to.

    Raises:
        Error: ``bad_request``.
    """
    kind = (request.response_format or {}).get("type", "text")
    if kind != "text":
        raise bad_request("response_format: only text; POST /run has results with a schema")


def named_session(request: ChatRequest) -> str:
    """The id of the session that the body names; empty for a new one.

    Raises:
        Error: ``bad_request``.
    """
    named = (request.metadata or {}).get("session_id")
    if named is not None and not isinstance(named, str):
        raise bad_request("metadata.session_id: must be text")
    return named or ""


def conversation_of(request: ChatRequest) -> ChatPrompt:
    """All messages of a request, as the prompt of a new conversation.

    A single message of the user is the prompt, unchanged. Otherwise the earlier messages come first
    as text, each with its speaker.

    Raises:
        Error: ``bad_request``.
    """
    system = [
        _spoken_text(message) for message in request.messages if message.role in _SYSTEM_ROLES
    ]
    spoken = [message for message in request.messages if message.role not in _SYSTEM_ROLES]
    if not spoken:
        raise bad_request("messages: a message of the user is needed")
    blocks: list[dict[str, Any]] = []
    if len(spoken) > 1:
        lines = [f"{_SPEAKERS[message.role]}: {_spoken_text(message)}" for message in spoken[:-1]]
        text = "The conversation so far:\n\n" + "\n\n".join(lines)
        blocks.append({"type": "text", "text": f"{text}\n\nThe last message:\n\n"})
        blocks += [
            block for message in spoken[:-1] for block in _blocks(message) if _is_file(block)
        ]
    blocks += _blocks(spoken[-1])
    return ChatPrompt("\n\n".join(filter(None, system)) or None, check_content(blocks))


def last_prompt(request: ChatRequest) -> list[dict[str, Any]]:
    """The last message of a request, as a prompt of a session that knows the earlier ones.

    Raises:
        Error: ``bad_request``.
    """
    return check_content(_blocks(request.messages[-1]))


def _spoken_text(message: ChatMessage) -> str:
    """The text of a message; a label stands for anything else."""
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(
        str(part["text"]) if isinstance(part.get("text"), str) else f"[{part.get('type')}]"
        for part in message.content
    )


def _blocks(message: ChatMessage) -> list[dict[str, Any]]:
    if message.content is None or isinstance(message.content, str):
        return [{"type": "text", "text": message.content or ""}]
    return [_block(part) for part in message.content]


def _is_file(block: dict[str, Any]) -> bool:
    return bool(block["type"] != "text")


def _block(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a message as an ACP content block.

    Raises:
        Error: ``bad_request``.
    """
    try:
        match part.get("type"):
            case "text" | "refusal" as kind:
                return {"type": "text", "text": str(part[kind])}
            case "image_url":
                link = part["image_url"]
                return _image(link["url"] if isinstance(link, dict) else link)
            case "input_audio":
                audio = part["input_audio"]
                kind = f"audio/{audio['format']}"
                return {"type": "audio", "data": audio["data"], "mimeType": kind}
            case "file":
                return _file(part["file"])
    except (KeyError, TypeError):
        pass
    raise bad_request(
        "messages: a part must be text, image_url, input_audio or file, with its data"
    )


def _image(url: str) -> dict[str, Any]:
    if (match := _DATA_URL.match(url)) is not None:
        return {"type": "image", "data": match[2], "mimeType": match[1].lower()}
    return {"type": "resource_link", "uri": url, "name": url.rpartition("/")[2] or url}


def _file(file: dict[str, Any]) -> dict[str, Any]:
    match = _DATA_URL.match(file["file_data"])
    if match is None:
        raise bad_request("messages: file_data must be a data: URL in base64")
    name = str(file.get("filename") or "file")
    contents = {"uri": f"file:///{name}", "blob": match[2], "mimeType": match[1].lower()}
    return {"type": "resource", "resource": contents}
