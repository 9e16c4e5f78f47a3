"""Steering: prompts that are added to the running turn of a session.

A prompt is stored before the agent receives it. The agent's response decides: the prompt becomes an
entry ``turn_steer`` of the running turn, or an ordinary prompt of the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from ..agents.base import AGENT_GONE, agent_failed
from ..agents.steering import SteerOutcome
from ..errors import Error, internal
from ..storage import statements
from ..storage.schema import Statement, SteerRow
from ..tasks import to_completion
from . import entries
from .client_ids import ClientIds
from .core import SessionCore
from .session_agent import SessionAgent
from .turns import Acceptance, CurrentTurn, Turn

logger = logging.getLogger(__name__)


class CarriedSteer(msgspec.Struct, kw_only=True):
    """A prompt that is being added to the running turn, for the next version of the server.

    Attributes:
        agent_request: the id of the request to the agent.
    """

    id: str
    blocks: bytes
    client_id: str | None
    timeout: float | None
    request_id: str | None
    or_queue: bool
    agent_request: str | None


class NotSteeredError(Exception):
    """The prompt was not added to a running turn, and must not become an ordinary one."""


class SteerRequest(msgspec.Struct):
    """The request to add a prompt to the running turn.

    Attributes:
        or_queue: otherwise the prompt becomes an ordinary one.
        ordered: set when the order of the session's prompts is decided for this one, though the
            agent may not have responded yet.
    """

    or_queue: bool = True
    ordered: asyncio.Event = msgspec.field(default_factory=asyncio.Event)


class SteeredPrompt:
    """A prompt that is being added to *turn*.

    Args:
        blocks: JSON of its content blocks.
        timeout, request_id: of the turn that it may become instead.

    Attributes:
        reserved_bytes: its share of its app's limit on waiting prompts.
        agent_request: the id of the request to the agent.
        decided: set when the agent has responded, or its process has ended.
    """

    def __init__(
        self,
        turn: Turn,
        request: SteerRequest,
        blocks: bytes,
        client_id: str | None,
        *,
        timeout: float | None,
        request_id: str | None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.turn = turn
        self.request = request
        self.blocks = blocks
        self.client_id = client_id
        self.timeout = timeout
        self.request_id = request_id
        self.reserved_bytes = 0
        self.agent_request: str | None = None
        self.decided = asyncio.Event()
        self._result: asyncio.Future[Acceptance] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Acceptance:
        """Wait until the prompt is accepted, as a part of the turn or as an ordinary prompt.

        Raises:
            Error: it is not accepted.
            NotSteeredError: it may not become an ordinary prompt.
        """
        await asyncio.wait({self._result})
        return self._result.result()

    def accept(self, acceptance: Acceptance) -> None:
        self._result.set_result(acceptance)

    def refuse(self, error: Exception) -> None:
        self._result.set_exception(error)
        self._result.exception()  # it counts as retrieved, also if the caller has been cancelled


class Steering:
    """The prompts that are being added to the running turn. Its length is their number.

    Args:
        accept_as_turn: accepts a prompt as an ordinary one; with an error, its turn ends at once.
    """

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        agent: SessionAgent,
        *,
        ids: ClientIds,
        accept_as_turn: Callable[[SteeredPrompt, Error | None], Awaitable[Acceptance]],
    ) -> None:
        self._core = core
        self._current = current
        self._agent = agent
        self._ids = ids
        self._accept_as_turn = accept_as_turn
        self._prompts: list[SteeredPrompt] = []

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def turn(self) -> Turn | None:
        """The running turn, if a prompt can be added to it."""
        turn = self._current.running
        if turn is None or not turn.is_sent or turn.cancel_cause is not None:
            return None
        context = self._core.context
        if not self._core.is_open or context.is_draining or context.is_reloading:
            return None
        return turn if self._agent.backend_agent.can_steer else None

    def find(self, client_id: str | None) -> SteeredPrompt | None:
        """Return the prompt with that client id, if it is neither accepted nor refused yet."""
        if client_id is None or not self._prompts:
            return None
        return next((prompt for prompt in self._prompts if prompt.client_id == client_id), None)

    async def begin(self, prompt: SteeredPrompt) -> None:
        """Store a prompt, and send it to the agent.

        Raises:
            Error: ``queue_full``; or ``internal``, it cannot be stored.
        """
        context, row = self._core.context, self._core.row
        size = len(prompt.blocks)
        context.quotas.waiting_bytes.acquire(row.app_name, size)
        prompt.reserved_bytes = size
        self._prompts.append(prompt)
        stored = SteerRow(prompt.id, row.n, prompt.client_id, prompt.turn.index, prompt.blocks)
        try:
            await to_completion(context.writer.commit([statements.insert_steer(stored)]))
        except BaseException:
            self._forget(prompt, [])
            raise
        refusal = context.accounts.refusal(row.app_name)
        if self.turn is not prompt.turn or refusal is not None:  # since it was checked
            self._decide(prompt, SteerOutcome.REFUSED)
        else:
            decide = functools.partial(self._decide, prompt)
            prompt.agent_request = self._agent.backend_agent.steer(prompt.blocks, decide)

    def _decide(self, prompt: SteeredPrompt, outcome: SteerOutcome) -> None:
        if prompt.decided.is_set():
            return
        prompt.decided.set()
        if outcome is not SteerOutcome.ACCEPTED:
            name = f"steer-{self._core.id}"
            self._core.context.tasks.spawn(self._resolve_otherwise(prompt, outcome), name)
            return
        fields = entries.turn_steer_fields(prompt.blocks, prompt.client_id)
        seq = self._core.log.append("turn_steer", prompt.turn.index, fields)
        # Without a client id nobody can ask for it again.
        keeps_row = prompt.client_id is not None
        end = statements.accept_steer if keeps_row else statements.delete_steer
        acceptance = Acceptance(prompt.turn, is_steered=True)
        self._ids.add(prompt.client_id, acceptance, seq)
        self._forget(prompt, [end(prompt.id)])
        prompt.accept(acceptance)

    async def _resolve_otherwise(self, prompt: SteeredPrompt, outcome: SteerOutcome) -> None:
        # A process that has ended may have worked on the prompt, so it is not sent again.
        is_lost = outcome is SteerOutcome.LOST
        error = agent_failed(AGENT_GONE) if is_lost else None
        failure: Exception
        try:
            if not prompt.request.or_queue:
                raise error or NotSteeredError
            acceptance = await self._accept_as_turn(prompt, error)
        except (Error, NotSteeredError) as refusal:
            failure = refusal
        except BaseException:
            self._forget(prompt, [statements.delete_steer(prompt.id)])
            prompt.refuse(internal())
            raise
        else:
            self._forget(prompt, [])
            prompt.accept(acceptance)
            return
        self._forget(prompt, [statements.delete_steer(prompt.id)])
        prompt.refuse(failure)

    def _forget(self, prompt: SteeredPrompt, transaction: list[Statement]) -> None:
        context = self._core.context
        self._prompts.remove(prompt)
        context.quotas.waiting_bytes.release(self._core.row.app_name, prompt.reserved_bytes)
        prompt.reserved_bytes = 0
        if transaction:
            context.writer.add(transaction)

    # A reload of the server

    @property
    def is_settled(self) -> bool:
        """Whether the agent has received every prompt, and has not decided one just now."""
        return all(prompt.agent_request and not prompt.decided.is_set() for prompt in self._prompts)

    def pack(self) -> list[CarriedSteer]:
        return [
            CarriedSteer(
                id=prompt.id,
                blocks=prompt.blocks,
                client_id=prompt.client_id,
                timeout=prompt.timeout,
                request_id=prompt.request_id,
                or_queue=prompt.request.or_queue,
                agent_request=prompt.agent_request,
            )
            for prompt in self._prompts
        ]

    def restore(self, turn: Turn, carried: Iterable[CarriedSteer]) -> None:
        """Await the agent's responses to the prompts that an earlier version has sent it."""
        quota, app_name = self._core.context.quotas.waiting_bytes, self._core.row.app_name
        for steered in carried:
            request = SteerRequest(steered.or_queue)
            about = {"timeout": steered.timeout, "request_id": steered.request_id}
            prompt = SteeredPrompt(turn, request, steered.blocks, steered.client_id, **about)  # type: ignore[arg-type]
            prompt.id, prompt.agent_request = steered.id, steered.agent_request
            with contextlib.suppress(Error):  # the limit may be smaller now
                quota.acquire(app_name, len(steered.blocks))
                prompt.reserved_bytes = len(steered.blocks)
            self._prompts.append(prompt)
            decide = functools.partial(self._decide, prompt)
            self._core.context.backend.restore_steer(self._core.id, steered.agent_request, decide)

    # The end of the turn

    async def settle(self, timeout: float) -> None:
        """Wait for the agent's responses after the end of its turn.

        An agent that does not respond is killed: it might carry out the prompt later.
        """
        undecided = [prompt for prompt in self._prompts if not prompt.decided.is_set()]
        try:
            async with asyncio.timeout(timeout):
                for prompt in undecided:
                    await prompt.decided.wait()
        except TimeoutError:
            logger.warning(
                "the agent does not respond to a steered prompt; killed",
                extra=self._core.log_extra(),
            )
            await self._agent.backend_agent.kill()
            for prompt in undecided:
                self._decide(prompt, SteerOutcome.LOST)

    async def finish(self, timeout: float) -> None:
        """Wait until every prompt is accepted or refused; see :meth:`settle`."""
        prompts = tuple(self._prompts)
        await self.settle(timeout)
        for prompt in prompts:
            await asyncio.wait({asyncio.ensure_future(prompt.wait())})
