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
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ...codec import dumps, parse_message, parse_rpc
from ...errors import Error
from ...sandbox.sandbox import Sandbox
from .. import steering
from ..acp_settings import SESSION_METHODS, SETTERS, STARTING_METHODS
from ..base import Backpressure
from ..line_reader import LineReader
from ..process.process_tree import RlimitTag
from ..program_output import KEPT_BYTES
from .channel import Channel
from .incomplete_messages import IncompleteMessages, MessageMemory
from .outline import refusal, with_blocks, with_fields, with_preface
from .own_requests import OnResponse, OwnRequests
from .proxy_handler import ProxyHandler
from .withheld import is_withheld

logger = logging.getLogger(__name__)

MAX_PROMPT_LINE_BYTES = 64 << 20
"""The limit of a line that acpx writes. acpx has the same limit."""

TRACKED_METHODS = STARTING_METHODS | SETTERS
"""The requests of acpx whose responses the handler receives, too."""


class StdioProxy:
    """One agent process, with the server between acpx and its pipes.

    Args:
        pid: the agent. Its launcher waits until the proxy is connected.
        handler: decides over prompts and receives the agent's messages.
        backpressure: whether the log accepts more messages.
        env_tag: ``NAME=value`` in the environment of the agent and its descendants.
        rlimit_tag: the return value of :func:`process_tree.tag_process`.
        owner: returns the app that the agent works for.
        incomplete: counts the incomplete messages of all agents.

    Attributes:
        is_killed: the server killed the process.
        sandbox: the sandbox of the process.
        ended: set when the process has ended.
        session_id: the agent's own id of the session, once it is known.
        is_prompt_held: a prompt of acpx waits until it may pass.
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
    ) -> None:
        self.pid = pid
        self.env_tag = env_tag
        self.rlimit_tag = rlimit_tag
        self.is_killed = False
        self.sandbox: Sandbox | None = None
        self.ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        self._handler = handler
        self._backpressure = backpressure
        self._capacity_wait: asyncio.Task[None] | None = None
        self._is_muted = False  # a message exceeded a limit: later output is discarded
        self._to_agent = Channel(self._acpx_wrote)
        self._acpx_lines = LineReader(MAX_PROMPT_LINE_BYTES)
        self._waiting_lines: deque[bytes] = deque()
        self._to_acpx = Channel(self._agent_wrote)
        self._agent_lines = LineReader(incomplete.one)
        self._memory = MessageMemory(
            incomplete,
            owner,
            pause=lambda: self._to_acpx.pause("memory"),
            resume=lambda: self._to_acpx.resume("memory"),
            expired=lambda: self._refuse_output("a large message too slowly"),
        )
        self._stray_output = bytearray()
        self._tracked_requests: dict[Any, tuple[str, Mapping[str, Any]]] = {}
        self._own_requests = OwnRequests(self._to_agent.write)
        self.session_id: str | None = None
        self._is_fresh = False
        self._is_loading = False
        self._prompt_id: Any = None
        self._is_prompting = False
        self.is_prompt_held = False

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

    # From acpx to the agent.

    def _acpx_wrote(self, data: bytes) -> None:
        try:
            lines = self._acpx_lines.feed(data)
        except OverflowError:
            self.kill()
            return
        self._waiting_lines.extend(lines)
        self._forward_waiting()

    def _forward_waiting(self) -> None:
        """Pass acpx's lines on, up to a prompt that must wait."""
        while self._waiting_lines:
            message = parse_message(self._waiting_lines[0])
            if message is not None and message.get("method") == "session/prompt":
                blocker = self._handler.prompt_blocker()
                if blocker is not None:
                    self.is_prompt_held = True
                    self._to_agent.pause("prompt")
                    blocker.add_done_callback(self._prompt_unblocked)
                    return
                self._forward_prompt(self._waiting_lines.popleft(), message)
                continue
            line = self._waiting_lines.popleft()
            if message is not None:
                self._track_request(message)
                if message.get("method") in STARTING_METHODS:
                    line = self._with_parameters(line, message)
            if line:
                self._to_agent.write(line)

    def _prompt_unblocked(self, _: asyncio.Future[Any]) -> None:
        self.is_prompt_held = False
        self._to_agent.resume("prompt")
        self._forward_waiting()

    def _forward_prompt(self, line: bytes, message: dict[str, Any]) -> None:
        params = message.get("params")
        blocks = params.get("prompt") if isinstance(params, dict) else None
        full = self._handler.full_prompt(blocks)
        if not self._handler.admit_prompt():
            response = {"jsonrpc": "2.0", "id": message.get("id")}
            self._to_acpx.write(dumps({**response, "result": {"stopReason": "cancelled"}}))
            return
        self._is_prompting = True
        self._prompt_id = message.get("id")
        self._note_session_id(params)
        fresh, self._is_fresh = self._is_fresh, False
        preface = self._handler.preface(blocks, fresh=fresh)
        if preface is not None:
            full = with_preface(dumps(blocks) if full is None else full, preface)
        if full is not None:
            line = with_blocks(message, full)
        self._to_agent.write(line)  # first: the agent works while the session records the start
        self._handler.prompt_sent(fresh)

    def _track_request(self, message: dict[str, Any]) -> None:
        """Remember a request of acpx if the handler is to receive its response."""
        method = message.get("method")
        if method in TRACKED_METHODS:
            params = message.get("params")
            changes = params if method in SETTERS and isinstance(params, dict) else {}
            self._tracked_requests[message.get("id")] = method, changes
            if method in SESSION_METHODS:
                self._is_loading = method == "session/load"
                self._note_session_id(params)

    def _with_parameters(self, line: bytes, message: dict[str, Any]) -> bytes:
        """Return a request that opens the conversation, with the agent's parameters.

        Returns:
            Nothing if the agent cannot take them. acpx has a response then.
        """
        try:
            return with_fields(line, message, self._handler.session_fields)
        except Error as error:
            self._tracked_requests.pop(message.get("id"), None)
            self._is_loading = False
            self._to_acpx.write(refusal(message, error))
            return b""

    def _note_session_id(self, params: Any) -> None:
        if isinstance(params, dict) and isinstance(params.get("sessionId"), str):
            self.session_id = params["sessionId"]

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
            if self._own_requests.handle(message):
                return False
            self._handle_response(line, message)
            return True
        if "id" in message:
            if method == "session/request_permission":
                self._handler.permission_requested(message["id"], message.get("params"))
            elif method == "elicitation/create":
                self._handler.elicitation_requested(message["id"], message.get("params"))
            else:
                return True
            return False
        self._handler.notification_received(line, message, replayed=self._is_loading)
        return not (method == "session/update" and is_withheld(message))

    def _handle_response(self, line: bytes, message: dict[str, Any]) -> None:
        request_id = message.get("id")
        if self._is_prompting and request_id == self._prompt_id:
            self._is_prompting = False
            self._handler.response_received(line, message)
        elif request_id in self._tracked_requests:
            method, changes = self._tracked_requests.pop(request_id)
            result = message.get("result")
            if "error" in message or not isinstance(result, dict):
                result = None
            if method in SESSION_METHODS:
                self._session_opened(method, result, message.get("error"))
            elif result is not None:
                self._handler.request_succeeded(method, changes, result)

    def _session_opened(self, method: str, result: dict[str, Any] | None, error: Any) -> None:
        self._is_loading = False
        if result is not None:
            self._is_fresh = method == "session/new"
            self._note_session_id(result)
        self._handler.session_opened(result, error)

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

    # Messages of the server.

    async def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request in the agent's session. acpx sees neither it nor the response.

        Returns:
            The agent's response.

        Raises:
            ConnectionError: the process has ended.
        """
        return await self._own_requests.call(method, {"sessionId": self.session_id, **params})

    def steer(self, blocks: bytes, on_response: OnResponse) -> None:
        """Ask the agent to add a prompt, JSON of its content blocks, to the running turn."""
        params = steering.params(dumps(self.session_id), blocks)
        self._own_requests.send(steering.METHOD, params, on_response)

    def cancel(self) -> None:
        """Ask the agent to end the running turn."""
        params = {"sessionId": self.session_id}
        self._to_agent.write(
            dumps({"jsonrpc": "2.0", "method": "session/cancel", "params": params})
        )

    def respond(self, raw_id: Any, result: Mapping[str, Any]) -> None:
        """Respond to a request of the agent."""
        self._to_agent.write(dumps({"jsonrpc": "2.0", "id": raw_id, "result": result}))

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
        self._waiting_lines.clear()
        self._to_agent.close()
        self._to_acpx.close()
        if self._capacity_wait is not None:
            self._capacity_wait.cancel()
        if not (rest := self._agent_lines.rest).startswith(b"{"):  # else it is half a message
            self._keep_stray(rest)
        self._memory.close()
        self.ended.set()
        self._own_requests.end()
        self._handler.process_ended(self)
