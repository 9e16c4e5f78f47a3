"""The seam: the server's place in the middle of an agent's stdin and stdout.

Whole lines go through both ways as they came. On the way the server sees the
prompt go up and its answer come down, keeps the agent's permission requests
for itself, and may put lines of its own (a cancel, an answer) in between.

What acpx does not need it does not get: the updates that only tell the story
of a turn (text, thoughts, tool calls, plans) are for the log and the viewers.
acpx would chew each of them for its own record, in competition with the server
for the same cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from ...codec import dumps, parse_message, parse_rpc
from ..base import Backpressure
from ..process.process_tree import RlimitTag
from ..program_output import KEPT_BYTES
from ..settings import SETTERS
from .outline import with_blocks, with_preface

logger = logging.getLogger(__name__)

MAX_PROMPT_LINE_BYTES = 64 << 20
"""The limit of a line that acpx writes. acpx has the same limit."""
COUNTED_BYTES = 256 << 10
"""What is smaller is not counted."""
BACKLOG_BYTES = 4 << 20
"""Above this much unread by one side the other side is left in its pipe."""

STORY_UPDATES = frozenset(
    {
        "user_message_chunk",
        "agent_message_chunk",
        "agent_thought_chunk",
        "tool_call",
        "tool_call_update",
        "plan",
    }
)
_OPENING = frozenset({"session/new", "session/load", "session/resume"})
_WATCHED = _OPENING | SETTERS | {"initialize"}
OWN_ID = "clawdforge-%d"
"""Ids of the server's own requests; acpx numbers its requests."""


class Handler(Protocol):
    """Whose agent it is."""

    def prompt_waits_for(self) -> asyncio.Future[Any] | None:
        """What must be done before the prompt that goes up is asked about, if anything.

        It is asked again when that is done.
        """

    def whole_prompt(self, passed: Any) -> bytes | None:
        """The JSON of the blocks that the agent gets instead of those that acpx has *passed*."""

    def admit_prompt(self) -> bool:
        """A prompt is to go up; False holds it back, and acpx is told that it was cancelled."""

    def preface(self, blocks: Any, *, fresh: bool) -> str | None:
        """A text for the agent in front of a prompt; *fresh*: the first of its conversation."""

    def prompt_sent(self, fresh: bool) -> None:
        """It has gone up."""

    def notified(self, line: bytes, message: dict[str, Any], *, replayed: bool) -> None:
        """A notification; *replayed* by session/load, it tells an old story."""

    def answered(self, line: bytes, message: dict[str, Any]) -> None: ...

    def permission_requested(self, raw_id: Any, params: Any) -> None: ...

    def opened(self, result: dict[str, Any] | None, error: Any) -> None:
        """The agent's answer to session/new, session/load or session/resume; None: an error."""

    def replied(self, method: str, params: Mapping[str, Any], result: dict[str, Any]) -> None:
        """The agent's answer to ``initialize``, or to a change of its settings."""

    def gone(self, seam: StdioProxy) -> None:
        """The agent has ended, and all that it wrote has been seen."""


class Lines:
    """Cuts a byte stream into lines without joining a long one piece by piece.

    Args:
        limit: bytes of a line.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._partial: list[bytes] = []
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of a line that has not come to its end."""
        return self._size

    @property
    def rest(self) -> bytes:
        """The beginning of a line that has not come to its end."""
        return b"".join(self._partial)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that *data* completes, without their ends.

        Raises:
            OverflowError: a line is too long.
        """
        lines = data.split(b"\n")
        if len(lines) > 1 and self._partial:
            lines[0] = b"".join([*self._partial, lines[0]])
            self._partial.clear()
            self._size = 0
        if tail := lines.pop():
            self._partial.append(tail)
            self._size += len(tail)
            if self._size > self._limit:
                self._partial.clear()
                self._size = 0
                raise OverflowError("a message with too many bytes")
        return lines


class Unfinished:
    """Counts the bytes of incomplete messages of each app's agents.

    Args:
        limit: bytes of one app.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sizes: dict[StdioProxy, tuple[str, int]] = {}
        self._totals: Counter[str] = Counter()

    def note(self, agent: StdioProxy, owner: str, size: int) -> None:
        """*agent*'s message has *size* bytes by now.

        Raises:
            OverflowError: the app's agents hold too much.
        """
        before, held = self._sizes.pop(agent, (owner, 0))
        self._totals[before] -= held
        if size > COUNTED_BYTES:
            if self._totals[owner] + size > self._limit:
                raise OverflowError("too many bytes of the app's messages at once")
            self._totals[owner] += size
            self._sizes[agent] = owner, size
        if not self._totals[before]:
            del self._totals[before]


