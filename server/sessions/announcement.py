"""The capabilities of its session's clients that an agent learns when its process starts."""

from __future__ import annotations

import msgspec

from .options import SessionOptions


class Announcement(msgspec.Struct, frozen=True):
    """The capabilities of a session's clients that its agent gets in ``initialize``.

    An agent behaves differently with each of them, so a prewarmed agent is of use only to a session
    with the same announcement.

    Attributes:
        elicitation, client_capabilities: as in :class:`AgentSpec`.
    """

    elicitation: tuple[str, ...] = ()
    client_capabilities: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: SessionOptions) -> Announcement:
        capabilities = tuple(sorted(set(options.client_capabilities or ())))
        return cls(options.announced_modes, capabilities)
