"""The body of a request for a new session, which may be a fork of another one."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..sessions import options
from ..sessions.creation import SessionRequest
from ..sessions.forking import inherited_request
from ..sessions.lifetime import Lifetime
from ..sessions.session import Session
from ..validation import ConfigOptions, Name
from .field_types import PermissionMode, RetentionSecs, TtlSecs, doc


class CreateSession(options.SessionOptions, frozen=True, kw_only=True):
    """A new session."""

    agent: Annotated[
        Name | None, doc("An agent of `GET /agents`; by default the default agent.")
    ] = None
    model: Annotated[Name | None, doc("Passed to the agent.")] = None
    system: Annotated[
        Annotated[str, msgspec.Meta(max_length=1 << 20)] | None,
        doc("Replaces the agent's own system prompt."),
    ] = None
    mode: Annotated[Name | None, doc("The agent's mode, set before every prompt.")] = None
    config_options: Annotated[
        ConfigOptions | None,
        doc("Values of the agent's own options, by their ids; set before every prompt."),
    ] = None
    meta: Annotated[dict[str, Any] | None, doc("Data of the app's own.")] = None
    permission: Annotated[
        PermissionMode | None,
        doc("How permission requests are answered; by default `approve-all`."),
    ] = None
    cwd: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=4096)] | None,
        doc("A folder in one of `CLAWDFORGE_WORKSPACE_ROOTS`; by default a new folder."),
    ] = None
    ttl_secs: TtlSecs = msgspec.UNSET
    retention_secs: RetentionSecs = msgspec.UNSET


def session_request(body: CreateSession) -> SessionRequest:
    """The request that a body makes."""
    return SessionRequest(
        agent=body.agent,
        model=body.model,
        system=body.system,
        meta=body.meta or {},
        permission=body.permission or "approve-all",
        cwd=body.cwd,
        mode=body.mode,
        config_options=body.config_options or {},
        options=options.SessionOptions.of(body),
        lifetime=Lifetime.of(body.ttl_secs, body.retention_secs),
    )


def fork_request(body: CreateSession, source: Session) -> SessionRequest:
    """The request that a body makes for a fork of *source*, whose values are the defaults."""
    inherited = inherited_request(source, body.agent)
    chosen = options.SessionOptions.of(body)
    given = {
        name: value
        for name in options.SessionOptions.__struct_fields__
        if (value := getattr(chosen, name)) is not None
    }
    own, times = inherited.options, Lifetime.of(body.ttl_secs, body.retention_secs)
    if body.cwd is not None:
        own = msgspec.structs.replace(own, workspace=None)
    kept = inherited.lifetime
    return msgspec.structs.replace(
        inherited,
        model=body.model or inherited.model,
        system=inherited.system if body.system is None else body.system,
        meta=inherited.meta if body.meta is None else body.meta,
        permission=body.permission or inherited.permission,
        cwd=body.cwd or inherited.cwd,
        client_cwd=None,
        mode=body.mode or inherited.mode,
        config_options=body.config_options or inherited.config_options,
        options=msgspec.structs.replace(own, **given),
        lifetime=Lifetime(
            kept.ttl_secs if times.ttl_secs is None else times.ttl_secs,
            kept.retention_secs if times.retention_secs is None else times.retention_secs,
        ),
    )
