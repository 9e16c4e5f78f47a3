"""The reason why the server closes a WebSocket connection."""

from __future__ import annotations

from ..errors import CloseCode, Error


class Disconnect(Exception):  # noqa: N818 - not an error
    """A close by the server.

    Args:
        reason: a text for people, sent in the close frame.
        retry_after_ms: when the client may reconnect, if the server limits that.
    """

    def __init__(self, code: CloseCode, reason: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after_ms = retry_after_ms

    @classmethod
    def from_error(cls, error: Error) -> Disconnect:
        """The close of a connection that cannot continue after *error*."""
        return cls(error.code.close_code, error.message)
