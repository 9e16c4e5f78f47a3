"""Connects packages that do not import each other."""

from __future__ import annotations

from ..auth.tokens import TokenRegistry
from ..outbox.outbox import AlertOutbox
from ..runs.jobs import RunJobs
from ..search.indexer import Indexer
from ..sessions.registry import SessionRegistry
from ..storage.schema import SessionRow
from ..uploads.files import FileStore
from ..ws.hub import Hub


def connect_tokens(
    tokens: TokenRegistry,
    sockets: Hub,
    sessions: SessionRegistry,
    jobs: RunJobs,
    outbox: AlertOutbox,
) -> None:
    """Let the revocation of a token end its connections, turns, runs and deliveries."""

    def end_app(app_name: str) -> None:
        sockets.close_app(app_name)
        for session in sessions.memory.all():
            if session.row.app_name == app_name:
                session.turns.cancel_all()
        jobs.stop_app(app_name)
        outbox.drop_app(app_name)

    tokens.on_revoke, tokens.on_reading_ended = end_app, sockets.end_reading
    tokens.shares.on_revoke = sockets.close_credential
    sessions.remover.steps.append(tokens.shares.drop_session)


async def resume_removals(sessions: SessionRegistry, files: FileStore, search: Indexer) -> None:
    """Finish the removals of an earlier server process, and extend all later ones."""

    async def delete_uploads(row: SessionRow, is_purge: bool) -> None:
        if is_purge:
            await files.delete_own(row.n)

    async def forget_texts(row: SessionRow, is_purge: bool) -> None:
        await search.forget(row.n)

    sessions.remover.steps += [delete_uploads, forget_texts]
    await sessions.remover.resume()
