"""One conversation: its turns, one at a time; its permissions; its state.

A turn is stored before it is acknowledged, waits its turn, runs, and ends with
exactly one ``turn_end``, whatever happens to the agent, the host or the socket
that asked for it. Everything a viewer sees goes through the session's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from ..agents import settings as agent_settings
from ..agents.base import (
    GRACE_SECS,
    NO_SETTINGS,
    URGENT_GRACE_SECS,
    Agent,
    AgentSettings,
    AgentSpec,
    Backend,
    Context,
    Presence,
    Wanted,
)
from ..agents.failures import agent_error
from ..agents.traits import APPROVE_ALL, AgentTraits
from ..codec import dumps, loads
from ..config import Settings
from ..errors import Error, draining, internal, session_closed
from ..limits import DiskReserve
from ..metrics import Metrics
from ..storage import database
from ..storage.database import Database, Statement
from ..storage.schema import SessionRow, TurnRow
from ..tasks import Tasks, to_completion
from . import entries
from .agent_slots import AgentSlots
from .event_log import DatabaseWriter, SessionLog
from .permissions import Permissions
from .prewarm import PrewarmedAgent
from .quotas import SessionQuotas
from .settings import (
    Change,
    SessionSettings,
    SetConfigOption,
    SetMode,
    SetModel,
    Setting,
)
from .turns import CancelCause, Turn, verdict

logger = logging.getLogger(__name__)

CLOSE_GRACE_SECS = 1.0
"""What a running turn gets to end by itself when its session is closed."""
MAX_CHANGES = 16
"""Changes of mode, model or option that may wait, for an agent say, whoever asked for them."""


class House(Protocol):
    """What a session needs of the house it lives in."""

    settings: Settings
    backend: Backend
    store: Database
    writer: DatabaseWriter
    metrics: Metrics
    tasks: Tasks
    closing: Tasks
    is_draining: bool

    @property
    def slots(self) -> AgentSlots: ...

    def clock(self) -> float: ...

    @property
    def disk(self) -> DiskReserve: ...

    @property
    def quotas(self) -> SessionQuotas: ...


def encode_meta(meta: Mapping[str, Any], limit: int) -> str:
    """The app's own notes as JSON.

    Raises:
        Error: ``payload_too_large``; it has more than *limit* bytes.
    """
    encoded = dumps(meta)
    if len(encoded) > limit:
        raise Error("payload_too_large", f"meta: a session's has at most {limit} bytes of JSON")
    return encoded.decode()


class Session:
    """A session in memory; closed ones can be read, and nothing else.

    Args:
        head: the newest position of its log.
        last_turn_index: the newest turn that was accepted.
    """

    def __init__(self, house: House, row: SessionRow, *, head: int, last_turn_index: int) -> None:
        self.row = row
        self.log = SessionLog(house.writer, row.n, head)
        self.agent: Agent | None = None
        self.subscribers = 0
        self._house = house
        self._accepting = asyncio.Lock()
        self._merging = asyncio.Lock()
        self._next_index = last_turn_index + 1
        self._started_index = last_turn_index
        self._sent_index = last_turn_index
        self._queue: deque[Turn] = deque()
        self._by_client_id: dict[str, Turn] = {}
        self._current: Turn | None = None
        self._runner: asyncio.Task[None] | None = None
        self.permissions = Permissions(
            row,
            self.log,
            house.writer,
            house.settings.permission_timeout_secs,
            self._tell_outcome,
        )
        self._close_reason: str | None = row.close_reason
        self._closing: asyncio.Task[None] | None = None
        self._sealed = self.is_closed
        self._hibernating = False
        self._changing = 0
        self._changes: list[Change] = []
        self._in_turn_of_change = asyncio.Lock()
        self._settings = SessionSettings.of(row.settings)
        self._restored: list[tuple[str, str]] = []
        self._prewarmed = False
        self._waking: asyncio.Task[None] | None = None
        self._start_error: Error | None = None
        self.last_used = house.clock()

    # What is seen of it.

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def spec(self) -> AgentSpec:
        """The agent that it wants."""
        row = self.row
        preface = row.system if self.system_delivery == "prompt" else None
        return AgentSpec(
            row.id, row.agent, row.cwd, row.model, row.system, row.permission, preface, row.app_name
        )

    @property
    def traits(self) -> AgentTraits:
        return self._house.backend.traits(self.row.agent)

    @property
    def system_delivery(self) -> str | None:
        """How the agent gets the system prompt: as such, or in front of its first prompt."""
        if self.row.system is None:
            return None
        return "agent" if self.traits.takes_system else "prompt"

    @property
    def wanted(self) -> Wanted:
        """The settings that the agent must be in before it gets a prompt.

        Without a mode that somebody has set, what is to be decided by a policy or by clients needs
        the mode in which the agent asks.
        """
        traits = self.traits
        model, kept = self._settings.named_by(self.row.model, self._agent_state)
        chosen = kept.mode
        is_asked = self.row.permission != APPROVE_ALL and self._house.backend.can_restore
        asking = traits.asking_mode if is_asked else None
        return Wanted(
            model=model,
            mode=chosen or asking,
            config_options=kept.config_options,
            mode_is_optional=chosen is None and self.row.permission != "deny-all",
            model_may_be_unlisted=traits.takes_any_model,
        )

    @property
    def asks(self) -> bool | None:
        """Whether the agent asks in its mode; None: not known."""
        mode = self._mode
        if mode is not None and mode == self._settings.asked_in:
            return True
        return self.traits.asks(mode, self.row.permission)

    @property
    def _mode(self) -> str | None:
        """The mode of the agent: as it says, or the one that it will be put into."""
        state = self._agent_state
        said = agent_settings.current(state, "mode")
        if said is not None and self.agent is not None and self.agent.is_live:
            return said
        wanted = self.wanted
        if wanted.mode is None:
            return said
        is_offered = agent_settings.offers(state, "mode", wanted.mode)
        if is_offered is None:  # not offered either, if the agent has said all
            is_told = self.agent is not None and not self.agent.is_starting and state != NO_SETTINGS
            is_offered = not is_told
        return wanted.mode if is_offered or not wanted.mode_is_optional else said

    @property
    def _agent_state(self) -> AgentSettings:
        return self.agent.settings if self.agent is not None else NO_SETTINGS

    @property
    def is_closed(self) -> bool:
        return self._close_reason is not None

    @property
    def is_over(self) -> bool:
        """Closed, and nothing will be logged any more."""
        return self._sealed

    @property
    def is_stored(self) -> bool:
        """Whether the database has all of its log."""
        return self.log.head == self.log.last

    @property
    def is_busy(self) -> bool:
        """A turn runs or waits."""
        return self._current is not None or bool(self._queue) or self._accepting.locked()

    @property
    def can_hibernate(self) -> bool:
        in_use = self.is_busy or self._changing or self.permissions
        return not (in_use or self._hibernating or self.is_closed)

    @property
    def state_name(self) -> str:
        if self.is_closed:
            return "closed"
        return "running" if self._running is not None else "idle"

    @property
    def _running(self) -> Turn | None:
        turn = self._current
        if turn is None or not turn.is_stored or turn.finished.is_set():
            return None
        return turn

    @property
    def agent_state(self) -> Presence:
        """Whether the agent runs."""
        if self.agent is None or not self.agent.is_live:
            return "hibernated"
        if self._prewarmed and self._current is None and not self._sent_index:
            return "prewarmed"
        return "waking" if self.agent.is_starting else "live"

    def agent_view(self) -> dict[str, Any]:
        """What the agent offers, in ACP's shapes, and whether it runs."""
        return {
            "agent_state": self.agent_state,
            "mode": self._mode,
            "asks": self.asks,
            **agent_settings.view(self._agent_state),
        }

    def kept_agent_state(self) -> AgentSettings:
        """What an earlier server's agent last said of itself."""
        return (
            AgentSettings.from_dict(loads(self.row.agent_state))
            if self.row.agent_state
            else NO_SETTINGS
        )

    def _keep_agent_state(self) -> None:
        """Keep what the agent says of itself, for when there is neither it nor this server."""
        told = self.agent.settings.to_dict() if self.agent is not None else NO_SETTINGS.to_dict()
        text = dumps(told).decode()
        if told != NO_SETTINGS.to_dict() and text != self.row.agent_state:
            self.row.agent_state = text
            self._house.writer.add([database.set_agent_state(self.row.n, text)])

    def view(self) -> dict[str, Any]:
        """The state, as REST shows it; times are unix seconds or None."""
        row = self.row
        return {
            "session_id": row.id,
            "agent": row.agent,
            "model": row.model,
            "system": row.system,
            "system_delivery": self.system_delivery,
            "meta": loads(row.meta),
            "permission": row.permission,
            "cwd": row.cwd,
            "created_at": int(row.created_at),
            "last_turn_at": None if row.last_turn_at is None else int(row.last_turn_at),
            "turn_count": row.turn_count,
            "closed_at": None if row.closed_at is None else int(row.closed_at),
            "close_reason": row.close_reason,
            "state": self.state_name,
            "head": self.log.head,
            "turn_index": self._running.index if self._running else None,
            "queued": self.queued(),
            "pending_permissions": self.permissions.shown(),
            "sockets": self.subscribers,
            **self.agent_view(),
        }

    @property
    def queued_turns(self) -> int:
        return len(self._queue)

    def queued(self) -> list[dict[str, Any]]:
        """The prompts that wait, with the first characters of each."""
        return [
            {"turn_index": turn.index, "id": turn.client_id, "prompt": turn.preview}
            for turn in self._queue
        ]

    # Up: what clients ask.

    async def prompt(
        self,
        blocks: bytes,
        *,
        request_id: str | None = None,
        client_id: str | None = None,
        timeout: float | None = None,
    ) -> tuple[Turn, bool]:
        """Accept a prompt; it is stored when this returns.

        Args:
            blocks: JSON of checked content blocks.
            request_id: what the server's log calls the request.
            client_id: makes it idempotent in this session.
            timeout: seconds that the turn may run, where less than the setting.

        Returns:
            The turn, and whether that client id had it already.

        Raises:
            Error: ``session_closed``, ``draining``, ``rate_limited``, ``queue_full``, or
                ``internal`` where nothing can be stored.
        """
        async with self._acceptance():
            if (known := await self._known(client_id)) is not None:
                return known, True
            await self._house.disk.check()
            self._check_accepts()
            turn = Turn(self._next_index, client_id, blocks, timeout, request_id)
            turn.changes = tuple(self._changes)
            row = TurnRow(
                self.row.n, turn.index, client_id, blocks, timeout, None, None, None, None, None
            )
            self._house.quotas.waiting_bytes.take(self.row.app_name, len(blocks))
            turn.reserved = len(blocks)
            early = self._may_run_at_once()
            try:
                if early:  # it goes through acpx while it is stored, and waits before the agent
                    self._current = turn
                    self._pass_on(turn)
                # Its outcome alone decides, also if whoever asked has gone: a prompt is never both
                # stored and refused.
                await to_completion(self._house.writer.commit([database.insert_turn(row)]))
            except BaseException:
                self._refuse(turn)
                raise
            self._next_index += 1
            if client_id is not None:
                self._by_client_id[client_id] = turn
            if not early:
                self._queue.append(turn)
            if self.is_closed or self._house.is_draining:  # while it was being stored
                ending = CancelCause.CANCEL if self.is_closed else CancelCause.RESTART
                self._hold_back(turn, ending)
                self._end_queued(ending)
            turn.stored.set_result(True)
            if turn.handle is not None:
                turn.handle.admit()
            if self._runner is None and (early or self._queue):
                self._run()
            return turn, False

    @contextlib.asynccontextmanager
    async def _acceptance(self) -> AsyncIterator[None]:
        """One prompt at a time; who comes to nothing leaves an agent that can make room."""
        try:
            async with self._accepting:
                yield
        finally:
            self._house.slots.reconsider()

    def _may_run_at_once(self) -> bool:
        is_open = not (self.is_closed or self._house.is_draining or self._changes)
        return is_open and self._runner is None and self._house.slots.has_slot(self)

    def _refuse(self, turn: Turn) -> None:
        self._forget_prompt(turn)
        self._hold_back(turn, CancelCause.CANCEL)
        turn.stored.set_result(False)
        if turn.handle is not None:
            self._run()

    def _forget_prompt(self, turn: Turn) -> None:
        """The log has it, or it is refused: it waits no more."""
        self._house.quotas.waiting_bytes.give(self.row.app_name, turn.reserved)
        turn.reserved = 0
        turn.blocks = b""

    def _hold_back(self, turn: Turn, ending: CancelCause) -> None:
        """The agent must never see *turn*, which is about to be stored or refused."""
        turn.ending = ending
        if turn.interrupt is not None:
            turn.interrupt()

    def _check_accepts(self) -> None:
        if self.is_closed:
            raise session_closed()
        if self._house.is_draining:
            raise draining()
        self._house.quotas.check_prompt_rate(self.row.app_name)
        limit = self._house.settings.max_queued_turns
        if len(self._queue) + (self._running is not None) > limit:
            raise Error("queue_full", f"{limit} prompts wait already; ask again when one has run")

    async def turn_of(self, client_id: str | None) -> Turn | None:
        """The turn that was accepted under that client id, if there is one."""
        async with self._acceptance():  # it may be being accepted at this moment
            return await self._known(client_id)

    async def _known(self, client_id: str | None) -> Turn | None:
        if client_id is None:
            return None
        # What is not over, or not yet stored as such, is known here and not in the database.
        self._by_client_id = {
            known: turn
            for known, turn in self._by_client_id.items()
            if turn.last_seq is None or turn.last_seq > self.log.head
        }
        if (turn := self._by_client_id.get(client_id)) is not None:
            return turn
        row = await self._house.store.turn_by_client_id(self.row.n, client_id)
        return Turn.of(row) if row is not None else None

    def is_queued(self, turn: Turn) -> bool:
        """Whether other turns of this session come first, or a free agent must be waited for."""
        if turn not in self._queue:
            return False
        first = self._running is None and self._queue[0] is turn
        return not first or self._house.slots.must_wait(self)

    def cancel(self, turn_index: int | None = None) -> bool:
        """Cancel the running turn, or the one of that index, running or queued.

        Returns:
            False where there is no such turn.
        """
        current = self._running
        if current is not None and turn_index in (None, current.index):
            self._interrupt(current, CancelCause.CANCEL, self._house.settings.cancel_grace_secs)
            return True
        for turn in self._queue:
            if turn.index == turn_index or (turn_index is None and current is None):
                self._queue.remove(turn)
                turn.ending = CancelCause.CANCEL
                self._end(turn)
                return True
        return False

    def cancel_all(self) -> None:
        """Cancel the running turn and every queued one."""
        self._end_queued(CancelCause.CANCEL)
        self.cancel()

    async def change(self, setting: Setting) -> Mapping[str, Any]:
        """Change the agent's mode, model or an option of its own, from now on.

        Returns:
            The agent's own result.

        Raises:
            Error: ``bad_request`` if the agent refuses; ``internal`` if the change cannot be
                stored; what :meth:`request_change` raises.
        """
        return await self.request_change(setting).outcome()

    def request_change(self, setting: Setting) -> Change:
        """The same, without waiting for it.

        A prompt that is accepted from here on waits for the change, and is not run if it fails.

        Raises:
            Error: ``session_closed``; ``rate_limited`` if too many changes wait.
        """
        if self.is_closed:
            raise session_closed()
        if self._changing >= MAX_CHANGES:
            raise Error("rate_limited", "the last changes are not through yet", retryable=True)
        self._changing += 1
        change = Change(setting)
        self._changes.append(change)
        change.task = self._house.tasks.spawn(self._carry_out(change), f"change-{self.id}")
        return change

    async def _carry_out(self, change: Change) -> None:
        """Have the agent change the setting, and keep it: whoever asked may be gone meanwhile."""
        try:
            async with self._in_turn_of_change:
                await self._house.slots.acquire(self)
                change.has_begun = True
                if self.is_closed:
                    raise session_closed()
                result = await self._ask_for(self._live_agent(), change.setting)
                await self._keep(change.setting)
            change.succeed(result)
        except Error as error:
            change.fail(error)
        except Exception:
            change.fail(internal())
            raise  # to the log
        finally:
            self._changes.remove(change)
            self._changing -= 1
            change.end()
            self._keep_agent_state()
            self.last_used = self._house.clock()
            self._release_if_gone()
            self._house.slots.reconsider()

    async def _ask_for(self, agent: Agent, setting: Setting) -> Mapping[str, Any]:
        match setting:
            case SetMode(mode=mode):
                return await agent.set_mode(mode)
            case SetModel(model=model):
                return await agent.set_model(model)
            case SetConfigOption(key=key, value=value):
                return await agent.set_config_option(key, value)

    async def _keep(self, setting: Setting) -> None:
        """Keep a setting that the agent has taken: it is in force until another is set."""
        state = self._agent_state
        name, value = _named(setting, state)
        model, kept = self._settings.with_value(self.row.model, name, value, state)
        await self._store_settings(model, kept.offered_by(state))
        if name == "mode":
            self.note_asks()

    async def _store_settings(self, model: str | None, kept: SessionSettings) -> None:
        statement = database.set_settings(self.row.n, model, kept.encoded())
        await to_completion(self._house.writer.commit([statement]))
        self.row.model, self._settings, self.row.settings = model, kept, kept.encoded()

    def _adopt(self, model: str | None, kept: SessionSettings) -> None:
        """Keep what is so already, without anybody who waits for it."""
        if (model, kept) != (self.row.model, self._settings):
            self.row.model, self._settings, self.row.settings = model, kept, kept.encoded()
            self._house.writer.add([database.set_settings(self.row.n, model, kept.encoded())])

    async def set_meta(self, meta: Mapping[str, Any]) -> None:
        """Merge *meta* into the session's own; None removes a key.

        Raises:
            Error: ``payload_too_large``; it would have more bytes than it may.
        """
        async with self._merging:
            merged = {**loads(self.row.meta), **meta}
            kept = {k: v for k, v in merged.items() if v is not None}
            text = encode_meta(kept, self._house.settings.max_meta_bytes)
            await to_completion(self._house.writer.commit([database.set_meta(self.row.n, text)]))
            self.row.meta = text

    def take_over(self, prewarmed: PrewarmedAgent) -> None:
        """Take over a prewarmed agent and its slot."""
        self.agent = prewarmed.transfer_to(self.spec, self)
        self._prewarmed = self.agent.is_live
        self._house.slots.transfer(prewarmed, self)
        self._keep_agent_state()
        self._release_if_gone()
        if not self.wanted.is_empty and self._house.slots.has_slot(self):
            self._waking = self._house.tasks.spawn(self._wake(), f"wake-{self.id}")

    def wake(self) -> None:
        """Start a new session's agent behind its creation, if there is room for one."""
        if self._house.slots.try_acquire(self):
            self._waking = self._house.tasks.spawn(self._wake(), f"wake-{self.id}")

    async def _wake(self) -> None:
        try:
            await self._live_agent().start()
        except Error as error:
            if self._waking is not None:  # else it was ended for who needs its slot
                # The first turn tells the client.
                logger.info("the agent does not start: %s", error.code, extra=self._about())
                self._start_error = error
        finally:
            self._waking = None
            self._keep_agent_state()
            self._release_if_gone()

    async def awake(self) -> None:
        """Wait for the start that :meth:`wake` began, for a client that wants to know now.

        Raises:
            Error: the agent does not start.
        """
        if self._waking is not None:
            await asyncio.wait({self._waking})
        if self._start_error is not None:
            raise self._start_error

    def _live_agent(self) -> Agent:
        if self.agent is None:  # only closed sessions have none
            raise session_closed()
        return self.agent

    # A turn's life.

    def _run(self) -> None:
        self._runner = self._house.tasks.spawn(self._run_turns(), f"turns-{self.id}")

    async def _run_turns(self) -> None:
        try:
            while self._current is not None or self._queue:
                if self._current is None:
                    self._current = self._queue.popleft()
                await self._run_safely(self._current)
                self._current = None
                if self._queue and self._house.slots.must_yield(self):
                    await self._yield_slot()
        finally:
            self._current = None
            self._runner = None
            self.last_used = self._house.clock()
            self._release_if_gone()
            self._house.slots.reconsider()

    async def _yield_slot(self) -> None:
        """Between two turns: let an app that has fewer agents have this one's slot."""
        if self.permissions or self._changing:
            return
        await self._live_agent().hibernate(URGENT_GRACE_SECS)
        self._house.slots.release(self)

    async def _run_safely(self, turn: Turn) -> None:
        """Run *turn*; whatever fails with it, the turns after it can run."""
        try:
            await self._run_turn(turn)
        except Exception:
            logger.exception("the turn broke", extra=self._about(turn))
            turn.stop_timers()
            if turn.is_stored:
                self._end(turn, error=internal())

    def _pass_on(self, turn: Turn) -> None:
        """Give *turn* to the agent, for which there must be a slot."""
        agent = self._live_agent()
        turn.began = time.monotonic()
        turn.handle = agent.prompt(turn.blocks, is_held=not turn.is_stored)
        turn.interrupt = turn.handle.cancel

    async def _run_turn(self, turn: Turn) -> None:
        settings = self._house.settings
        if turn.handle is None:
            if turn.changes and (failure := await self._changed_before(turn)) is not None:
                await self._end_if_stored(turn, failure)
                return
            if turn.ending is None and not self._house.slots.has_slot(self):
                await self._wait_for_slot(turn)
            if turn.ending is not None:  # the agent must never see it
                await self._end_if_stored(turn)
                return
            self._pass_on(turn)
        assert turn.handle is not None
        self._house.metrics.turn_wait.observe(turn.began - turn.accepted_at)
        limit = min(turn.timeout or settings.turn_timeout_secs, settings.turn_timeout_secs)
        grace = settings.cancel_grace_secs
        self._later(turn, limit, lambda: self._interrupt(turn, CancelCause.TIMEOUT, grace))
        error: Error | None = None
        try:
            await turn.handle.done
        except Error as failure:
            error = failure
        except Exception:
            logger.exception("the turn broke", extra=self._about(turn))
            error = internal()
        await self._end_if_stored(turn, error)

    async def _changed_before(self, turn: Turn) -> Error | None:
        """Wait for the changes that were asked for before *turn*; why one has failed.

        Its client has asked for it in that setting, so that it is not run in another.
        """
        waiting = asyncio.ensure_future(asyncio.wait([change.done for change in turn.changes]))
        turn.interrupt = waiting.cancel
        await asyncio.wait({waiting})
        failures = (change.failure for change in turn.changes)
        return next((failure for failure in failures if failure is not None), None)

    async def _end_if_stored(self, turn: Turn, error: Error | None = None) -> None:
        if not turn.stored.done():
            await asyncio.wait({turn.stored})
        if turn.is_stored:
            self._end(turn, error=error)
        else:
            turn.stop_timers()

    async def _wait_for_slot(self, turn: Turn) -> None:
        """Return when it has one, or when *turn* was ended meanwhile."""
        turn.began = time.monotonic()
        acquiring = asyncio.ensure_future(self._house.slots.acquire(self))
        turn.interrupt = acquiring.cancel
        try:
            await asyncio.wait({acquiring})
        except asyncio.CancelledError:
            acquiring.cancel()
            raise

    def _later(self, turn: Turn, delay: float, call: Callable[[], Any]) -> None:
        turn.timers.append(asyncio.get_running_loop().call_later(delay, call))

    def _interrupt(self, turn: Turn, ending: CancelCause, grace: float) -> None:
        """Ask the agent to end *turn*; make it, when it has not after *grace* seconds."""
        if turn.finished.is_set():
            return
        if turn.ending is None:
            turn.ending = ending
        self.permissions.cancel()
        if turn.interrupt is not None:
            turn.interrupt()
        self._later(turn, grace, lambda: self._kill(turn))

    def _kill(self, turn: Turn) -> None:
        if self.agent is not None and not turn.finished.is_set():
            logger.warning("the agent ignores the cancel; killing it", extra=self._about(turn))
            self._house.tasks.spawn(self.agent.kill(), f"kill-{self.id}")

    def prompt_sent(self, context: Context) -> None:
        turn = self._current
        if turn is None or turn.first_seq is not None:
            return
        turn.sent = True
        self._sent_index = turn.index
        self.permissions.calls.clear()
        if not self.row.has_context:
            self._start(turn, "new")
        else:
            self._start(turn, "lost" if context == "fresh" else "kept")

    def _start(self, turn: Turn, context: str) -> None:
        self._started_index = max(self._started_index, turn.index)
        turn.first_seq = self.log.append(
            "turn_start",
            turn.index,
            entries.turn_start_fields(turn.blocks, turn.client_id, context),
        )
        self._forget_prompt(turn)
        turn.started.set()
        restored, self._restored = self._restored, []
        for setting, value in restored:
            fields = entries.encode_fields(notice="restored", setting=setting, value=value)
            self.log.append("notice", turn.index, fields)
        self.note_asks()
        now = self._house.clock()
        self.row.turn_count += 1
        self.row.last_turn_at = now
        self.row.has_context = max(self.row.has_context, int(turn.sent))
        self._house.writer.add(
            database.start_turn(
                self.row.n, turn.index, first_seq=turn.first_seq, at=now, sent=turn.sent
            )
        )

    def notification_received(self, message: bytes) -> None:
        if self._sealed:
            return
        self.log.append("event", self._event_index(), entries.event_fields(message))
        turn = self._current
        if turn is not None and turn.sent and not turn.updated:
            turn.updated = time.monotonic()

    def _event_index(self) -> int:
        # An update behind a turn's end belongs to the turn that it follows.
        turn = self._current
        if turn is not None and turn.first_seq is not None:
            return turn.index
        return self._sent_index

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None:
        turn = self._current
        if turn is None:
            return
        self.log.append("event", turn.index, entries.event_fields(message))
        result = response.get("result")
        reason = result.get("stopReason") if isinstance(result, dict) else None
        if isinstance(reason, str) and reason not in ("", "error"):  # `error` is ours to say
            self._end(turn, stop_reason=reason)
        else:
            methods = self.agent.settings.auth_methods if self.agent is not None else None
            self._end(turn, error=agent_error(response.get("error"), self.row.agent, methods))

    def _end(
        self, turn: Turn, *, stop_reason: str | None = None, error: Error | None = None
    ) -> None:
        """End *turn*, once: with what the agent said, or with why the server ended it."""
        if turn.finished.is_set():
            return
        turn.stop_timers()
        reason, error = verdict(turn, stop_reason, error)
        self.permissions.cancel(turn.index)
        if turn.first_seq is None:
            self._start(turn, "kept" if self.row.has_context else "new")
        turn.stop_reason = reason
        turn.error = entries.error_fields(error) if error is not None else None
        turn.duration_ms = int((time.monotonic() - turn.began) * 1000) if turn.began else 0
        error_json = dumps(turn.error) if turn.error is not None else None
        turn.last_seq = self.log.append(
            "turn_end", turn.index, entries.turn_end_fields(reason, turn.duration_ms, error_json)
        )
        self._keep_agent_state()
        now = self._house.clock()
        self.row.last_turn_at = now
        detail = {
            "turn_index": turn.index,
            "stop_reason": reason,
            "duration_ms": turn.duration_ms,
            "error": error.code if error is not None else None,
        }
        self._house.writer.add(
            [
                *database.end_turn(
                    self.row.n,
                    turn.index,
                    last_seq=turn.last_seq,
                    stop_reason=reason,
                    error=error_json,
                    duration_ms=turn.duration_ms,
                    at=now,
                ),
                self._audit("turn", now, **detail),
            ]
        )
        turn.finished.set()
        self._house.metrics.count_turn(reason if error is None else error.code)
        if turn.began:
            self._house.metrics.turn.observe(time.monotonic() - turn.began)
        if turn.updated:
            self._house.metrics.first_update.observe(turn.updated - turn.began)
        why = f"{reason}: {error.code}" if error is not None else reason
        logger.info("turn ended: %s", why, extra=self._about(turn))

    def _about(self, turn: Turn | None = None) -> dict[str, Any]:
        """What a line in the server's log says of this session, and of a turn of it."""
        about: dict[str, Any] = {"session": self.id, "app": self.row.app_name}
        if turn is not None:
            about |= {
                "request_id": turn.request_id,
                "turn": turn.index,
                "duration_ms": turn.duration_ms or None,
            }
        return about

    def _audit(self, event: str, at: float, **detail: Any) -> Statement:
        return database.audit(self.id, self.row.app_name, event, at, dumps(detail).decode())

    async def finished(self, turn: Turn) -> None:
        """Wait until *turn* has ended and its end is durable."""
        await turn.finished.wait()
        assert turn.last_seq is not None
        await self.log.reach(turn.last_seq)

    async def started(self, turn: Turn) -> None:
        """Wait until *turn* has its place in the log."""
        await turn.started.wait()

    # Settings, as the agent has them.

    @property
    def owes_preface(self) -> bool:
        return self._settings.owes_preface

    @owes_preface.setter
    def owes_preface(self, owes: bool) -> None:
        self._adopt(self.row.model, dataclasses.replace(self._settings, owes_preface=owes))

    def setting_restored(self, setting: str, value: str) -> None:
        self._restored.append((setting, value))  # the log has it after the turn's start

    def settings_changed(self, before: AgentSettings, after: AgentSettings) -> None:
        """The agent is in another setting: what was in force last stays in force.

        Only a mode in which it does not ask is none that a session with a policy is put back into.
        """
        wanted, kept, model = self.wanted, self._settings, self.row.model
        values = {"model": wanted.model, **wanted.config_options, "mode": wanted.mode}
        for name, value in values.items():
            now = agent_settings.current(after, name)
            if value is None or now in (None, value):
                continue
            if agent_settings.current(before, name) != value:
                continue  # it was not in force yet
            if name == "mode" and self._is_open_mode(now):
                now = self.traits.asking_mode or value
            model, kept = kept.with_value(model, name, now, after)
        self._adopt(model, kept)
        self.note_asks()

    def _is_open_mode(self, mode: str) -> bool:
        """Whether nobody would be asked in that mode, in a session in which somebody is to be."""
        permission = self.row.permission
        return permission != APPROVE_ALL and self.traits.asks(mode, permission) is False

    def tool_call_updated(self, update: Mapping[str, Any]) -> None:
        self.permissions.calls.note(update)

    def note_asks(self) -> None:
        """Tell in the log if the agent does not ask, in a session in which it should."""
        if self._sealed or self.row.permission == APPROVE_ALL:
            return
        asks = self.asks
        is_new = self.agent is None or (not self.log.last and not self.traits.never_asks)
        if is_new:  # it is told when its first turn begins
            return
        if asks is None or asks == self._settings.asks_told:
            return
        self._adopt(self.row.model, dataclasses.replace(self._settings, asks_told=asks))
        self.log.append(
            "notice", self._event_index(), entries.encode_fields(notice="asks", asks=asks)
        )

    def agent_ended(self) -> None:
        self.permissions.cancel()
        self._prewarmed = False
        self._keep_agent_state()
        self._release_if_gone()

    def _release_if_gone(self) -> None:
        starting = self.is_busy or self._changing or self._waking
        if not starting and (self.agent is None or not self.agent.is_live):
            self._house.slots.release(self)

    # Permissions.

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        if not self._sealed:
            turn = self._current
            is_ending = turn is not None and turn.ending is not None
            if (mode := self._mode) is not None and mode != self._settings.asked_in:
                self._adopt(self.row.model, dataclasses.replace(self._settings, asked_in=mode))
            self.permissions.ask(raw_id, params, self._event_index(), is_ending=is_ending)

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None:
        if not self._sealed:
            self.permissions.note_decided(params, outcome, self._event_index())

    def _tell_outcome(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        if self.agent is not None:
            self.agent.answer_permission(raw_id, outcome)
        # One that was asked behind its turn's end was all that kept the agent from making room.
        self._house.slots.reconsider()

    # The end of it.

    async def close(self, reason: str) -> None:
        """End what runs, tell the viewers, end the agent; or wait until that is done.

        Args:
            reason: ``client``, ``idle`` or ``admin``.
        """
        if not self.is_closed:
            self._close_reason = reason
            self._closing = self._house.closing.spawn(self._close(reason), f"close-{self.id}")
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self, reason: str) -> None:
        async with self._accepting:  # one that is being stored is ended by its own prompt()
            self._end_queued(CancelCause.CANCEL)
        turn = self._running
        if turn is not None:
            grace = min(CLOSE_GRACE_SECS, self._house.settings.cancel_grace_secs)
            self._interrupt(turn, CancelCause.CANCEL, grace)
            await turn.finished.wait()
        self.permissions.cancel()  # what was asked behind a turn's end
        now = self._house.clock()
        seq = self.log.append(
            "session_closed", self._started_index, entries.encode_fields(reason=reason)
        )
        self._sealed = True
        self.row.closed_at, self.row.close_reason = now, reason
        event = "sweep_close" if reason == "idle" else "close"
        self._house.writer.add(
            [
                database.close_session(self.row.n, reason, now),
                self._audit(event, now, reason=reason, turn_count=self.row.turn_count),
            ]
        )
        logger.info("session closed: %s", reason, extra=self._about())
        if self.agent is not None:
            await self.agent.hibernate()
        self._house.slots.release(self)
        await self.log.reach(seq)  # last: on a full disk that waits for room

    async def hibernate(self, grace: float = GRACE_SECS) -> bool:
        """End the agent's process until the next prompt; False where it is in use."""
        if not self.can_hibernate or self.agent is None:
            return False
        self._hibernating = True
        self._waking = None  # that a start comes to nothing by this is no failure of the agent's
        try:
            await self.agent.hibernate(grace)
        finally:
            self._hibernating = False
        self._release_if_gone()
        return True

    def _end_queued(self, ending: CancelCause) -> None:
        while self._queue:
            turn = self._queue.popleft()
            turn.ending = ending
            self._end(turn)

    async def drain(self, patience: float) -> None:
        """The server stops: end the queued turns now, the running one in *patience* seconds."""
        async with self._accepting:
            self._end_queued(CancelCause.RESTART)
        turn = self._running
        if turn is None:
            return
        try:
            async with asyncio.timeout(patience):
                await turn.finished.wait()
        except TimeoutError:
            self._interrupt(turn, CancelCause.RESTART, CLOSE_GRACE_SECS)
            await turn.finished.wait()

    async def recover(self) -> None:
        """End what an earlier server left unfinished."""
        self.permissions.cancel_left(await self._house.store.asked(self.row.n))
        for row in await self._house.store.unfinished_turns(self.row.n):
            turn = Turn.of(row)
            turn.ending = CancelCause.RESTART
            self._end(turn)


def _named(setting: Setting, state: AgentSettings) -> tuple[str, str]:
    """What a frame sets, and the value: an option may stand for the mode or the model."""
    match setting:
        case SetMode(mode=mode):
            return "mode", mode
        case SetModel(model=model):
            return "model", model
        case SetConfigOption(key=key, value=value):
            return agent_settings.setting_of(state, key), value
