"""One run: its request, its folder, its deadline and its result."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from .. import safe_files
from ..agents.usage import Usage
from ..codec import dumps, loads
from ..data_dir import DataDir
from ..errors import Error, ErrorCode
from .result_schema import ResultSchema

logger = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 64 << 20
"""The largest output of an agent that becomes a result."""
KILL_WAIT_SECS = 5
"""Time that a killed process has to end."""

Effort = Literal["low", "medium", "high", "xhigh", "max"]
SystemMode = Literal["replace", "append"]
StopCause = Literal["timeout", "disconnect", "shutdown"]
"""Why a run was stopped: its deadline passed, its client disconnected, or the server stops."""

_STOP_ERRORS: Mapping[StopCause, tuple[ErrorCode, str, str]] = {
    "timeout": (ErrorCode.AGENT_TIMEOUT, "the run exceeded its time limit", "timeout"),
    "disconnect": (ErrorCode.AGENT_FAILED, "the client disconnected", "cancelled"),
    "shutdown": (ErrorCode.SERVER_RESTARTED, "the server is stopping", "cancelled"),
}
"""The error code, the message and the stop reason of a run that was stopped."""

_FENCE_OPENS = re.compile(
    r"(?:[ \t\r\n]*[\r\n])?"  # blank lines
    r"(?P<indent> {0,3})(?P<fence>`{3,}(?=[^`\r\n]*(?:[\r\n]|\Z))|~{3,})"
    r"[^\r\n]*(?:\r\n|\r|\n|\Z)"
)
_FENCE_CLOSES = {
    mark: re.compile(rf"(?<=[\r\n]) {{0,3}}({mark}{{3,}})[ \t]*(?=[\r\n]|\Z)") for mark in "`~"
}
_LAST_LINE_END = re.compile(r"(?:\r\n|\r|\n)\Z")


class RunRequest(msgspec.Struct, frozen=True):
    """The parameters of a run.

    Attributes:
        files: paths of the uploads that the agent shall read.
        timeout_secs: the client's own deadline; the server's setting is the upper limit.
        schema: the result must be valid against it.
        max_attempts: how often an agent is asked for a valid result.
        on_update: called with each update of the agent, JSON on one line.
    """

    app_name: str
    prompt: str
    agent: str | None = None
    model: str | None = None
    system: str | None = None
    system_mode: SystemMode = "replace"
    effort: Effort | None = None
    files: Sequence[Path] = ()
    timeout_secs: float | None = None
    schema: ResultSchema | None = None
    max_attempts: int = 3
    on_update: Callable[[bytes], None] | None = None


class RunResult(msgspec.Struct, frozen=True):
    """The result of a successful run.

    Attributes:
        result: JSON; see :func:`result_json`.
        session_id: of the agent's conversation, for its own logs.
        duration_ms: without the time in the queue.
    """

    result: bytes
    stop_reason: str
    usage: Usage = Usage()
    session_id: str | None = None
    duration_ms: int = 0


class RunError(Error):
    """The failure of a run. Its HTTP status is 502 whatever its code, except ``schema_failed``.

    Attributes:
        stop_reason: ``error``, ``timeout`` or ``cancelled``.
        stderr: the end of the program's stderr.
        duration_ms: without the time in the queue.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        stop_reason: str = "error",
        stderr: str = "",
        retryable: bool | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable, fields=fields)
        self.stop_reason = stop_reason
        self.stderr = stderr
        self.duration_ms = 0

    @property
    def status(self) -> int:
        return self.code.status if self.code is ErrorCode.SCHEMA_FAILED else 502


class RunFolder:
    """The folder of one run, below the data folder; agents cannot redirect it with links."""

    def __init__(self, data_dir: DataDir, run_id: str) -> None:
        self.path = data_dir.runs / run_id
        self._names = data_dir.split(self.path)

    def create(self, *names: str) -> None:
        """Create the folder or, with *names*, a folder in it.

        Raises:
            OSError: it exists, or cannot be created.
        """
        safe_files.make_folder(*self._names, *names)

    def new_file(self, name: str) -> BinaryIO:
        """Open a new file in the folder for writing.

        Raises:
            OSError: it exists, or cannot be created.
        """
        return safe_files.new_file(*self._names, name)

    def remove(self) -> None:
        """Remove the folder with its content. A failure is logged."""
        try:
            safe_files.remove(*self._names)
        except OSError as error:
            logger.error("cannot remove the folder of a run: %s", error)


