"""What is known of agents by their names: when they ask for permission, what they take.

Measured with the real agents. The name counts, also if ``CLAWDFORGE_AGENTS`` has another command
for it; an entry there may say ``asks_in`` itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from ..config import UNKNOWN, AgentCommand

APPROVE_ALL = "approve-all"


@dataclasses.dataclass(frozen=True, slots=True)
class AgentTraits:
    """What is known of an agent.

    Attributes:
        asks_in: the mode in which it asks before it writes or runs anything; None: it never asks;
            :data:`UNKNOWN`: it was not measured.
        also_asks_in: other modes in which it does not act without asking.
        asks_by: variables that make it ask, for an agent that goes by its configuration: names to
            the JSON objects that theirs are merged with.
        takes_system: it takes a system prompt when its session is made.
        takes_any_model: it may know more models than it lists.
    """

    asks_in: str | None = UNKNOWN
    also_asks_in: frozenset[str] = frozenset()
    asks_by: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    takes_system: bool = False
    takes_any_model: bool = False

    @property
    def never_asks(self) -> bool:
        return self.asks_in is None

    @property
    def asking_mode(self) -> str | None:
        """The mode that a session with a permission policy needs, if one is known."""
        return self.asks_in or None

    def asks(self, mode: str | None, permission: str) -> bool | None:
        """Whether it asks in that mode (None: it says none); None if that is not known.

        Args:
            permission: the session's, for which it was started.
        """
        if self.asks_in is None:
            return False
        if self.asks_in == UNKNOWN:
            return True if self.asks_by and permission != APPROVE_ALL else None
        return mode == self.asks_in or mode in self.also_asks_in


KNOWN: Mapping[str, AgentTraits] = {
    "claude": AgentTraits(
        "default", frozenset({"plan"}), takes_system=True, takes_any_model=True
    ),  # 0.101 begins in `auto`, which does not ask
    "codex": AgentTraits("read-only"),  # 2.6 begins in `agent`
    "demo": AgentTraits("ask", frozenset({"plan"}), takes_system=True),
    "fast-agent": AgentTraits(None),
    "gemini": AgentTraits("default", frozenset({"plan"})),
    "opencode": AgentTraits(asks_by={"OPENCODE_PERMISSION": {"edit": "ask", "bash": "ask"}}),
    "pi": AgentTraits(None),
    "qwen": AgentTraits("default", frozenset({"plan"})),  # 0.24 begins in `auto`
}


def traits_of(name: str, commands: Mapping[str, AgentCommand]) -> AgentTraits:
    """What is known of the agent of that name; *commands* are the server's own."""
    known = KNOWN.get(name, AgentTraits())
    command = commands.get(name)
    if command is None or command.asks_in == UNKNOWN:
        return known
    return dataclasses.replace(known, asks_in=command.asks_in, also_asks_in=frozenset(), asks_by={})


def asking_environ(
    traits: AgentTraits, permission: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables that make an agent ask, in a session with that permission.

    Args:
        environ: what it gets otherwise; what the operator has denied there stays denied.
    """
    if permission == APPROVE_ALL:
        return {}
    return {
        name: json.dumps({**_object(environ.get(name)), **values, **_denied(environ.get(name))})
        for name, values in traits.asks_by.items()
    }


def _object(text: str | None) -> dict[str, object]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _denied(text: str | None) -> dict[str, object]:
    return {name: value for name, value in _object(text).items() if value == "deny"}
