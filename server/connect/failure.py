"""The reasons for which ``connect`` cannot work, in words for the editor's user."""

from __future__ import annotations

import enum

AUTH_REQUIRED_CODE = -32000
INTERNAL_CODE = -32603


class ExitStatus(enum.IntEnum):
    """The exit statuses of ``connect``; a signal adds 128 to its number."""

    ENDED = 0
    """The editor closed stdin or stdout."""
    UNREACHABLE = 1
    """The server cannot be reached, or ended the connection for good."""
    USAGE = 2
    """An argument, the address or the token's source is invalid."""
    REFUSED = 3
    """The server refused the token."""


class ConnectError(Exception):
    """The bridge cannot work. The message is one sentence for a person.

    Args:
        rpc_code: of the JSON-RPC errors that the editor receives.
    """

    def __init__(
        self,
        message: str,
        status: ExitStatus = ExitStatus.UNREACHABLE,
        rpc_code: int = INTERNAL_CODE,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.rpc_code = rpc_code

    @classmethod
    def of_token(cls, message: str, status: ExitStatus = ExitStatus.REFUSED) -> ConnectError:
        """The failure of a missing or refused token."""
        return cls(message, status, AUTH_REQUIRED_CODE)
