"""One prompt, one answer: a bare ``claude -p`` process, or one turn of another agent.

A run is a task of its own. It waits for a place, works, ends in time (or is
ended: by its deadline, a client that hung up, the server's stop), and leaves
nothing but a row in ``runs``: no process, no folder, no record at acpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import re
import shutil
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from . import store
from .agents import processes
from .agents.base import AgentSpec, Backend, Context
from .agents.programs import Program, Programs
from .codec import dumps, loads, parse_message
from .config import Settings
from .errors import Error, bad_request, draining, internal
from .files import annotate
from .log import LogWriter
from .store import RunRow, Store

logger = logging.getLogger(__name__)

CLAUDE = "claude"
CLAUDE_STDIN_BYTES = 10 << 20
"""More than this the program refuses."""
MAX_ARGUMENT_BYTES = 100 << 10
"""Linux takes no argument over 128 KiB; what is longer goes by a file."""
MAX_OUTPUT_BYTES = 64 << 20
STDERR_BYTES = 8 << 10
RETRIES = 2
END_SECS = 5
"""For what was killed to be gone."""
QUEUE_RETRY_SECS = 5

WORK = "work"
READ_KINDS = frozenset({"read", "search"})

Effort = Literal["low", "medium", "high", "xhigh", "max"]
SystemMode = Literal["replace", "append"]


@dataclasses.dataclass(frozen=True, slots=True)
class RunRequest:
    """What an app asks for; ``files`` are paths that the agent is to read."""

    app_name: str
    prompt: str
    agent: str | None = None
    model: str | None = None
    system: str | None = None
    system_mode: SystemMode = "replace"
    effort: Effort | None = None
    files: Sequence[Path] = ()
    timeout_secs: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """How a run ended well; ``result`` is JSON."""

    result: bytes
    stop_reason: str
    duration_ms: int = 0


class RunFailed(Error):  # noqa: N818
    """A run without an answer; over HTTP that is always 502, whatever the code.

    Attributes:
        stop_reason: ``error``, ``timeout`` or ``cancelled``.
        stderr: the end of what the program wrote there.
        duration_ms: of the run, without its time in the queue.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        stop_reason: str = "error",
        stderr: str = "",
        retryable: bool | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable)
        self.stop_reason = stop_reason
        self.stderr = stderr
        self.duration_ms = 0

    @property
    def status(self) -> int:
        return 502


Ending = Literal["timeout", "hang-up", "stop"]
"""Why a run is ended that has not ended by itself."""

ENDINGS: Mapping[Ending, tuple[str, str, str]] = {
    "timeout": ("agent_timeout", "the run took longer than it may", "timeout"),
    "hang-up": ("agent_failed", "the client hung up", "cancelled"),
    "stop": ("server_restarted", "the server is going away", "cancelled"),
}


def _ended(ending: Ending, stderr: str = "") -> RunFailed:
    code, message, stop_reason = ENDINGS[ending]
    return RunFailed(code, message, stop_reason=stop_reason, stderr=stderr)


