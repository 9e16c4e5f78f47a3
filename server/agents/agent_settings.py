"""The settings and abilities that an agent reports, limited in size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..codec import dumps

REPORT_BYTES = 64 << 10
"""The limit, as JSON, of each field of :class:`AgentSettings`."""


def has_session_capability(capabilities: Any, name: str) -> bool:
    """Whether the ``agentCapabilities`` of an agent contain that capability for sessions."""
    sessions = capabilities.get("sessionCapabilities") if isinstance(capabilities, dict) else None
    return isinstance(sessions, dict) and sessions.get(name) is not None


def can_load(capabilities: Mapping[str, Any]) -> bool:
    """Whether an agent with those ``agentCapabilities`` can load a conversation."""
    return bool(capabilities.get("loadSession")) or has_session_capability(capabilities, "resume")


def bounded(value: Any, limit: int = REPORT_BYTES) -> Any:
    """Shorten *value*, which an agent wrote, to *limit* bytes as JSON.

    Returns:
        The first items of a long list or object; None for any other value that is too long.
    """
    try:
        size = len(dumps(value))
    except (TypeError, ValueError, RecursionError):  # nested too deeply
        return None
    if size <= limit:
        return value
    left = limit - 2
    if isinstance(value, list):
        items: list[Any] = []
        for item in value:
            left -= len(dumps(item)) + 1
            if left < 0:
                break
            items.append(item)
        return items
    if not isinstance(value, dict):
        return None
    fields: dict[str, Any] = {}
    for name, field in value.items():
        left -= len(dumps(name)) + 2
        if left < 4:
            break
        fields[name] = bounded(field, left)
        left -= len(dumps(fields[name]))
    return fields


MAX_OPTIONS = 64
"""The number of an agent's config options that are kept."""
CHOICES = {"modes": "availableModes", "models": "availableModels"}


def bounded_offer(offer: Any, key: str, limit: int = REPORT_BYTES) -> Any:
    """Shorten *offer* to *limit* bytes as JSON, and mark it as shortened.

    Its list of choices, under *key*, is cut first.
    """
    kept = bounded(offer, limit)
    if not isinstance(offer, dict) or kept in (offer, None):
        return kept
    rest = bounded({name: value for name, value in offer.items() if name != key}, limit // 2)
    meta = rest.get("_meta")
    mark = {"clawdforge": {"shortened": True}}
    rest["_meta"] = {**meta, **mark} if isinstance(meta, dict) else mark
    choices = bounded(offer.get(key), limit // 2 - 100)
    return {**rest, key: choices if isinstance(choices, list) else []}


def is_shortened(offer: Any) -> bool:
    """Whether :func:`bounded_offer` has cut *offer* short."""
    meta = offer.get("_meta") if isinstance(offer, dict) else None
    own = meta.get("clawdforge") if isinstance(meta, dict) else None
    return isinstance(own, dict) and own.get("shortened") is True


def bounded_options(options: Any, limit: int = REPORT_BYTES) -> Any:
    """Shorten config options to *limit* bytes as JSON; the long ones are cut."""
    if not isinstance(options, list) or bounded(options, limit) == options:
        return bounded(options, limit)
    counted = options[:MAX_OPTIONS]
    kept = [bounded_offer(option, "options", limit // len(counted) - 1) for option in counted]
    left = limit - len(dumps(kept))
    for n, option in enumerate(counted):  # the bytes that the short ones did not use
        longer = bounded_offer(option, "options", left + len(dumps(kept[n])))
        left += len(dumps(kept[n])) - len(dumps(longer))
        kept[n] = longer
    return kept


REPORTED = ("modes", "models", "config_options", "commands", "steering")


class AgentSettings(msgspec.Struct, frozen=True):
    """The settings and abilities that an agent reported last, in ACP's shapes.

    A field is None if the agent has not reported it.

    Attributes:
        steering: whether the agent accepts a prompt for the turn that it is working on.
    """

    capabilities: Any = None
    modes: Any = None
    models: Any = None
    config_options: Any = None
    commands: Any = None
    auth_methods: Any = None
    steering: Any = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name in CHOICES:
                value = bounded_offer(value, CHOICES[name])
            elif name == "config_options":
                value = bounded_options(value)
            else:
                value = bounded(value)
            msgspec.structs.force_setattr(self, name, value)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> AgentSettings:
        """Restore settings from the result of :meth:`to_dict`."""
        return cls(**{name: stored.get(name) for name in REPORTED})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that clients see and the database keeps."""
        return {name: getattr(self, name) for name in REPORTED}


NO_SETTINGS = AgentSettings()
