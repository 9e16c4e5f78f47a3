"""What clients ask over ACP: the shapes of the methods' parameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from .rpc import INVALID_PARAMS, RpcError

PROTOCOL_VERSION = 1
NAMESPACE = "clawdforge"
"""The key in ``_meta`` for what is ours."""
MIN_MESSAGE_BYTES = 64 << 10

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Path = Annotated[str, msgspec.Meta(pattern=r"^/[^\0]*\Z")]


class Wishes(msgspec.Struct, frozen=True, rename="camel"):
    """What a client may ask for in ``_meta.clawdforge``, beyond ACP.

    Attributes:
        agent, model, permission: of new sessions.
        max_message_bytes: what the client's WebSocket takes.
    """

    agent: Name | None = None
    model: Name | None = None
    permission: Literal["approve-all", "approve-reads", "deny-all", "ask"] | None = None
    max_message_bytes: Annotated[int, msgspec.Meta(ge=MIN_MESSAGE_BYTES)] | None = None

    def over(self, others: Wishes) -> Wishes:
        """These, and *others* where these say nothing."""
        return Wishes(
            self.agent or others.agent,
            self.model or others.model,
            self.permission or others.permission,
            self.max_message_bytes or others.max_message_bytes,
        )


class Meta(msgspec.Struct, frozen=True):
    clawdforge: Wishes = Wishes()


class _Params(msgspec.Struct, frozen=True, rename="camel"):
    meta: Meta | None = msgspec.field(name="_meta", default=None)

    @property
    def wishes(self) -> Wishes:
        return self.meta.clawdforge if self.meta is not None else Wishes()


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
        raise RpcError(INVALID_PARAMS, str(error)) from None
