"""What clients ask over ACP: the shapes of the methods' parameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from ..validation import ConfigOptions, Name, form, in_words
from .jsonrpc import INVALID_PARAMS, RpcError

PROTOCOL_VERSION = 1
NAMESPACE = "clawdforge"
"""The key in ``_meta`` for what is ours."""
MIN_MESSAGE_BYTES = 64 << 10

# Of the client's system, which need not be the server's: POSIX, a Windows drive, a Windows share.
ABSOLUTE = r"^(?:/|[A-Za-z]:[\\/]|\\\\)[^\0]*\Z"
Path = Annotated[str, msgspec.Meta(pattern=form(ABSOLUTE, "an absolute path"))]


class Wishes(msgspec.Struct, frozen=True, rename="camel"):
    """What a client may ask for in ``_meta.clawdforge``, beyond ACP.

    Attributes:
        agent, model, permission, mode: of new sessions.
        max_message_bytes: what the client's WebSocket takes.
    """

    agent: Name | None = None
    model: Name | None = None
    permission: Literal["approve-all", "approve-reads", "deny-all", "ask"] | None = None
    max_message_bytes: Annotated[int, msgspec.Meta(ge=MIN_MESSAGE_BYTES)] | None = None
    mode: Name | None = None

    @property
    def options(self) -> dict[str, str] | None:
        """Config options of new sessions; they have no place in an address."""
        return None

    def over(self, others: Wishes) -> Wishes:
        """These, and *others* where these say nothing."""
        return MetaWishes(
            self.agent or others.agent,
            self.model or others.model,
            self.permission or others.permission,
            self.max_message_bytes or others.max_message_bytes,
            self.mode or others.mode,
            self.options or others.options,
        )


class MetaWishes(Wishes, frozen=True, rename="camel"):
    """The same in ``_meta.clawdforge``; ``config_options`` may be in either spelling."""

    config_options: ConfigOptions | None = None
    snake_case: ConfigOptions | None = msgspec.field(name="config_options", default=None)

    @property
    def options(self) -> dict[str, str] | None:
        return self.config_options or self.snake_case


class Meta(msgspec.Struct, frozen=True):
    clawdforge: MetaWishes = MetaWishes()


class _Params(msgspec.Struct, frozen=True, rename="camel"):
    meta: Meta | None = msgspec.field(name="_meta", default=None)

    @property
    def wishes(self) -> Wishes:
        return self.meta.clawdforge if self.meta is not None else MetaWishes()


class _OfSession(_Params, frozen=True, kw_only=True):
    session_id: str


class Initialize(_Params, frozen=True, kw_only=True):
    protocol_version: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    client_capabilities: dict[str, Any] | None = None


class NewSession(_Params, frozen=True, kw_only=True):
    cwd: Path
    mcp_servers: list[Any] | None = None
    additional_directories: list[Any] | None = None


class LoadSession(_OfSession, frozen=True, kw_only=True):
    cwd: Path
    mcp_servers: list[Any] | None = None
    additional_directories: list[Any] | None = None


class ResumeSession(LoadSession, frozen=True, kw_only=True):
    pass


class ListSessions(_Params, frozen=True, kw_only=True):
    cwd: Path | None = None
    cursor: str | None = None


class CloseSession(_OfSession, frozen=True, kw_only=True):
    pass


class Prompt(_OfSession, frozen=True, kw_only=True):
    prompt: list[Any]


class Cancel(_OfSession, frozen=True, kw_only=True):
    pass


class SetMode(_OfSession, frozen=True, kw_only=True):
    mode_id: Name


class SetModel(_OfSession, frozen=True, kw_only=True):
    model_id: Name


class SetConfigOption(_OfSession, frozen=True, kw_only=True):
    config_id: Name
    value: Name


class CancelRequest(_Params, frozen=True, kw_only=True):
    request_id: Any


P = TypeVar("P", bound=_Params)


def read(kind: type[P], params: Any) -> P:
    """Check a method's parameters.

    Raises:
        RpcError: -32602.
    """
    try:
        return msgspec.convert({} if params is None else params, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise RpcError(INVALID_PARAMS, in_words(error)) from None
