"""The scopes of a token: what its app may do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

from ..errors import Error, ErrorCode

Scope = Literal["read", "prompt", "approve", "manage"]
"""``read`` sees sessions and follows logs; ``prompt`` prompts, steers, cancels and uploads;
``approve`` answers permission requests and questions; ``manage`` creates, changes and removes
sessions."""
ALL_SCOPES: tuple[Scope, ...] = get_args(Scope)


def check_scope(scopes: Collection[Scope], needed: Scope) -> None:
    """Check that a token has a scope. The failure reveals nothing: the resource is its own app's.

    Raises:
        Error: ``forbidden``.
    """
    if needed not in scopes:
        raise Error(ErrorCode.FORBIDDEN, f"the token does not have the scope {needed}")