class _Reader(asyncio.Protocol):
    """Feeds what one side writes to the seam, a chunk at a time."""

    def __init__(self, feed: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._feed = feed
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def eof_received(self) -> None:
        self._ended()


class _Writer(asyncio.BaseProtocol):
    """Stops the reader of the other side while this one does not read."""

    def __init__(self, seam: StdioProxy, *, up: bool) -> None:
        self._seam = seam
        self._up = up

    def pause_writing(self) -> None:
        self._seam.hold(self._up, "other side")

    def resume_writing(self) -> None:
        self._seam.release(self._up, "other side")


class StdioProxy:
    """One agent process, between acpx and its pipes.

    Args:
        pid: the agent, which waits in its launcher until the seam is in place.
        pressure: whether the log has room for what the agent says.
        env_tag: ``NAME=value`` in the environment of the agent and its descendants.
        rlimit_tag: the return value of :func:`process_tree.tag_process`.
        owner: the app that the agent works for.
        unfinished: counts the incomplete messages of all agents.
        max_message_bytes: a longer line of the agent ends it.
    """

    def __init__(
        self,
        pid: int,
        handler: Handler,
        pressure: Backpressure,
        *,
        env_tag: bytes,
        rlimit_tag: RlimitTag | None,
        owner: Callable[[], str],
        unfinished: Unfinished,
        max_message_bytes: int,
    ) -> None:
        self.pid = pid
        self.env_tag = env_tag
        self.rlimit_tag = rlimit_tag
        self._handler = handler
        self._pressure = pressure
        self._pidfd = os.pidfd_open(pid)
        self._owner = owner
        self._unfinished = unfinished
        self._is_counted = False
        self._is_refused = False  # what comes after a message over the limits is not heard
        self._up_lines = Lines(MAX_PROMPT_LINE_BYTES)
        self._going_up: deque[bytes] = deque()
        self._down_lines = Lines(max_message_bytes)
        self._readers: dict[bool, asyncio.ReadTransport] = {}
        self._writers: dict[bool, asyncio.WriteTransport] = {}
        self._held: dict[bool, set[str]] = {True: set(), False: set()}
        self._watched: dict[Any, tuple[str, Mapping[str, Any]]] = {}
        self._own: dict[Any, asyncio.Future[dict[str, Any]]] = {}
        self._own_ids = itertools.count(1)
        self._fresh = False
        self._loading = False
        self._prompt_id: Any = None
        self._prompting = False
        self._session_id: str | None = None
        self._waiting_for_room: asyncio.Task[None] | None = None
        self._agent_out = -1
        self._noise = bytearray()
        self.is_killed = False
        self.over = asyncio.Event()

    async def join(self, acpx_in: int, acpx_out: int) -> tuple[int, int]:
        """Put the seam in place.

        Args:
            acpx_in: descriptor from which acpx's lines are read.
            acpx_out: descriptor to which the agent's lines are written.

        Returns:
            The descriptors that become the agent's stdin and stdout; the caller
            hands them over and closes them.

        Raises:
            OSError: there are no descriptors left. The seam is not in place, and what
                it was given is closed.
        """
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._pidfd)

            def own(descriptor: int, mode: str) -> Any:
                return undo.enter_context(os.fdopen(descriptor, mode, 0))

            from_acpx, to_acpx = own(acpx_in, "rb"), own(acpx_out, "wb")
            agent_stdin, write_end = os.pipe()
            undo.callback(os.close, agent_stdin)
            to_agent = own(write_end, "wb")
            self._agent_out, agent_stdout = os.pipe()
            undo.callback(os.close, agent_stdout)
            from_agent = own(self._agent_out, "rb")
            for up, target in ((True, to_agent), (False, to_acpx)):
                writer, _ = await loop.connect_write_pipe(partial(_Writer, self, up=up), target)
                undo.callback(writer.abort)
                writer.set_write_buffer_limits(high=BACKLOG_BYTES)
                self._writers[up] = writer
            for up, source, feed in (
                (True, from_acpx, self._feed_up),
                (False, from_agent, self._feed_down),
            ):
                protocol = partial(_Reader, feed, partial(self._ended, up))
                reader, _ = await loop.connect_read_pipe(protocol, source)
                undo.callback(reader.close)
                self._readers[up] = reader
            loop.add_reader(self._pidfd, self._died)
            undo.pop_all()
        return agent_stdin, agent_stdout

    # Up: acpx to agent.

    def _feed_up(self, data: bytes) -> None:
        try:
            lines = self._up_lines.feed(data)
        except OverflowError:
            self.kill()
            return
        self._going_up.extend(lines)
        self._go_up()

    def _go_up(self) -> None:
        while self._going_up:
            message = parse_message(self._going_up[0])
            if message is not None and message.get("method") == "session/prompt":
                waits_for = self._handler.prompt_waits_for()
                if waits_for is not None:
                    self.hold(True, "prompt")
                    waits_for.add_done_callback(self._go_on)
                    return
                self._pass_prompt(self._going_up.popleft(), message)
                continue
            if message is not None:
                self._note(message)
            self._send(True, self._going_up.popleft())

    def _go_on(self, _: asyncio.Future[Any]) -> None:
        self.release(True, "prompt")
        self._go_up()

    def _pass_prompt(self, line: bytes, message: dict[str, Any]) -> None:
        params = message.get("params")
        blocks = params.get("prompt") if isinstance(params, dict) else None
        whole = self._handler.whole_prompt(blocks)
        if not self._handler.admit_prompt():
            answer = {"jsonrpc": "2.0", "id": message.get("id")}
            self._send(False, dumps({**answer, "result": {"stopReason": "cancelled"}}))
            return
        self._prompting = True
        self._prompt_id = message.get("id")
        self._note_session(params)
        fresh, self._fresh = self._fresh, False
        preface = self._handler.preface(blocks, fresh=fresh)
        if preface is not None:
            whole = with_preface(dumps(blocks) if whole is None else whole, preface)
        if whole is not None:
            line = with_blocks(message, whole)
        self._send(True, line)  # first: the agent works while the session takes note of it
        self._handler.prompt_sent(fresh)

    def _note(self, message: dict[str, Any]) -> None:
        """Remember what the agent is asked, where the answer is of use."""
        method = message.get("method")
        if method in _WATCHED:
            params = message.get("params")
            asked = params if method in SETTERS and isinstance(params, dict) else {}
            self._watched[message.get("id")] = method, asked
            if method in _OPENING:
                self._loading = method == "session/load"
                self._note_session(message.get("params"))

    def _note_session(self, params: Any) -> None:
        if isinstance(params, dict) and isinstance(params.get("sessionId"), str):
            self._session_id = params["sessionId"]

    # Down: agent to acpx.

    def _feed_down(self, data: bytes) -> None:
        if self._is_refused:
            return
        try:
            lines = self._down_lines.feed(data)
            if self._is_counted or self._down_lines.size > COUNTED_BYTES:
                self._count_unfinished(self._down_lines.size)
            self._take_lines(lines)
        except OverflowError as error:
            logger.warning("agent %d wrote %s; killing it", self.pid, error)
            self._is_refused = True
            self.kill()
        except Exception:
            logger.exception("agent %d: what it wrote cannot be handled; killing it", self.pid)
            self.kill()
        if not self._pressure.has_room:
            self._wait_for_room()

    def _count_unfinished(self, size: int) -> None:
        self._is_counted = size > COUNTED_BYTES
        self._unfinished.note(self, self._owner(), size)

    def _take_lines(self, lines: list[bytes]) -> None:
        for line in lines:
            message = parse_rpc(line)
            if message is None:
                if line.strip():
                    self._note_noise(line)
                    logger.debug("agent %d: skipped a line that is not JSON-RPC", self.pid)
            elif self._pass_down(line, message):
                self._send(False, line)

    def _note_noise(self, line: bytes) -> None:
        self._noise += line[-KEPT_BYTES:] + b"\n"
        del self._noise[:-KEPT_BYTES]

    @property
    def noise(self) -> bytes:
        """The end of what the agent wrote on its stdout besides messages."""
        return bytes(self._noise)

    def _pass_down(self, line: bytes, message: dict[str, Any]) -> bool:
        """Tell the handler; whether acpx gets the line too."""
        method = message.get("method")
        if method is None:
            own = self._own.get(message["id"])
            if own is not None:
                if not own.done():
                    own.set_result(message)
                return False
            self._answer_down(line, message)
            return True
        if "id" in message:
            if method == "session/request_permission":
                self._handler.permission_requested(message["id"], message.get("params"))
                return False
            return True
        self._handler.notified(line, message, replayed=self._loading)
        return not (method == "session/update" and _is_story(message))

    def _answer_down(self, line: bytes, message: dict[str, Any]) -> None:
        answered = message.get("id")
        if self._prompting and answered == self._prompt_id:
            self._prompting = False
            self._handler.answered(line, message)
        elif answered in self._watched:
            method, asked = self._watched.pop(answered)
            result = message.get("result")
            if "error" in message or not isinstance(result, dict):
                result = None
            if method in _OPENING:
                self._opened(method, result, message.get("error"))
            elif result is not None:
                self._handler.replied(method, asked, result)

    def _opened(self, method: str, result: dict[str, Any] | None, error: Any) -> None:
        self._loading = False
        if result is not None:
            self._fresh = method == "session/new"
            self._note_session(result)
        self._handler.opened(result, error)

    # What the server says itself.

    async def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the agent something in its session, of which acpx learns nothing.

        Returns:
            The agent's response.

        Raises:
            ConnectionError: the agent has ended.
        """
        if self.over.is_set():
            raise ConnectionResetError
        own_id = OWN_ID % next(self._own_ids)
        response: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._own[own_id] = response
        request = {"id": own_id, "method": method}
        params = {"sessionId": self._session_id, **params}
        self._send(True, dumps({"jsonrpc": "2.0", **request, "params": params}))
        try:
            return await response
        finally:
            self._own.pop(own_id, None)

    def cancel(self) -> None:
        """Tell the agent to end the running turn."""
        params = {"sessionId": self._session_id}
        self._send(True, dumps({"jsonrpc": "2.0", "method": "session/cancel", "params": params}))

    def answer(self, raw_id: Any, result: dict[str, Any]) -> None:
        """Answer a request of the agent's."""
        self._send(True, dumps({"jsonrpc": "2.0", "id": raw_id, "result": result}))

    def kill(self) -> None:
        """Kill the agent's process group."""
        if self.over.is_set():
            return
        self.is_killed = True
        with contextlib.suppress(ProcessLookupError):
            # The pid is the agent's as long as it is not reaped, and then its group's.
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.killpg(self.pid, signal.SIGKILL)

    def _send(self, up: bool, line: bytes) -> None:
        writer = self._writers[up]
        if not writer.is_closing():
            writer.write(line + b"\n")

    # Pressure.

    def hold(self, up: bool, why: str) -> None:
        """Leave what that side writes in its pipe until every reason is gone."""
        self._held[up].add(why)
        if not self._readers[up].is_closing():
            self._readers[up].pause_reading()

    def release(self, up: bool, why: str) -> None:
        self._held[up].discard(why)
        if not self._held[up] and not self._readers[up].is_closing():
            self._readers[up].resume_reading()

    def _wait_for_room(self) -> None:
        if self._waiting_for_room is None and not self.over.is_set():
            self.hold(False, "log")
            self._waiting_for_room = asyncio.create_task(self._resume_when_there_is_room())

    async def _resume_when_there_is_room(self) -> None:
        try:
            await self._pressure.room()
        finally:
            self._waiting_for_room = None
            self.release(False, "log")

    # The end.

    def _ended(self, up: bool) -> None:
        """One side has closed its end: pass that on, too."""
        self._writers[up].close()

    def _died(self) -> None:
        """The agent is dead; a grandchild may hold its stdout, so do not wait for its end."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self._readers[False].is_closing():
            self._readers[False].pause_reading()
            # One pipe's content at most; a grandchild that goes on writing is not waited for.
            with contextlib.suppress(BlockingIOError):
                if data := os.read(self._agent_out, 1 << 20):
                    self._feed_down(data)
        os.close(self._pidfd)
        self._pidfd = -1
        self._going_up.clear()
        for transport in (*self._readers.values(), *self._writers.values()):
            transport.close()
        if self._waiting_for_room is not None:
            self._waiting_for_room.cancel()
        if not (rest := self._down_lines.rest).startswith(b"{"):  # no half of a message
            self._note_noise(rest)
        self._count_unfinished(0)
        self.over.set()
        for response in self._own.values():
            if not response.done():
                response.set_exception(ConnectionResetError())
        self._handler.gone(self)


def _is_story(message: dict[str, Any]) -> bool:
    try:
        return message["params"]["update"]["sessionUpdate"] in STORY_UPDATES
    except (KeyError, TypeError):
        return False
