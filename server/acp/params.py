"""The parameters of ACP's methods, as msgspec structs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from ..mcp_servers import McpServer
from ..sessions.options import ELICITATION_MODES
from ..validation import ConfigOptions, Name, OptionValue, form, in_words
from .jsonrpc import INVALID_PARAMS, JsonRpcError

PROTOCOL_VERSION = 1
NAMESPACE = "clawdforge"
"""The key of this server's extensions in ``_meta``."""
MIN_MESSAGE_BYTES = 64 << 10

# A path on the client's machine: POSIX, a Windows drive or a Windows share.
ABSOLUTE = r"^(?:/|[A-Za-z]:[\\/]|\\\\)[^\0]*\Z"
ServerPath = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
ClientPath = Annotated[str, msgspec.Meta(pattern=form(ABSOLUTE, "an absolute path"))]


class UrlOptions(msgspec.Struct, frozen=True, rename="camel"):
    """The extensions that a client may use in the URL or in ``_meta.clawdforge``.

    Attributes:
        agent, model, permission, mode: of new sessions.
        max_message_bytes: the largest message that the client accepts.
    """

    agent: Name | None = None
    model: Name | None = None
    permission: Literal["approve-all", "approve-reads", "deny-all", "ask"] | None = None
    max_message_bytes: Annotated[int, msgspec.Meta(ge=MIN_MESSAGE_BYTES)] | None = None
    mode: Name | None = None

    @property
    def agent_options(self) -> dict[str, OptionValue] | None:
        """Values of the agent's own options in new sessions. A URL cannot contain them."""
        return None

    def with_defaults(self, defaults: UrlOptions) -> UrlOptions:
        """These options, and those of *defaults* that are missing here."""
        return MetaOptions(
            self.agent or defaults.agent,
            self.model or defaults.model,
            self.permission or defaults.permission,
            self.max_message_bytes or defaults.max_message_bytes,
            self.mode or defaults.mode,
            self.agent_options or defaults.agent_options,
        )


class MetaOptions(UrlOptions, frozen=True, rename="camel"):
    """The options in ``_meta.clawdforge``; ``configOptions`` may also be ``config_options``.

    Attributes:
        positions: of ``initialize``: the client continues at a position of the log after it has
            reconnected (``resumption.py``). The other attributes belong to this.
        prompt_id: of ``session/prompt``; it makes the prompt idempotent in its session.
        after: of ``session/load`` and ``session/resume``: the position of the last entry that the
            client has.
        prompts: of the same: prompts whose responses the client lacks, from their ids to the ids of
            their JSON-RPC requests.
    """

    config_options: ConfigOptions | None = None
    config_options_snake: ConfigOptions | None = msgspec.field(name="config_options", default=None)
    positions: bool = False
    prompt_id: Name | None = None
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    prompts: Annotated[dict[str, str | int | float], msgspec.Meta(max_length=256)] | None = None

    @property
    def agent_options(self) -> dict[str, OptionValue] | None:
        return self.config_options or self.config_options_snake


class Meta(msgspec.Struct, frozen=True):
    clawdforge: MetaOptions = MetaOptions()


class _Params(msgspec.Struct, frozen=True, rename="camel"):
    meta: Meta | None = msgspec.field(name="_meta", default=None)

    @property
    def session_options(self) -> MetaOptions:
        return self.meta.clawdforge if self.meta is not None else MetaOptions()


class _SessionParams(_Params, frozen=True, kw_only=True):
    session_id: str


class InitializeParams(_Params, frozen=True, kw_only=True):
    protocol_version: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    client_capabilities: dict[str, Any] | None = None


def elicitation_modes(capabilities: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The modes of ``elicitation/create`` among the capabilities of a client."""
    announced = (capabilities or {}).get("elicitation")
    if not isinstance(announced, dict):
        return ()
    return tuple(mode for mode in ELICITATION_MODES if isinstance(announced.get(mode), dict))


AGENT_CAPABILITIES: tuple[Literal["plan", "subagents"], ...] = "plan", "subagents"


def announced_to_agents(
    capabilities: Mapping[str, Any] | None,
) -> tuple[Literal["plan", "subagents"], ...]:
    """The capabilities of a client that the agents of its new sessions learn of."""
    return tuple(
        name for name in AGENT_CAPABILITIES if isinstance((capabilities or {}).get(name), dict)
    )


class AuthenticateParams(_Params, frozen=True, kw_only=True):
    method_id: Name


class NewSessionParams(_Params, frozen=True, kw_only=True):
    cwd: ClientPath
    mcp_servers: list[McpServer] | None = None
    additional_directories: list[ServerPath] | None = None


class LoadSessionParams(_SessionParams, frozen=True, kw_only=True):
    cwd: ClientPath
    mcp_servers: list[McpServer] | None = None
    additional_directories: list[ServerPath] | None = None


class ResumeSessionParams(LoadSessionParams, frozen=True, kw_only=True):
    pass


class ForkSessionParams(LoadSessionParams, frozen=True, kw_only=True):
    pass


class ListSessionsParams(_Params, frozen=True, kw_only=True):
    cwd: ClientPath | None = None
    cursor: str | None = None


class CloseSessionParams(_SessionParams, frozen=True, kw_only=True):
    pass


class DeleteSessionParams(_SessionParams, frozen=True, kw_only=True):
    pass


class SetTitleParams(_SessionParams, frozen=True, kw_only=True):
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class PromptParams(_SessionParams, frozen=True, kw_only=True):
    prompt: list[Any]


class SteeringMeta(Meta, frozen=True):
    steering: dict[str, Any] | None = None


class SteerParams(PromptParams, frozen=True, kw_only=True):
    meta: SteeringMeta | None = msgspec.field(name="_meta", default=None)

    @property
    def or_queue(self) -> bool:
        """Whether the prompt begins a turn if none is running."""
        steering = (self.meta.steering if self.meta is not None else None) or {}
        return steering.get("idleBehavior") != "promptRequired"


class CancelParams(_SessionParams, frozen=True, kw_only=True):
    pass


class SetModeParams(_SessionParams, frozen=True, kw_only=True):
    mode_id: Name


class SetModelParams(_SessionParams, frozen=True, kw_only=True):
    model_id: Name


class SetConfigOptionParams(_SessionParams, frozen=True, kw_only=True):
    config_id: Name
    value: OptionValue


class CancelRequestParams(_Params, frozen=True, kw_only=True):
    request_id: Any


P = TypeVar("P", bound=_Params)


def read_params(kind: type[P], params: Any) -> P:
    """Check the parameters of a method.

    Raises:
        JsonRpcError: -32602.
    """
    try:
        return msgspec.convert({} if params is None else params, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise JsonRpcError(INVALID_PARAMS, in_words(error)) from None
