"""The proxy on an agent's stdin and stdout.

Whole lines pass in both directions as they were written. The server sees a prompt before the agent
does and a response before acpx does. It keeps the agent's requests for permission and input for
itself, and may insert lines of its own: a cancel, a response, a request.

acpx does not receive texts, thoughts, tool calls and plans. It does not need them, but would parse
each of them for its own record, and compete with the server for the processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

from ...codec import parse_rpc
from ...reload.state import Inherited, PassedDescriptors
from ...sandbox.sandbox import Sandbox
from ..acp_methods import FORK, SESSION_METHODS
from ..line_reader import LineReader
from ..output_limits import Backpressure
from ..process.process_tree import RlimitTag
from ..program_output import KEPT_BYTES
from .acpx_lines import AcpxLines
from .channel import Channel
from .conversation import ProxiedConversation
from .incomplete_messages import IncompleteMessages, MessageMemory
from .own_requests import OwnRequests
from .proxy_handler import ProxyHandler
from .proxy_state import ProxyState

logger = logging.getLogger(__name__)


class StdioProxy:
    """One agent process, with the server between acpx and its pipes.

    Args:
        pid: the agent. Its launcher waits until the proxy is connected.
        handler: decides over prompts and receives the agent's messages.
        backpressure: whether the log accepts more messages.
        env_tag: ``NAME=value`` in the environment of the agent and its descendants.
        rlimit_tag: the return value of :func:`process_tree.tag_process`.
        owner: returns the app that the agent works for.
        pidfd: of a process that an earlier version of the server knew; it is not read from before
            :meth:`resume` is called.
        incomplete: counts the incomplete messages of all agents.

    Attributes:
        is_killed: the server killed the process.
        sandbox: the sandbox of the process.
        ended: set when the process has ended.
        own_requests: the server's requests to the agent.
    """

    def __init__(
        self,
        pid: int,
        handler: ProxyHandler,
        backpressure: Backpressure,
        *,
        env_tag: bytes,
        rlimit_tag: RlimitTag | None,
        owner: Callable[[], str],
        incomplete: IncompleteMessages,
        pidfd: int | None = None,
    ) -> None:
        self.pid = pid
        self.env_tag = env_tag
        self.rlimit_tag = rlimit_tag
        self.is_killed = False
        self.sandbox: Sandbox | None = None
        self.ended = asyncio.Event()
        is_paused = pidfd is not None
        self._pidfd = os.pidfd_open(pid) if pidfd is None else pidfd
        self._handler = handler
        self._backpressure = backpressure
        self._capacity_wait: asyncio.Task[None] | None = None
        self._is_muted = False  # a message exceeded a limit: later output is discarded
        self._to_agent = Channel(self._acpx_wrote, is_paused=is_paused)
        self._to_acpx = Channel(self._agent_wrote, is_paused=is_paused)
        self._agent_lines = LineReader(incomplete.max_message_bytes)
        self._memory = MessageMemory(
            incomplete,
            owner,
            pause=lambda: self._to_acpx.pause("memory"),
            resume=lambda: self._to_acpx.resume("memory"),
            on_expired=lambda: self._refuse_output("a large message too slowly"),
        )
        self._stray_output = bytearray()
        self._conversation = ProxiedConversation()
        self.own_requests = OwnRequests(self._to_agent.write, self._conversation)
        self._from_acpx = AcpxLines(
            handler, self._conversation, self._to_agent, answer=self._to_acpx.write
        )

    async def connect(self, acpx_in: int, acpx_out: int) -> tuple[int, int]:
        """Put the server between acpx and the agent.

        Args:
            acpx_in: descriptor from which acpx's lines are read.
            acpx_out: descriptor to which the agent's lines are written.

        Returns:
            The descriptors that become the agent's stdin and stdout. The caller hands them over and
            closes them.

        Raises:
            OSError: no descriptors are left. The proxy is not connected, and the descriptors that
                it was given are closed.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._pidfd)

            def own(descriptor: int, mode: str) -> Any:
                return undo.enter_context(os.fdopen(descriptor, mode, 0))

            from_acpx, to_acpx = own(acpx_in, "rb"), own(acpx_out, "wb")
            agent_stdin, write_end = os.pipe()
            undo.callback(os.close, agent_stdin)
            to_agent = own(write_end, "wb")
            read_end, agent_stdout = os.pipe()
            undo.callback(os.close, agent_stdout)
            from_agent = own(read_end, "rb")
            # Both targets first: the proxy may respond as soon as it reads a source.
            await self._to_agent.open_target(to_agent, undo)
            await self._to_acpx.open_target(to_acpx, undo)
            await self._to_agent.open_source(from_acpx, undo)
            await self._to_acpx.open_source(from_agent, undo)
            asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)
            undo.pop_all()
        return agent_stdin, agent_stdout

    @property
    def session_id(self) -> str | None:
        """The agent's own id of the session, once it is known."""
        return self._conversation.session_id

    @property
    def is_prompt_held(self) -> bool:
        """Whether a prompt of acpx waits until it may pass."""
        return self._from_acpx.is_prompt_held

    # A reload of the server.

    def pause(self) -> None:
        """Leave all further data in the pipes."""
        self._to_agent.pause("reload")
        self._to_acpx.pause("reload")

    def resume(self) -> None:
        """Read on, first what the earlier version of the server had read and not handled."""
        self._from_acpx.forward_waiting()
        self._to_agent.resume("reload")
        self._to_acpx.resume("reload")

    def pack(self, passed: PassedDescriptors, *, has_sandbox: bool) -> ProxyState:
        return ProxyState(
            pid=self.pid,
            pidfd=passed.add(self._pidfd),
            env_tag=self.env_tag,
            rlimit_tag=self.rlimit_tag,
            to_agent=self._to_agent.pack(passed),
            to_acpx=self._to_acpx.pack(passed),
            acpx_rest=self._from_acpx.rest,
            agent_rest=self._agent_lines.rest,
            waiting_lines=[*self._from_acpx.waiting],
            stray_output=self.stray_output,
            conversation=self._conversation.pack(),
            own_requests=self.own_requests.pack(),
            is_prompting=self._from_acpx.is_prompting,
            prompt_id=self._from_acpx.prompt_id,
            has_sandbox=has_sandbox,
        )

    async def restore(self, state: ProxyState, inherited: Inherited) -> None:
        """Connect the pipes of an earlier version of the server."""
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._pidfd)
            await self._to_agent.restore(state.to_agent, inherited, undo)
            await self._to_acpx.restore(state.to_acpx, inherited, undo)
            asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)
            undo.pop_all()
        self._from_acpx.restore(state)
        self._agent_lines.feed(state.agent_rest)
        self._memory.update(self._agent_lines.size)
        self._stray_output += state.stray_output
        self._conversation.restore(state.conversation)
        self.own_requests.restore(state.own_requests)

    # From acpx to the agent.

    def _acpx_wrote(self, data: bytes) -> None:
        try:
            self._from_acpx.feed(data)
        except OverflowError:
            self.kill()

    # From the agent to acpx.

    def _agent_wrote(self, data: bytes) -> None:
        if self._is_muted:
            return
        try:
            lines = self._agent_lines.feed(data)
            self._memory.update(self._agent_lines.size)
            self._handle_lines(lines)
        except OverflowError as error:
            self._refuse_output(str(error))
        except Exception:
            logger.exception("agent %d: a message cannot be handled; killing the agent", self.pid)
            self.kill()
        if self._backpressure.has_capacity:
            self._memory.message_stored()
        else:
            self._pause_for_log()

    def _refuse_output(self, reason: str) -> None:
        logger.warning("agent %d wrote %s; killing it", self.pid, reason)
        self._is_muted = True
        self.kill()

    def _handle_lines(self, lines: list[bytes]) -> None:
        for line in lines:
            message = parse_rpc(line)
            if message is None:
                if line.strip():
                    self._keep_stray(line)
                    logger.debug("agent %d: skipped a line that is not JSON-RPC", self.pid)
            elif self._handle_message(line, message):
                self._to_acpx.write(line)

    def _keep_stray(self, line: bytes) -> None:
        self._stray_output += line[-KEPT_BYTES:] + b"\n"
        del self._stray_output[:-KEPT_BYTES]

    @property
    def stray_output(self) -> bytes:
        """The end of the output on stdout that is not JSON-RPC."""
        return bytes(self._stray_output)

    def _handle_message(self, line: bytes, message: dict[str, Any]) -> bool:
        """Report a message of the agent. Return whether acpx receives it, too."""
        method = message.get("method")
        if method is None:
            if self.own_requests.handle(message):
                return False
            return self._handle_response(line, message)
        if "id" in message:
            if method == "session/request_permission":
                self._handler.permission_requested(message["id"], message.get("params"))
            elif method == "elicitation/create":
                self._handler.elicitation_requested(message["id"], message.get("params"))
            else:
                return True
            return False
        replayed = self._conversation.is_loading
        return self._handler.notification_received(line, message, replayed=replayed)

    def _handle_response(self, line: bytes, message: dict[str, Any]) -> bool:
        """Handle a response to acpx. Return whether acpx receives it."""
        request_id = message.get("id")
        prompts = self._from_acpx
        if prompts.is_prompting and request_id == prompts.prompt_id:
            prompts.is_prompting = False
            self._handler.response_received(line, message)
        elif (request := self._conversation.request_of(request_id)) is not None:
            method, changes = request
            returned = message.get("result")
            result = returned if isinstance(returned, dict) and "error" not in message else None
            if method == FORK and result is None:
                self._to_agent.write(self._conversation.begin_instead(message.get("error")))
                return False
            if method == FORK:
                self._handler.conversation_forked()
            if method in SESSION_METHODS:
                self._conversation.note_opened(method, result)
                self._handler.session_opened(result, message.get("error"))
            elif result is not None:
                self._handler.request_succeeded(method, changes, result)
            else:
                self._handler.request_refused(method)
        return True

    def _pause_for_log(self) -> None:
        if self._capacity_wait is None and not self.ended.is_set():
            self._to_acpx.pause("log")
            self._capacity_wait = asyncio.create_task(self._resume_after_log())

    async def _resume_after_log(self) -> None:
        try:
            await self._backpressure.wait_for_capacity()
        finally:
            self._capacity_wait = None
            self._memory.message_stored()
            self._to_acpx.resume("log")

    # The end of the process.

    def kill(self) -> None:
        """Kill the agent's process group."""
        if self.ended.is_set():
            return
        self.is_killed = True
        with contextlib.suppress(ProcessLookupError):
            # The process is not reaped yet, so its pid and its group's id are not reused.
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.killpg(self.pid, signal.SIGKILL)

    def _process_ended(self) -> None:
        """Read the rest of the output, and close the pipes.

        A descendant of the agent may hold its stdout open, so the end of stdout is not awaited.
        """
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._to_acpx.read_rest()
        os.close(self._pidfd)
        self._pidfd = -1
        self._from_acpx.waiting.clear()
        self._to_agent.close()
        self._to_acpx.close()
        if self._capacity_wait is not None:
            self._capacity_wait.cancel()
        if not (rest := self._agent_lines.rest).startswith(b"{"):  # else it is half a message
            self._keep_stray(rest)
        self._memory.close()
        self.ended.set()
        self.own_requests.end()
        self._handler.process_ended(self)