class Run:
    """A run in progress.

    Attributes:
        timeout: seconds that the run may take after it has left the queue.
        task: returns the :class:`RunResult`, or raises an ``Error``.
        usage: what the agent has reported so far.
        stopped: done with the cause once :meth:`stop` was called.
    """

    def __init__(self, request: RunRequest, timeout: float) -> None:
        self.id = str(uuid.uuid4())
        self.request = request
        self.timeout = timeout
        self.usage = Usage()
        self._deadline: float | None = None
        self.task: asyncio.Task[RunResult]
        self.stopped: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()

    def note_usage(self, usage: Usage) -> None:
        """Note what the agent has used since the run began."""
        self.usage = usage

    def stop(self, cause: StopCause) -> None:
        """Stop the run. Only the first call has an effect."""
        if not self.stopped.done():
            self.stopped.set_result(cause)

    async def wait(
        self,
        work: asyncio.Future[Any],
        terminate: Callable[[], None],
        kill: Callable[[], Awaitable[None]],
        grace: float,
    ) -> StopCause | None:
        """Wait until *work* is done. End it if the deadline passes or the run is stopped.

        The time of the run begins with the first call.

        Args:
            terminate: asks the agent to end.
            kill: ends the agent; called if it has not ended after *grace* seconds.

        Returns:
            Why *work* was ended, or None if it ended by itself.
        """
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self.timeout
        await asyncio.wait(
            {work, self.stopped},
            timeout=max(0, self._deadline - loop.time()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if work.done():
            return None
        cause: StopCause = self.stopped.result() if self.stopped.done() else "timeout"
        terminate()
        await asyncio.wait({work}, timeout=grace)
        if not work.done():
            await kill()
            await asyncio.wait({work}, timeout=KILL_WAIT_SECS)
        return cause


def stopped_error(cause: StopCause, stderr: str = "") -> RunError:
    """The error of a run that was stopped."""
    code, message, stop_reason = _STOP_ERRORS[cause]
    return RunError(code, message, stop_reason=stop_reason, stderr=stderr)


def output_too_large() -> RunError:
    """The error of a run whose agent wrote more than :data:`MAX_OUTPUT_BYTES`."""
    limit = MAX_OUTPUT_BYTES >> 20
    return RunError(
        ErrorCode.AGENT_FAILED, f"the agent's output exceeds {limit} MiB", retryable=False
    )


def schema_failed(problem: str) -> RunError:
    """The error of a run whose result is not valid against the client's schema."""
    return RunError(ErrorCode.SCHEMA_FAILED, f"the result is not valid: {problem}")


def result_json(text: str) -> bytes:
    """Encode an agent's text: unchanged if it is JSON, otherwise as a JSON string.

    If all of the text is one fenced code block, by the rules of CommonMark, the fence is removed.
    """
    content = _fenced_content(text)
    if content is not None:
        text = content
    stripped = text.strip()
    try:
        loads(stripped)
    except ValueError:
        return dumps(text)
    return stripped.encode()


def _fenced_content(text: str) -> str | None:
    """The content of the one fenced code block that *text* consists of, or None."""
    opening = _FENCE_OPENS.match(text)
    if opening is None:
        return None
    fence = opening["fence"]
    content, rest = text[opening.end() :], ""  # the end of the text closes a block, too
    for closing in _FENCE_CLOSES[fence[0]].finditer(text, opening.end()):
        if len(closing[1]) >= len(fence):
            content, rest = text[opening.end() : closing.start()], text[closing.end() :]
            break
    if rest.strip(" \t\r\n"):
        return None
    if indent := len(opening["indent"]):
        content = re.sub(rf"(\A|(?<=[\r\n])) {{1,{indent}}}", "", content)
    return _LAST_LINE_END.sub("", content)