class Queue:
    """So many places, and a short queue for them, first come first served."""

    def __init__(self, places: int, length: int, patience: float) -> None:
        self._free = places
        self._length = length
        self._patience = patience
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def place(self, hung_up: asyncio.Future[Any]) -> AsyncIterator[None]:
        """Hold a place for the time of the block.

        Args:
            hung_up: done when the place is no longer wanted.

        Raises:
            Error: ``pool_full``; the queue is full, or it took too long.
        """
        await self._enter(hung_up)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, hung_up: asyncio.Future[Any]) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        if len(self._waiting) >= self._length:
            raise _full("the server runs all that it may, and its queue is full")
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await asyncio.wait(
                {mine, hung_up}, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif mine.exception() is None:
                self._leave()  # the place came in the same moment
            raise
        if not mine.done():
            self._waiting.remove(mine)
            raise _full("the server runs all that it may, for too long already")
        mine.result()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1

    def refuse_all(self, error: Error) -> None:
        """Let nobody wait any longer."""
        while self._waiting:
            self._waiting.popleft().set_exception(error)


def _full(message: str) -> Error:
    return Error("pool_full", message, retry_after=QUEUE_RETRY_SECS)


class Run:
    """A run on its way.

    Attributes:
        outcome: the task; it gives the :class:`Answer` or raises an :class:`Error`.
        stopped: why it is to end, once somebody has said so.
    """

    def __init__(self, request: RunRequest, timeout: float) -> None:
        self.id = str(uuid.uuid4())
        self.request = request
        self.timeout = timeout
        self.outcome: asyncio.Task[Answer]
        self.stopped: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def stop(self, reason: Ending) -> None:
        """End it, or do nothing where it has ended."""
        if not self.stopped.done():
            self.stopped.set_result(reason)

    async def watch(
        self,
        work: asyncio.Task[Any],
        terminate: Callable[[], None],
        kill: Callable[[], Awaitable[None]],
        grace: float,
    ) -> Ending | None:
        """Wait until *work* is done, or see to it.

        Returns:
            Why it was ended, where it did not end by itself.
        """
        await asyncio.wait(
            {work, self.stopped}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if work.done():
            return None
        ending: Ending = self.stopped.result() if self.stopped.done() else "timeout"
        terminate()
        await asyncio.wait({work}, timeout=grace)
        if not work.done():
            await kill()
            await asyncio.wait({work}, timeout=END_SECS)
        return ending


class Runner:
    """The runs of all apps.

    Args:
        environ: of the program: an allow-list.
        choose_agent: an agent's name, or None, to the name of one that is installed; it
            raises :class:`Error` where there is none.
    """

    def __init__(
        self,
        settings: Settings,
        database: Store,
        writer: LogWriter,
        backend: Backend,
        *,
        environ: Mapping[str, str],
        choose_agent: Callable[[str | None], Awaitable[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._store = database
        self._writer = writer
        self._backend = backend
        self._environ = environ
        self._choose_agent = choose_agent
        self._clock = clock
        self._folder = settings.data_dir / "runs"
        self._programs = Programs(environ)
        self._queue = Queue(settings.max_runs, settings.run_queue, settings.run_queue_secs)
        self._runs: set[Run] = set()
        self._is_draining = False

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._runs) - len(self._queue)

    async def start(self) -> None:
        """Take up what an earlier server left."""
        for run_id in await self._store.unfinished_runs():
            await self._backend.forget(run_id)
        await self._writer.commit([store.end_lost_runs()])
        await asyncio.to_thread(_make_empty, self._folder)

    async def stop(self) -> None:
        """Let what runs finish, for ``drain_secs``, and end the rest."""
        self._is_draining = True
        self._queue.refuse_all(draining())
        tasks = [run.outcome for run in self._runs]
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.drain_secs)
        for run in self._runs:
            run.stop("stop")
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._programs.stop()

    def begin(self, request: RunRequest) -> Run:
        """Begin a run; whoever asked for it stops it when the answer is no longer wanted.

        Raises:
            Error: ``draining``.
        """
        if self._is_draining:
            raise draining()
        longest = self._settings.run_timeout_secs
        run = Run(request, min(request.timeout_secs or longest, longest))
        run.outcome = asyncio.create_task(self._run(run), name=f"run-{run.id}")
        self._runs.add(run)
        run.outcome.add_done_callback(lambda _: self._done(run))
        return run

    def _done(self, run: Run) -> None:
        self._runs.discard(run)
        if not run.outcome.cancelled() and (error := run.outcome.exception()) is not None:
            # For the log alone: whoever asked has it from the task.
            if not isinstance(error, Error) or error.code == "internal":
                logger.error("run %s broke", run.id, exc_info=error)
            elif isinstance(error, RunFailed):
                logger.info("run %s: %s: %s", run.id, error.code, error.message[:300])

    # The way of a run.

    async def _run(self, run: Run) -> Answer:
        async with self._queue.place(run.stopped):
            began = time.monotonic()
            agent, work = await self._choose(run)
            await self._note_start(run, agent)
            try:
                answer = await work()
            except Exception as error:  # whatever it is, it is this run's end
                failure = _failed(error)
                failure.duration_ms = _ms_since(began)
                await self._note_failure(run, failure)
                raise failure from error
            answer = dataclasses.replace(answer, duration_ms=_ms_since(began))
            await self._note_end(
                run, answer.duration_ms, answer.stop_reason, result_bytes=len(answer.result)
            )
            return answer

    async def _choose(self, run: Run) -> tuple[str, Callable[[], Awaitable[Answer]]]:
        """The agent's name, and what runs it.

        Raises:
            Error: the client has asked for what cannot be.
        """
        request = run.request
        if request.agent in (None, CLAUDE):
            program = await asyncio.to_thread(self._find_claude)
            if program is not None:
                if len(request.prompt.encode()) > CLAUDE_STDIN_BYTES:
                    raise Error("payload_too_large", "prompt: claude takes at most 10 MiB")
                return CLAUDE, functools.partial(self._run_claude, run, program)
            # Where nobody named a program there may be none: then the default agent answers.
            if request.agent == CLAUDE or self._settings.claude_bin != CLAUDE:
                return CLAUDE, _fail(
                    "the claude program is not installed:"
                    " npm install -g @anthropic-ai/claude-code, or set CLAWDFORGE_CLAUDE_BIN"
                )
        elif request.effort is not None:
            raise bad_request("effort: only claude takes one")
        try:
            name = await self._choose_agent(request.agent)
        except Error as error:
            if error.code != "agent_unavailable":
                raise
            return request.agent or CLAUDE, _fail(error.message)
        return name, functools.partial(self._run_agent, run, name)

    def _find_claude(self) -> str | None:
        found = shutil.which(self._settings.claude_bin, path=self._environ.get("PATH"))
        return str(Path(found).absolute()) if found is not None else None

    async def _note_start(self, run: Run, agent: str) -> None:
        request = run.request
        row = RunRow(
            id=run.id,
            app_name=request.app_name,
            agent=agent,
            model=request.model,
            prompt_bytes=len(request.prompt.encode()),
            started_at=self._clock(),
        )
        await self._writer.commit([store.insert_run(row)])

    async def _note_failure(self, run: Run, failure: RunFailed) -> None:
        await self._note_end(run, failure.duration_ms, failure.stop_reason, error=failure.code)

    async def _note_end(
        self,
        run: Run,
        duration_ms: int,
        stop_reason: str,
        *,
        result_bytes: int | None = None,
        error: str | None = None,
    ) -> None:
        try:
            await self._writer.commit(
                [
                    store.end_run(
                        run.id,
                        result_bytes=result_bytes,
                        duration_ms=duration_ms,
                        stop_reason=stop_reason,
                        error=error,
                    )
                ]
            )
        except Error:
            # The answer is worth more than its row; the next start ends the row.
            logger.exception("run %s: its end could not be stored", run.id)

    # On the claude program.

    async def _run_claude(self, run: Run, path: str) -> Answer:
        request = run.request
        folder = self._folder / run.id
        mark = f"{processes.MARK}={run.id}"
        stdin = await asyncio.to_thread(_prepare, folder, request)
        try:
            program = await self._programs.start(
                claude_argv(path, request, folder),
                environ={**claude_environ(self._environ, run.timeout), processes.MARK: run.id},
                cwd=folder / WORK,
                stdin=stdin,
            )
            try:
                return read_answer(await self._watch_claude(run, program, mark.encode()))
            finally:
                await program.close()
        finally:
            os.close(stdin)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _watch_claude(self, run: Run, program: Program, mark: bytes) -> Output:
        async def kill() -> None:
            program.kill()

        work = asyncio.create_task(_collect(program, mark))
        try:
            ending = await run.watch(
                work, program.terminate, kill, self._settings.cancel_grace_secs
            )
            if ending is None:
                return work.result()
            told = work.done() and work.exception() is None
            raise _ended(ending, work.result().stderr if told else "")
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    # On another agent, through acpx.

    async def _run_agent(self, run: Run, name: str) -> Answer:
        request = run.request
        folder = self._folder / run.id
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True)
        system: Any = request.system
        if system is not None and request.system_mode == "append":
            system = {"append": system}
        spec = AgentSpec(run.id, name, str(folder), request.model, system)
        turn = _Turn()
        turn.agent = agent = self._backend.agent(spec, turn)
        blocks: list[dict[str, object]] = [{"type": "text", "text": request.prompt}]
        work = asyncio.create_task(
            agent.prompt(dumps(annotate(blocks, request.files))), name=f"run-{run.id}-turn"
        )
        try:
            ending = await run.watch(
                work, agent.cancel, agent.kill, self._settings.cancel_grace_secs
            )
            if ending is not None:
                raise _ended(ending)
            work.result()
            return turn.answer()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await agent.hibernate()
            await self._backend.forget(run.id)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


class _Turn:
    """What an agent says in the one turn of a run; see :class:`base.Listener`."""

    def __init__(self) -> None:
        self.agent: Any = None
        self._texts: list[str] = []
        self._size = 0
        self._response: Mapping[str, Any] | None = None

    def answer(self) -> Answer:
        response = self._response or {}
        result = response.get("result")
        stop_reason = result.get("stopReason") if isinstance(result, dict) else None
        if not isinstance(stop_reason, str):
            error = response.get("error")
            message = error.get("message") if isinstance(error, dict) else None
            raise RunFailed("agent_failed", str(message or "the agent gave no answer")[:1000])
        if self._size > MAX_OUTPUT_BYTES:
            raise _too_long()
        if stop_reason == "cancelled":
            raise RunFailed("agent_failed", "the agent cancelled the turn", stop_reason=stop_reason)
        return Answer(result_json("".join(self._texts)), stop_reason)

    def prompt_sent(self, context: Context) -> None:
        pass

    def agent_notified(self, message: bytes) -> None:
        if self._size > MAX_OUTPUT_BYTES or b"agent_message_chunk" not in message:
            return
        update = ((parse_message(message) or {}).get("params") or {}).get("update") or {}
        content = update.get("content") or {}
        if update.get("sessionUpdate") != "agent_message_chunk" or content.get("type") != "text":
            return
        self._texts.append(str(content.get("text", "")))
        self._size += len(message)
        if self._size > MAX_OUTPUT_BYTES:
            self.agent.cancel()

    def prompt_answered(self, message: bytes, answer: Mapping[str, Any]) -> None:
        self._response = answer

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        """Reading is allowed, as ``claude -p`` allows it; there is nobody to ask for more."""
        request = params if isinstance(params, dict) else {}
        call = request.get("toolCall")
        reads = isinstance(call, dict) and call.get("kind") in READ_KINDS
        self.agent.answer_permission(raw_id, _choose(request, "allow" if reads else "reject"))

    def agent_gone(self) -> None:
        pass


def _choose(request: Mapping[str, Any], verb: str) -> dict[str, Any]:
    options = request.get("options")
    for kind in (f"{verb}_once", f"{verb}_always"):
        for option in options if isinstance(options, list) else ():
            if isinstance(option, dict) and option.get("kind") == kind and "optionId" in option:
                return {"outcome": "selected", "optionId": option["optionId"]}
    return {"outcome": "cancelled"}


# The claude program's command line and environment.


def claude_argv(path: str, request: RunRequest, folder: Path) -> list[str]:
    """The command line; the prompt goes on stdin."""
    argv = [path, "-p", "--output-format", "json", "--no-session-persistence"]
    # Whatever the settings of the server's user say: what is not allowed there is not done.
    argv += ["--permission-mode", "dontAsk"]
    if request.model is not None:
        argv += ["--model", request.model]
    if request.effort is not None:
        argv += ["--effort", request.effort]
    if request.system is not None:
        flag = "--system-prompt" if request.system_mode == "replace" else "--append-system-prompt"
        if _is_long(request.system):
            argv += [f"{flag}-file", str(_system_file(folder))]
        else:
            argv += [flag, request.system]
    if request.files:
        argv += ["--add-dir", *dict.fromkeys(str(path.parent) for path in request.files)]
    return argv


def claude_environ(environ: Mapping[str, str], timeout: float) -> dict[str, str]:
    """*environ* with what makes the program give up before its time is over.

    By its own defaults an API that refuses or hangs keeps it for minutes.
    """
    bounded = {
        "CLAUDE_CODE_MAX_RETRIES": str(RETRIES),
        # Otherwise `@/any/file` in a prompt is read without asking for permission.
        "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
        # Whether a prompt fits is the model's to say: the program refuses from some 4 MB on.
        "CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE": str(CLAUDE_STDIN_BYTES),
        **environ,
    }
    share = int(timeout * 1000 * 0.9 / (RETRIES + 1))
    asked = bounded.get("API_TIMEOUT_MS", "")
    bounded["API_TIMEOUT_MS"] = str(min(share, int(asked)) if asked.isdecimal() else share)
    return bounded


def _prompt_text(request: RunRequest) -> str:
    block = annotate([{"type": "text", "text": request.prompt}], request.files)[0]
    return str(block["text"])


def _is_long(text: str) -> bool:
    return len(text.encode()) > MAX_ARGUMENT_BYTES


def _system_file(folder: Path) -> Path:
    return folder / "system"


def _prepare(folder: Path, request: RunRequest) -> int:
    """Make the run's folder; the prompt, as a file in memory that can be its stdin."""
    (folder / WORK).mkdir(mode=0o700, parents=True)
    if request.system is not None and _is_long(request.system):
        _system_file(folder).write_text(request.system, "utf-8")
    descriptor = os.memfd_create("prompt")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(_prompt_text(request).encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


# The claude program's answer.


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """What a program has written; ``stderr`` is the end of it."""

    status: int | None
    stdout: bytes
    stderr: str


async def _collect(program: Program, mark: bytes) -> Output:
    stdout, stderr, status = await asyncio.gather(
        _read(program), _read_end(program.stderr), _wait(program, mark)
    )
    if stdout is None:
        raise _too_long()
    return Output(status, stdout, stderr)


async def _wait(program: Program, mark: bytes) -> int | None:
    status = await program.wait()
    if status is None:  # what its supervisor did not see to
        await asyncio.to_thread(processes.kill_marked, mark)
    return status


def _too_long() -> RunFailed:
    limit = MAX_OUTPUT_BYTES >> 20
    return RunFailed("agent_failed", f"the answer has more than {limit} MiB", retryable=False)


async def _read(program: Program) -> bytes | None:
    """All of its stdout; None, and the program is killed, where that is too much."""
    pieces: list[bytes] = []
    size = 0
    while piece := await program.stdout.read(1 << 18):
        size += len(piece)
        if size <= MAX_OUTPUT_BYTES:
            pieces.append(piece)
        else:
            program.kill()
    return b"".join(pieces) if size <= MAX_OUTPUT_BYTES else None


async def _read_end(stream: asyncio.StreamReader) -> str:
    end = b""
    while piece := await stream.read(1 << 16):
        end = (end + piece)[-STDERR_BYTES:]
    return end.decode(errors="replace").strip()


def read_answer(output: Output) -> Answer:
    """What the program's output means.

    Raises:
        RunFailed: it is no answer.
    """
    message = _result_of(output.stdout)
    if message is None:
        raise RunFailed("agent_failed", _fate_of(output), stderr=output.stderr)
    result = message.get("result")
    # An API error says `"subtype":"success"`, and some errors have no `result`.
    if message.get("is_error") or output.status != 0 or not isinstance(result, str):
        raise _told_failure(message, output)
    return Answer(result_json(result), str(message.get("stop_reason") or "end_turn"))


def _result_of(stdout: bytes) -> dict[str, Any] | None:
    """The program's own last word: an object, alone, on the last line, or the last of a list."""
    text = stdout.strip()
    for candidate in (text, text.rpartition(b"\n")[2]):
        message = parse_message(candidate)
        if message is None and candidate.startswith(b"["):  # with `verbose` in its settings
            with contextlib.suppress(ValueError, IndexError):
                message = [one for one in loads(candidate) if one.get("type") == "result"][-1]
        if message is not None:
            return message
    return None


def _fate_of(output: Output) -> str:
    """Why there is no answer."""
    last = output.stderr.rpartition("\n")[2].strip()[:300]
    match output.status:
        case None:
            fate = "claude was lost"
        case 0:
            fate = "claude ended without an answer"
        case status if status < 0:
            fate = f"claude was killed by signal {-status}"
        case status:
            fate = f"claude ended with status {status}"
    if output.stdout.strip():
        fate += ", and what it wrote is none"
    return f"{fate}: {last}" if last else fate


def _told_failure(message: Mapping[str, Any], output: Output) -> RunFailed:
    """The failure that the program tells of."""
    told = message.get("result")
    if not isinstance(told, str) or not told:
        errors = message.get("errors")
        told = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    told = told or str(message.get("subtype") or "") or _fate_of(output)
    status = message.get("api_error_status")
    code, retryable = "agent_failed", None
    if status in (401, 403) or "/login" in told:
        code = "agent_unavailable"
    elif isinstance(status, int) and status < 500 and status not in (408, 409, 429):
        retryable = False
    return RunFailed(code, told[:2000], stderr=output.stderr, retryable=retryable)


FENCE = re.compile(r"\A```[^\n`]*\n(.*?)\n?```\Z", re.DOTALL)


def result_json(text: str) -> bytes:
    """An answer's text as JSON: as it is where it is JSON, else as a string.

    A code fence round the whole of it is taken off.
    """
    stripped = text.strip()
    fence = FENCE.match(stripped)
    if fence is not None and "\n```" not in fence[1]:  # one fence, not the first of several
        text = fence[1]
        stripped = text.strip()
    try:
        loads(stripped)
    except ValueError:
        return dumps(text)
    return stripped.encode()


def _fail(message: str) -> Callable[[], Awaitable[Answer]]:
    async def fail() -> Answer:
        raise RunFailed("agent_unavailable", message)

    return fail


def _failed(error: Exception) -> RunFailed:
    """*error* as a run's own failure; a defect's words are for the log alone."""
    if isinstance(error, RunFailed):
        return error
    if not isinstance(error, Error):
        error = internal()
    return RunFailed(error.code, error.message, retryable=error.retryable)


def _ms_since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
