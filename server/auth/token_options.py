"""The options of an app's token: what the operator may set and change, beyond its networks.

To add an option, add its field to :class:`TokenOptions`. ``POST /admin/tokens`` and ``PATCH
/admin/tokens/{name}`` accept it from then on, and the token's row stores it. Add it to
:meth:`TokenOptions.view` to show it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..accounts.limits import NO_BUDGET, NO_LIMITS, AppLimits, Budget
from ..codec import dumps
from ..sandbox.demands import SandboxDemand
from ..validation import Environ, check_environ
from .scopes import ALL_SCOPES, Scope

EMPTY: tuple[Any, ...] = ({}, NO_LIMITS, NO_BUDGET, SandboxDemand())
"""Values that set nothing."""


class TokenOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The options of a token, as the operator gives them and as the token's row stores them.

    A change replaces each field that is given; null removes it.
    """

    env: Environ | msgspec.UnsetType | None = msgspec.UNSET
    scopes: Annotated[list[Scope], msgspec.Meta(max_length=16)] | msgspec.UnsetType | None = (
        msgspec.UNSET
    )
    limits: AppLimits | msgspec.UnsetType | None = msgspec.UNSET
    budget: Budget | msgspec.UnsetType | None = msgspec.UNSET
    sandbox: SandboxDemand | msgspec.UnsetType | None = msgspec.UNSET

    __repr__ = object.__repr__  # the values are secrets

    @classmethod
    def decode(cls, stored: str | None) -> TokenOptions:
        """Read what :meth:`encode` returned."""
        return msgspec.json.decode(stored, type=cls) if stored else cls()

    @classmethod
    def of(cls, body: TokenOptions) -> TokenOptions:
        """Return the options in a request body, which is of a derived type."""
        return cls(**{name: getattr(body, name) for name in cls.__struct_fields__})

    def encode(self) -> str | None:
        """Return the options as JSON; None if there are none."""
        fields = msgspec.to_builtins(self)
        return dumps(fields).decode() if fields else None

    def changed(self, changes: TokenOptions) -> TokenOptions:
        """Return the options with the fields that *changes* has."""
        given = {name: getattr(changes, name) for name in self.__struct_fields__}
        given = {name: value for name, value in given.items() if value is not msgspec.UNSET}
        emptied = {
            name: msgspec.UNSET if value is None or value in EMPTY else value
            for name, value in given.items()
        }
        return msgspec.structs.replace(self, **emptied)

    @property
    def allowed(self) -> frozenset[Scope]:
        """The scopes of the token; by default all."""
        return frozenset(self.scopes if isinstance(self.scopes, list) else ALL_SCOPES)

    def check(self) -> None:
        """Check what the types of the fields cannot express.

        Raises:
            Error: ``payload_too_large``.
        """
        check_environ(self.env or {})

    def view(self) -> dict[str, Any]:
        """The options without secrets; those that are not set are missing."""
        view: dict[str, Any] = {"env": sorted(self.env)} if self.env else {}
        if isinstance(self.scopes, list):
            view["scopes"] = [scope for scope in ALL_SCOPES if scope in self.scopes]
        for name in ("limits", "budget", "sandbox"):
            if value := getattr(self, name):
                view[name] = msgspec.to_builtins(value)
        return view
