"""A table of known agents: when they ask for permission, and which parameters they accept.

The values were measured with the real agents. An agent is looked up by its name, even if
``CLAWDFORGE_AGENTS`` has another command of that name. An entry there may override ``asks_in``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from ..agent_commands import ASKS_IN_UNKNOWN, AgentCommand

APPROVE_ALL = "approve-all"


class AgentTraits(msgspec.Struct, frozen=True):
    """The known behaviour of an agent.

    Attributes:
        asks_in: the mode in which the agent asks before it writes or runs anything; None: it never
            asks; :data:`ASKS_IN_UNKNOWN`: it was not measured.
        also_asks_in: other modes in which the agent does not act without asking.
        asks_by: environment variables that make the agent ask, for one that is configured by
            them: name to the JSON object that is merged into the value.
        takes_system: the agent accepts a system prompt with a new session.
        takes_claude_options: the agent takes the options of Claude's SDK in ``_meta``, and needs
            them again each time it loads its conversation.
        takes_any_model: the agent may know more models than it lists.
    """

    asks_in: str | None = ASKS_IN_UNKNOWN
    also_asks_in: frozenset[str] = frozenset()
    asks_by: Mapping[str, Mapping[str, str]] = msgspec.field(default_factory=dict)
    takes_system: bool = False
    takes_any_model: bool = False
    takes_claude_options: bool = False

    @property
    def never_asks(self) -> bool:
        return self.asks_in is None

    @property
    def asking_mode(self) -> str | None:
        """The mode that a session with a permission policy needs, if one is known."""
        return self.asks_in or None

    def asks(self, mode: str | None, permission: str) -> bool | None:
        """Whether the agent asks in that mode; None if that is unknown.

        Args:
            mode: the current mode; None if the agent reports none.
            permission: the permission policy for which the agent was started.
        """
        if self.asks_in is None:
            return False
        if self.asks_in == ASKS_IN_UNKNOWN:
            return True if self.asks_by and permission != APPROVE_ALL else None
        return mode == self.asks_in or mode in self.also_asks_in


KNOWN: Mapping[str, AgentTraits] = {
    "claude": AgentTraits(
        "default",
        frozenset({"plan"}),
        takes_system=True,
        takes_any_model=True,
        takes_claude_options=True,
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
    """The known behaviour of the agent *name*.

    Args:
        commands: the configured agents.
    """
    known = KNOWN.get(name, AgentTraits())
    command = commands.get(name)
    if command is None or command.asks_in == ASKS_IN_UNKNOWN:
        return known
    return msgspec.structs.replace(
        known, asks_in=command.asks_in, also_asks_in=frozenset(), asks_by={}
    )


def asking_environ(
    traits: AgentTraits, permission: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables that make an agent ask, in a session with that permission.

    Args:
        environ: the agent's other variables. Tools that the operator denied there stay denied.
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
