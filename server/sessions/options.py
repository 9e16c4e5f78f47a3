"""The options of a session: what a client chooses at its creation, beyond the columns of its row.

To add an option:

1. add its field to :class:`SessionOptions`. ``POST /sessions`` accepts it from then on, and the
   session's row stores it;
2. add it to ``OptionsInfo`` and ``options_view`` of ``option_views.py``, which show it in the
   session's state;
3. add it to :class:`OptionChanges` if ``PATCH /sessions/{id}`` may change it.

A session's objects read ``core.options``, which is replaced as a whole when a client changes one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec

from ..agents.parameters import NO_PARAMETERS, AgentParameters
from ..codec import dumps
from ..config import Settings
from ..mcp_servers import McpServer, Presets, ServerName
from ..validation import Environ

MAX_LISTED = 256
"""The limit of elements in each option that is a list."""
ASK_TIMEOUT_SECS = 10, 604_800

AskTimeout = Annotated[
    float,
    msgspec.Meta(
        ge=ASK_TIMEOUT_SECS[0],
        le=ASK_TIMEOUT_SECS[1],
        description="Seconds for which a permission request of the agent waits for a client; by"
        " default `CLAWDFORGE_PERMISSION_TIMEOUT_SECS`.",
    ),
]
ELICITATION_MODES: tuple[Literal["form", "url"], ...] = ("form", "url")
Elicitation = Annotated[
    Literal["off", "ask"],
    msgspec.Meta(
        description="`ask`: the agent may ask questions with forms and links, which wait for a"
        " client. `off`, the default: the agent learns of no such client, and every question is"
        " cancelled."
    ),
]
ElicitationModes = Annotated[
    list[Literal["form", "url"]],
    msgspec.Meta(
        min_length=1,
        max_length=2,
        description="With `ask`: the kinds of questions that the session's clients can show; by"
        " default both.",
    ),
]
ClientCapabilities = Annotated[
    list[Literal["plan", "subagents"]],
    msgspec.Meta(
        max_length=2,
        description="Capabilities of the session's clients that the agent learns of at each start,"
        " by ACP's names. Without `plan` the agent sends `plan` updates instead of `plan_update`,"
        " and without `subagents` it reports the work of subagents in the session itself.",
    ),
]
_Tool = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Folder = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class GitWorkspace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A git repository to work in."""

    repository: Annotated[
        _Folder, msgspec.Meta(description="Its path, in one of `CLAWDFORGE_WORKSPACE_ROOTS`.")
    ]
    branch: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None,
        msgspec.Meta(
            description="Created at the repository's HEAD if it does not exist. By default"
            " `clawdforge/` and the beginning of the session's id."
        ),
    ] = None
    worktree: Annotated[
        bool,
        msgspec.Meta(
            description="Whether the session gets a worktree of its own, which is removed with it."
            " If false, it works in the repository itself."
        ),
    ] = True


class WorkspaceChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The folder of a session."""

    git: GitWorkspace | None = None


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The options of a session, as a client gives them and as the session's row stores them."""

    ask_timeout_secs: AskTimeout | None = None
    elicitation: Elicitation | None = None
    elicitation_modes: ElicitationModes | None = None
    client_capabilities: ClientCapabilities | None = None
    mcp_servers: Annotated[
        Annotated[list[McpServer | ServerName], msgspec.Meta(max_length=MAX_LISTED)] | None,
        msgspec.Meta(
            description="MCP servers for the agent: ACP's McpServer objects, or names of the"
            " operator's `CLAWDFORGE_MCP_SERVERS`."
        ),
    ] = None
    allowed_tools: Annotated[
        Annotated[list[_Tool], msgspec.Meta(max_length=MAX_LISTED)] | None,
        msgspec.Meta(description="Tools that the agent may use without asking; only `claude`."),
    ] = None
    max_turns: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None,
        msgspec.Meta(description="The limit of the agent's requests to its model in a turn."),
    ] = None
    env: Environ | None = None
    workspace: Annotated[WorkspaceChoice | None, msgspec.Meta(description="Instead of `cwd`.")] = (
        None
    )
    additional_directories: Annotated[
        Annotated[list[_Folder], msgspec.Meta(max_length=MAX_LISTED)] | None,
        msgspec.Meta(description="More folders for the agent, in `CLAWDFORGE_WORKSPACE_ROOTS`."),
    ] = None

    __repr__ = object.__repr__  # the values are secrets

    @classmethod
    def decode(cls, stored: str | None) -> SessionOptions:
        """Read what :meth:`encode` returned."""
        return msgspec.json.decode(stored, type=cls) if stored else NO_OPTIONS

    def encode(self) -> str | None:
        """Return the options as JSON; None if all have their defaults."""
        return None if self == NO_OPTIONS else dumps(msgspec.to_builtins(self)).decode()

    @classmethod
    def of(cls, body: SessionOptions) -> SessionOptions:
        """Return the options in a request body, which is of a derived type."""
        return cls(**{name: getattr(body, name) for name in cls.__struct_fields__})

    @property
    def announced_modes(self) -> tuple[str, ...]:
        """The modes of ``elicitation/create`` that the server announces to the agent."""
        if self.elicitation != "ask":
            return ()
        modes = self.elicitation_modes or ELICITATION_MODES
        return tuple(mode for mode in ELICITATION_MODES if mode in modes)

    @property
    def git(self) -> GitWorkspace | None:
        """The repository that the session works in."""
        return self.workspace.git if self.workspace is not None else None

    @property
    def has_agent_options(self) -> bool:
        """Whether the agent gets them at its start, so that no prewarmed agent can serve."""
        return any(name != "client_capabilities" for name in self.agent_options)

    @property
    def agent_options(self) -> list[str]:
        """The names of the options that the agent must be started with; empty ones are none."""
        return [
            name
            for name in AGENT_OPTIONS
            if getattr(self, name) or (name == "allowed_tools" and self.allowed_tools is not None)
        ]


NO_OPTIONS = SessionOptions()
AGENT_OPTIONS = (
    *("mcp_servers", "allowed_tools", "max_turns", "env", "additional_directories"),
    "client_capabilities",
)
"""The options that the agent receives when it is started or loaded."""


def elicitation_options(modes: Collection[str]) -> SessionOptions:
    """Return options with which the agent may ask questions of those modes."""
    if not modes:
        return NO_OPTIONS
    shown = [mode for mode in ELICITATION_MODES if mode in modes]
    return SessionOptions(elicitation="ask", elicitation_modes=shown)


def agent_parameters(options: SessionOptions, presets: Presets) -> AgentParameters:
    """Return what the session's agent gets at each start."""
    if not options.has_agent_options:
        return NO_PARAMETERS
    servers = options.mcp_servers or ()
    return AgentParameters(
        environ=options.env or {},
        mcp_servers=tuple(
            server if isinstance(server, McpServer) else presets.get(server, server)
            for server in servers
        ),
        additional_directories=tuple(options.additional_directories or ()),
        allowed_tools=None if options.allowed_tools is None else tuple(options.allowed_tools),
        max_turns=options.max_turns,
    )


class OptionChanges(msgspec.Struct, frozen=True, kw_only=True):
    """New values of the options that can be changed; null restores the default."""

    ask_timeout_secs: AskTimeout | msgspec.UnsetType | None = msgspec.UNSET
    elicitation: Elicitation | msgspec.UnsetType | None = msgspec.UNSET
    elicitation_modes: ElicitationModes | msgspec.UnsetType | None = msgspec.UNSET

    def given(self) -> dict[str, Any]:
        """Return the options that are to be changed."""
        values = {name: getattr(self, name) for name in OptionChanges.__struct_fields__}
        return {name: value for name, value in values.items() if value is not msgspec.UNSET}


def ask_timeout(options: SessionOptions, settings: Settings) -> float:
    """The seconds for which a request of the agent waits for a client."""
    own = options.ask_timeout_secs
    return settings.permission_timeout_secs if own is None else own
