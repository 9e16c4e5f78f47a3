"""All sessions: found by id, bounded in number, swept when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from .. import safe_files
from ..agents.base import AgentInfo, Backend
from ..codec import dumps
from ..config import Settings
from ..data_dir import DataDir
from ..errors import Error, bad_request, draining, not_found, not_stored
from ..limits import ByteQuota, DiskReserve, TokenBucket, give_back
from ..metrics import Metrics
from ..storage import database as store
from ..storage.database import Database
from ..storage.schema import SessionRow
from ..tasks import Tasks, to_completion
from .agent_slots import NOBODY, AgentSlots
from .event_log import DatabaseWriter
from .prewarm import Prewarmed, Prewarmer
from .session import Session, encode_meta
from .settings import SessionSettings

logger = logging.getLogger(__name__)

PERMISSIONS = ("approve-all", "approve-reads", "deny-all", "ask")
FALLBACK_AGENT = "demo"
PREFERRED_AGENT = "claude"
POOL_RETRY_SECS = 30
AT_ONCE = 8
LIST_AT_ONCE = 50
CLOSE_SECS = 5


class SessionRegistry:
    """The sessions of all apps, in memory and in the database."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        writer: DatabaseWriter,
        metrics: Metrics,
        backend: Backend,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.store = database
        self.writer = writer
        self.metrics = metrics
        self.backend = backend
        self.clock = clock
        self.tasks = Tasks()
        self.closing = Tasks()
        self.slots = AgentSlots(
            settings.max_live_agents,
            self.tasks,
            reserve=settings.reserved_agents,
            each=settings.max_live_agents_per_app,
            app_of=_app_of,
        )
        self._data_dir = DataDir(settings.data_dir)
        self.disk = DiskReserve(settings.data_dir, settings.min_free_bytes)
        self.waiting_bytes = ByteQuota(
            settings.max_waiting_prompt_bytes_per_app,
            "the app's prompts that wait have all the bytes they may; ask again when some have run",
        )
        self.is_draining = False
        # The other backend keeps no process between turns.
        keeps_agents = settings.agent_backend == "host"
        self.prewarmer = Prewarmer(settings.prewarmed_agents if keeps_agents else 0, self)
        # Whoever still holds a session must meet the same one that is found by its id.
        self._loaded: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._kept: dict[str, Session] = {}
        self._loading: dict[str, asyncio.Task[Session | None]] = {}
        # Their rows are there, but not they: they are being created, or deleted.
        self._hidden: set[str] = set()
        self._prompt_rates: dict[str, TokenBucket] = {}
        self._open: Counter[str] = Counter()
        self._last_number = 0
        self._is_prewarming = False

    async def start(self) -> None:
        """Take up what an earlier server left; its unfinished turns are ended."""
        await self.writer.commit([store.move_workspaces(str(self.workspace("")))])
        self._open.update(await self.store.open_counts())
        self._last_number = await self.store.last_session_number()
        for row in await self.store.sessions_to_recover():
            session = await self._load(row)
            await session.recover()
        await self.writer.flush()

    async def stop(self) -> None:
        """End all turns: what runs has ``drain_secs`` to finish. Agents are the backend's."""
        self.is_draining = True
        patience = self.settings.drain_secs
        sessions = tuple(self._loaded.values())  # who is held may work, kept or not
        await asyncio.gather(*(session.drain(patience) for session in sessions))
        await self.closing.finish(CLOSE_SECS)
        await self.tasks.finish(0)

    def check_prompt_rate(self, app_name: str) -> None:
        """Count a prompt of that app.

        Raises:
            Error: ``rate_limited``; it has asked too often.
        """
        per_minute = self.settings.max_prompts_per_min
        rate = self._prompt_rates.setdefault(app_name, TokenBucket(per_minute / 60, per_minute))
        if not rate.allows():
            message = f"an app may send {per_minute} prompts a minute"
            raise Error("rate_limited", message, retry_after=1)

    @property
    def open_count(self) -> int:
        return self._open.total()

    def count_agents(self) -> Counter[str]:
        """How many agents are in which state; of a session without one it is hibernated."""
        found = self.slots.count_states()
        del found["hibernated"]  # those are about to start
        found["hibernated"] = self.open_count + len(self.prewarmer) - found.total()
        return found

    @property
    def running_turns(self) -> int:
        return sum(session.state_name == "running" for session in self._loaded.values())

    @property
    def queued_turns(self) -> int:
        return sum(session.queued_turns for session in self._loaded.values())

    # Finding.

    async def get(self, session_id: str, app_name: str) -> Session:
        """The session of that id, if it is that app's.

        Raises:
            Error: ``not_found``, the same for another app's as for none.
        """
        session = self._loaded.get(session_id)
        if session is None or session.row.app_name != app_name:
            # Another app's goes the way of one that is not there, and takes the same time.
            if not await self.store.has_session(app_name, session_id):
                raise not_found()
            session = await self._session(session_id)
        if session is None:  # deleted meanwhile
            raise not_found()
        self._kept[session_id] = session
        return session

    async def _session(self, session_id: str) -> Session | None:
        if session_id in self._hidden:
            return None
        session = self._loaded.get(session_id)
        if session is not None:
            self._kept[session_id] = session
            return session
        task = self._loading.get(session_id)
        if task is None:
            task = asyncio.create_task(self._find(session_id))
            self._loading[session_id] = task
            task.add_done_callback(lambda _: self._loading.pop(session_id, None))
        return await asyncio.shield(task)

    async def _find(self, session_id: str) -> Session | None:
        row = await self.store.session(session_id)
        return await self._load(row) if row is not None else None

    async def _load(self, row: SessionRow) -> Session:
        head = await self.store.head(row.n)
        session = Session(
            self, row, head=head, last_turn_index=await self.store.last_turn_index(row.n)
        )
        self._settle_in(session)
        return session

    def _settle_in(self, session: Session) -> None:
        if not session.is_closed:
            session.agent = self.backend.agent(session.spec, session, session.kept_agent_state())
        self._loaded[session.id] = self._kept[session.id] = session

    async def views_of(
        self, app_name: str, *, include_closed: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """The states of the app's sessions, the newest first; few of them are in memory at once."""
        before: int | None = None
        while rows := await self.store.session_page(
            app_name, before=before, limit=LIST_AT_ONCE, cwd=None, include_closed=include_closed
        ):
            for row in rows:
                before = row.n
                session = await self._shown(row)
                if session is not None and (include_closed or not session.is_closed):
                    yield session.view()

    async def _shown(self, row: SessionRow) -> Session | None:
        """A session to be shown: a closed one need not be kept in memory for that."""
        if row.closed_at is None or row.id in self._loaded:
            return await self._session(row.id)
        if row.id in self._hidden:
            return None
        return Session(
            self,
            row,
            head=await self.store.head(row.n),
            last_turn_index=await self.store.last_turn_index(row.n),
        )

    async def sessions_of(self, app_name: str, *, include_closed: bool) -> list[Session]:
        """The app's sessions, the newest first."""
        rows = await self.store.sessions_of(app_name, include_closed=include_closed)
        found = []
        for row in rows:
            try:
                found.append(await self.get(row.id, app_name))
            except Error:
                continue  # deleted meanwhile
        return [session for session in found if include_closed or not session.is_closed]

    # Creating.

    async def create(
        self,
        app_name: str,
        *,
        agent: str | None = None,
        model: str | None = None,
        system: str | None = None,
        meta: Mapping[str, Any] | None = None,
        permission: str = "approve-all",
        cwd: str | None = None,
        mode: str | None = None,
        config_options: Mapping[str, str] | None = None,
        client_cwd: str | None = None,
    ) -> Session:
        """Open a session; its agent starts behind it.

        Args:
            client_cwd: the folder by which an ACP client finds it again.

        Raises:
            Error: ``bad_request``, ``payload_too_large``, ``agent_unavailable``, ``pool_full``,
                ``draining`` or ``internal``.
        """
        if self.is_draining:
            raise draining()
        if permission == "ask" and not self.backend.can_ask:
            raise bad_request("permission: ask cannot be had with CLAWDFORGE_AGENT_BACKEND=cli")
        if (mode or config_options) and not self.backend.can_restore:
            raise bad_request(
                "mode, config_options: they cannot be had with CLAWDFORGE_AGENT_BACKEND=cli"
            )
        notes = encode_meta(meta or {}, self.settings.max_meta_bytes)
        if system is not None and len(system.encode()) > self.settings.max_system_bytes:
            limit = self.settings.max_system_bytes
            raise Error("payload_too_large", f"system: it has at most {limit} bytes")
        await self.disk.check()
        name = await self.choose_agent(agent)
        if permission == "deny-all" and self.backend.traits(name).never_asks:
            raise bad_request(
                f"permission: the agent {name!r} does not ask, so nothing can be denied"
            )
        folder = None if cwd is None else await asyncio.to_thread(self._check_cwd, cwd)
        self._take_place(app_name)
        session_id = str(uuid.uuid4())
        spare = made = None
        if model is None and system is None and folder is None:
            spare = self.prewarmer.take(name)
        try:
            if spare is not None:
                session_id, folder = spare.id, Path(spare.spec.cwd)
            elif folder is None:
                made = folder = self.workspace(session_id)
                await asyncio.to_thread(safe_files.make_folder, *self.place_of(session_id))
            self._last_number += 1
            now = self.clock()
            row = SessionRow(
                n=self._last_number,
                id=session_id,
                app_name=app_name,
                agent=name,
                model=model,
                system=system,
                meta=notes,
                permission=permission,
                cwd=str(folder),
                created_at=now,
                last_turn_at=None,
                turn_count=0,
                has_context=0,
                closed_at=None,
                close_reason=None,
                settings=SessionSettings(mode, dict(config_options or {})).encoded(),
                client_cwd=client_cwd,
            )
            detail = dumps({"agent": name, "model": model, "permission": permission}).decode()
            self._hidden.add(session_id)
            statements = [
                store.insert_session(row),
                store.audit(session_id, app_name, "create", now, detail),
                *([store.delete_prewarmed(session_id)] if spare is not None else []),
            ]
            await to_completion(self.writer.commit(statements))
        except BaseException as error:
            self._hidden.discard(session_id)
            self._give_place(app_name)
            if spare is not None:
                self.tasks.spawn(self.prewarmer.end(spare), f"prewarm-end-{spare.id}")
            if made is not None:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(safe_files.remove, *self.place_of(session_id))
            if isinstance(error, OSError):
                logger.error("a session's folder cannot be made: %s", error.strerror)
                raise not_stored() from None
            raise
        logger.info("session opened: %s", name, extra={"session": session_id, "app": app_name})
        session = Session(self, row, head=0, last_turn_index=0)
        self._settle_in(session)
        self._hidden.discard(session_id)
        session.note_asks()
        if spare is not None:
            session.take_over(spare)
        else:
            session.wake()
        self.prewarmer.fill()
        return session

    def _take_place(self, app_name: str) -> None:
        settings = self.settings
        if self._open.total() >= settings.max_sessions:
            raise Error(
                "pool_full", "the server holds all the sessions it may", retry_after=POOL_RETRY_SECS
            )
        if self._open[app_name] >= settings.max_sessions_per_app:
            raise Error(
                "pool_full", "the app has all the sessions it may", retry_after=POOL_RETRY_SECS
            )
        self._open[app_name] += 1

    def _give_place(self, app_name: str) -> None:
        give_back(self._open, app_name)

    def workspace(self, session_id: str) -> Path:
        """The folder of a session that asks for none."""
        return self._data_dir.workspace(session_id)

    def place_of(self, session_id: str) -> tuple[Path, *tuple[str, ...]]:
        """The same, as the data folder and the names below it."""
        return self._data_dir.split(self.workspace(session_id))

    def _check_cwd(self, cwd: str) -> Path:
        roots = self.settings.workspace_roots
        if not roots:
            raise bad_request("cwd: this server gives each session a folder of its own")
        if not cwd.startswith("/") or "\0" in cwd:
            raise bad_request("cwd: must be an absolute path")
        try:
            folder = Path(cwd).resolve()
            if any(folder.is_relative_to(root) for root in roots) and folder.is_dir():
                return folder
        except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
            logger.debug("cwd %r: %s", cwd, error)
        raise bad_request("cwd: must be an existing folder in one of the workspace roots")

    async def agents(self) -> list[tuple[AgentInfo, bool]]:
        """Every agent that can be asked for, and whether it is the default."""
        infos = await self.backend.agents()
        default = await self._default_agent()
        return [(info, info.name == default) for info in infos]

    async def _default_agent(self) -> str:
        if self.settings.default_agent is not None:
            return self.settings.default_agent
        found = await self.backend.agents(PREFERRED_AGENT)
        return PREFERRED_AGENT if any(info.installed for info in found) else FALLBACK_AGENT

    async def choose_agent(self, name: str | None) -> str:
        """The agent of that name, or the default one.

        Raises:
            Error: ``bad_request``; it is not known. ``agent_unavailable``; not installed.
        """
        wanted = await self._default_agent() if name is None else name
        for info in await self.backend.agents(wanted):
            if info.installed:
                return info.name
            raise Error(
                "agent_unavailable", f"the agent {wanted!r} is not installed: {info.install}"
            )
        known = ", ".join(info.name for info in await self.backend.agents())
        raise bad_request(f"agent: {wanted!r} is not known; these are: {known}")

    # Ending.

    async def close(self, session: Session, reason: str) -> bool:
        """Close *session*; False where it was closed already."""
        first = not session.is_closed
        try:
            await session.close(reason)
        finally:  # it is closed even if nobody waits for it any more
            if first and session.is_closed:
                self._give_place(session.row.app_name)
                if session.is_stored and not session.viewers:
                    self._kept.pop(session.id, None)
        return first

    def cancel_turns_of(self, app_name: str) -> None:
        """Cancel every turn of an app whose token is revoked, running or queued."""
        for session in tuple(self._loaded.values()):
            if session.row.app_name == app_name:
                session.cancel_all()

    async def close_any(self, session_id: str, reason: str) -> bool:
        """Close the session of that id, whoever's it is; False where it was closed already.

        Raises:
            Error: ``not_found``.
        """
        session = await self._session(session_id)
        if session is None:
            raise not_found()
        return await self.close(session, reason)

    async def sweep(self) -> None:
        """One round of the sweeper: close what is idle, delete what is long closed.

        Where that fails for one session, it goes on with the next.
        """
        now = self.clock()
        settings = self.settings
        await _attempt(self._close_idle(now - settings.session_ttl_secs))
        await _attempt(self._delete_closed(now))
        await _attempt(self._hibernate_unused(now))
        self._unload()
        self._prompt_rates = {
            app_name: rate for app_name, rate in self._prompt_rates.items() if not rate.is_unspent()
        }
        self.prewarmer.fill()

    async def _delete_closed(self, now: float) -> None:
        before = now - self.settings.session_hard_ttl_secs
        for row in await self.store.sessions_closed(before):
            await _attempt(self._delete(row, now), session=row.id, app=row.app_name)

    async def _close_idle(self, before: float) -> None:
        """Close what has not been used since; who takes long does so behind the round.

        On a full disk that is all of them: they wait for room, and the round may make some.
        """
        closing = []
        for session_id in await self.store.idle_sessions(before):
            close = _attempt(self._close_unused(session_id, before), session=session_id)
            closing.append(self.closing.spawn(close, f"close-idle-{session_id}"))
            await asyncio.sleep(0)  # one in a turn of the event loop
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_SECS)

    async def _close_unused(self, session_id: str, before: float) -> None:
        session = await self._session(session_id)
        if session is None or session.is_closed or session.is_busy:
            return
        if (session.row.last_turn_at or 0) <= before:  # else it was used since it was looked for
            await self.close(session, "idle")

    async def _hibernate_unused(self, now: float) -> None:
        """Put idle agents to sleep, and before their time those in the place of prewarmed ones."""
        idle_secs = self.settings.agent_idle_secs
        unused_secs = min(idle_secs, self.settings.sweep_interval_secs)
        count = max(
            len(self.slots.idle_since(now - idle_secs)), self.prewarmer.missing - self.slots.free
        )
        unused = self.slots.idle_since(now - unused_secs)[:count]
        for start in range(0, len(unused), AT_ONCE):
            few = unused[start : start + AT_ONCE]
            await asyncio.gather(*(_attempt(one.hibernate(), session=one.id) for one in few))

    async def _delete(self, row: SessionRow, now: float) -> None:
        """Delete a closed session with all that it left, but for its audit.

        One that is read, or about to be, is left for a later round.
        """
        session = self._loaded.get(row.id)
        if row.id in self._loading or (session is not None and session.log.is_watched):
            return
        # Its rows go last: till then they must not bring it back.
        self._hidden.add(row.id)
        self._loaded.pop(row.id, None)
        self._kept.pop(row.id, None)
        try:
            await self.leave_nothing(row.id, Path(row.cwd))
            detail = dumps({"agent": row.agent, "turn_count": row.turn_count}).decode()
            statements = [
                *store.delete_session(row.n),
                store.audit(row.id, row.app_name, "hard_delete", now, detail),
            ]
            await to_completion(self.writer.commit(statements))
        finally:
            self._hidden.discard(row.id)

    async def leave_nothing(self, session_id: str, folder: Path) -> None:
        """Remove what acpx keeps of a session, and its folder if it is its own.

        What may not be removed is the operator's to remove: it will not go the next time either.
        """
        await self.backend.forget(session_id)
        if folder == self.workspace(session_id):
            try:
                await asyncio.to_thread(safe_files.remove, *self.place_of(session_id))
            except OSError as error:
                about = {"session": session_id}
                logger.error("a session's folder cannot be removed: %s", error, extra=about)

    def _unload(self) -> None:
        """Forget sessions that nobody watches and nothing runs for; the database has them."""
        for session_id, session in tuple(self._kept.items()):
            running = session.agent is not None and session.agent.is_live
            if session.is_stored and not (session.is_busy or session.viewers or running):
                del self._kept[session_id]

    async def _start_prewarming(self) -> None:
        self.prewarmer.start(await self.store.prewarmed())
        self._is_prewarming = True

    async def run_sweeper(self, *others: Callable[[], Awaitable[None]]) -> None:
        """Sweep for ever, and *others* along; what fails is logged and tried again next time."""
        while True:
            if not self._is_prewarming:  # a failed read now must not be the end of the sweeper
                await _attempt(self._start_prewarming())
            await asyncio.sleep(self.settings.sweep_interval_secs)
            for sweep in (self.sweep, *others):
                await _attempt(sweep())


def _app_of(holder: Session | Prewarmed) -> str:
    """The app that a running agent works for; one that was prewarmed works for none."""
    return holder.row.app_name if isinstance(holder, Session) else NOBODY


async def _attempt(work: Awaitable[object], **about: str) -> None:
    """Wait for *work*; should it fail, that is logged, and the sweeper goes on with the rest."""
    try:
        await work
    except Exception:
        logger.exception("the sweeper failed; it goes on", extra=about)
