"""The state of a stdio proxy that survives a reload of the server."""

from __future__ import annotations

from typing import Any

import msgspec

from .channel import ChannelState
from .conversation import ConversationState
from .own_requests import OwnRequestsState


class ProxyState(msgspec.Struct, kw_only=True):
    """A proxy for the next version of the server.

    Attributes:
        pidfd: the descriptor of the process.
        to_agent, to_acpx: the pipes.
        acpx_rest, agent_rest: the incomplete lines that were read.
        waiting_lines: complete lines of acpx that the agent has not received yet.
        has_sandbox: the process has the sandbox that its app's token demands.
        prompt_id: acpx's id of the prompt that the agent works on.
    """

    pid: int
    pidfd: int
    env_tag: bytes
    rlimit_tag: tuple[int, int] | None
    to_agent: ChannelState
    to_acpx: ChannelState
    acpx_rest: bytes
    agent_rest: bytes
    waiting_lines: list[bytes]
    stray_output: bytes
    conversation: ConversationState
    own_requests: OwnRequestsState
    is_prompting: bool
    prompt_id: Any
    has_sandbox: bool
