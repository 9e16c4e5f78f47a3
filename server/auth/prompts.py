"""Prompts that a credential sends to a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..codec import dumps
from ..errors import session_closed
from ..sessions.session import Session
from ..sessions.steering import SteerRequest
from ..sessions.turns import Acceptance
from ..uploads.files import FileStore, prepend_file_paths
from .credential import Credential, unauthorized


async def send_prompt(
    credential: Credential,
    session: Session,
    blocks: list[dict[str, Any]],
    *,
    request_id: str,
    client_id: str | None = None,
    timeout: float | None = None,
    steer: SteerRequest | None = None,
) -> Acceptance:
    """Prompt a session; a turn whose credential is revoked meanwhile is cancelled.

    Args:
        blocks: checked ACP content blocks.
        request_id: of the HTTP request, for the server's log.
        client_id: the client's id of the prompt, which makes a retry return the same turn.
        timeout: seconds that the turn may run.
        steer: add the prompt to the running turn, if the agent accepts it there.

    Raises:
        Error: what :meth:`Session.prompt` raises, or ``unauthorized``.
    """
    credential.check()
    accepted = await session.prompt(
        dumps(blocks), request_id=request_id, client_id=client_id, timeout=timeout, steer=steer
    )
    if credential.is_revoked:  # while the prompt was being stored
        # Another prompt's turn may belong to a later token with the same name.
        if not (accepted.is_duplicate or accepted.is_steered):
            session.cancel(accepted.turn.index)
        raise unauthorized()
    return accepted


async def send_prompt_with_files(
    credential: Credential,
    session: Session,
    files: FileStore,
    blocks: list[dict[str, Any]],
    file_tokens: Sequence[str],
    *,
    request_id: str,
    client_id: str | None = None,
    timeout: float | None = None,
    steer: SteerRequest | None = None,
) -> Acceptance:
    """Prompt a session as :func:`send_prompt` does, with uploaded files named before the text.

    Args:
        file_tokens: of files that the session's app has uploaded.

    Raises:
        Error: also what :meth:`FileStore.paths` raises.
    """
    if file_tokens:  # a duplicate prompt is known even if its files have expired
        if (known := await session.turns.find(client_id)) is not None:
            return known
        if session.is_closed:
            raise session_closed()
    paths = await files.paths(session.row.app_name, file_tokens)
    if file_tokens:
        files.note_use(session.row.n, file_tokens)
    paths = await files.attach(session.row.app_name, session.id, paths)
    return await send_prompt(
        credential,
        session,
        prepend_file_paths(blocks, paths),
        request_id=request_id,
        client_id=client_id,
        timeout=timeout,
        steer=steer,
    )
