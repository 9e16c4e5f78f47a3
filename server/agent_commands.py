"""The agents that the operator defines: their commands, parsed from the setting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from .setting_values import parse_text

ASKS_IN_UNKNOWN = ""
"""The value of ``asks_in`` if the operator has not set it."""


class AgentCommand(msgspec.Struct, frozen=True):
    """The command of an agent.

    Attributes:
        env: variables added to its environment.
        asks_in: the mode in which it asks for permission; None if it never asks.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    asks_in: str | None = ASKS_IN_UNKNOWN


def parse_agent_commands(value: str) -> Mapping[str, AgentCommand]:
    """Parse the commands of agents, by the agents' names.

    Raises:
        ValueError: says what is accepted.
    """
    shape = 'must be a JSON object such as {"mine": ["my-agent", "--acp"]}'
    try:
        raw = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(shape) from None
    if not isinstance(raw, dict):
        raise ValueError(shape)
    return MappingProxyType(
        {parse_text(name): _parse_agent_command(name, spec) for name, spec in raw.items()}
    )


def _parse_agent_command(name: str, spec: Any) -> AgentCommand:
    entry = spec if isinstance(spec, dict) else {"argv": spec}
    argv, env, asks_in = (
        entry.get("argv"),
        entry.get("env", {}),
        entry.get("asks_in", ASKS_IN_UNKNOWN),
    )
    if not isinstance(argv, list) or not argv or not all(isinstance(a, str) and a for a in argv):
        raise ValueError(f"agent {name!r}: argv must be a list of strings that are not empty")
    if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
        raise ValueError(f"agent {name!r}: env must be an object of strings")
    if any("\0" in text for text in (*argv, *env, *env.values())):
        raise ValueError(f"agent {name!r}: a NUL character cannot be passed to a program")
    if any(not key or "=" in key for key in env):
        raise ValueError(f"agent {name!r}: env: the name of a variable has no '=' and is not empty")
    if "asks_in" in entry and asks_in is not None and not (isinstance(asks_in, str) and asks_in):
        raise ValueError(f"agent {name!r}: asks_in must be the name of a mode, or null")
    return AgentCommand(tuple(argv), MappingProxyType(dict(env)), asks_in)
