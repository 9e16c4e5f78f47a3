"""The client of one ACP connection, as it has introduced itself."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..auth.credential import Credential
from ..sessions.options import NO_OPTIONS, SessionOptions
from .params import UrlOptions


class AcpClient(msgspec.Struct):
    """The client of one connection.

    Attributes:
        options: of the URL and of ``initialize``; those in a later message take precedence.
        only_session: the id of the only session that the client's ticket admits to, or None.
        elicitation: the modes of ``elicitation/create`` that the client can show.
        capabilities: others of the client that agents learn of.
        session_options: of ``initialize``, for new sessions.
        is_disconnected: the connection has ended; the client gets no more responses.
    """

    credential: Credential
    options: UrlOptions
    only_session: str | None
    elicitation: tuple[str, ...] = ()
    capabilities: tuple[Literal["plan", "subagents"], ...] = ()
    session_options: SessionOptions = NO_OPTIONS
    is_disconnected: bool = False
