"""What a client is told of an exception: one function, whatever protocol the client speaks.

The tables that turn the :class:`Error` into an HTTP status, a WebSocket close code or a JSON-RPC
code are in ``errors.py``. Whatever is no :class:`Error` is logged here, so no defect becomes the
client's mistake, and none is lost.
"""

from __future__ import annotations

import logging

from ..errors import DatabaseError, Error, internal

logger = logging.getLogger(__name__)


def failure_of(error: BaseException, doing: str, **about: object) -> Error:
    """The failure that a client is told of; a defect is logged, the client's mistake is not.

    Args:
        doing: what failed, as the log line's subject: ``the request``.
        about: the log line's fields, ``request_id`` or ``session`` say.
    """
    if isinstance(error, Error):
        return error
    if isinstance(error, DatabaseError) and error.is_transient:  # the disk, not the code
        logger.error("%s failed: the database: %s", doing, error, extra=about)
    else:
        logger.error("%s failed", doing, exc_info=error, extra=about)
    return internal()
