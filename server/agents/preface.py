"""The preface of a prompt: the system prompt of an agent that has no parameter for it."""

from __future__ import annotations

from typing import Any

from .agent_settings import AgentSettings
from .base import AgentObserver, AgentSpec


def preface_of(
    blocks: Any, spec: AgentSpec, reported: AgentSettings, observer: AgentObserver
) -> str | None:
    """Return the preface to put in front of a prompt, in a conversation that has none yet.

    A command gets none; the observer then notes that the conversation still needs it.

    Args:
        blocks: the prompt's content blocks.
        reported: what the agent reported last, with its commands.
    """
    observer.needs_preface = spec.preface is not None and is_command(reported, blocks)
    return None if observer.needs_preface else spec.preface


def is_command(reported: AgentSettings, blocks: Any) -> bool:
    """Whether a prompt is one of the agent's commands, which a text before it would hide."""
    first = blocks[0] if isinstance(blocks, list) and blocks else None
    text = first.get("text") if isinstance(first, dict) else None
    if not isinstance(text, str) or not text.startswith("/"):
        return False
    name = text[1:].partition("\n")[0].partition(" ")[0]
    offered = reported.commands if isinstance(reported.commands, list) else []
    return any(isinstance(command, dict) and command.get("name") == name for command in offered)
