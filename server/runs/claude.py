"""Runs the claude program for `/run`: one `claude -p` process for each run."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..agents.base import AgentSpec, EnvironOf, unusable_folder
from ..agents.line_reader import LineReader
from ..agents.process import process_tree
from ..agents.process.programs import Program, Programs
from ..agents.program_output import MIN_SECRET, SECRET
from ..codec import parse_message
from ..data_dir import DataDir
from ..errors import Error, ErrorCode
from ..sandbox.folder_locator import FolderError
from ..sandbox.sandbox import Sandbox
from ..uploads.files import prepend_file_paths
from .claude_output import CLAUDE, Output, find_result, read_result
from .run import (
    MAX_OUTPUT_BYTES,
    Run,
    RunFolder,
    RunRequest,
    RunResult,
    output_too_large,
    stopped_error,
)

NOT_INSTALLED = (
    "the claude program is not installed:"
    " npm install -g @anthropic-ai/claude-code, or set CLAWDFORGE_CLAUDE_BIN"
)
STDIN_BYTES = 10 << 20
"""The largest prompt that the program accepts."""
MAX_SYSTEM_ARGUMENT_BYTES = 100 << 10
"""A longer system prompt is passed in a file: Linux limits an argument to 128 KiB."""
STDERR_BYTES = 8 << 10
"""The length of the end of stderr that is kept."""
RETRIES = 2
"""Retries of a failed API request. The program's own default takes minutes."""
WORK = "work"
"""The program's working directory, in the run's folder."""
SYSTEM_FILE = "system"


class ClaudeProgram:
    """The claude program, which is started once for each run.

    Args:
        name: the program's name or path.
        environ: the program's environment.
        data_dir: contains a folder for each run.
        grace: seconds from SIGTERM to SIGKILL.
        environ_of: returns the variables of an app, which precede the others.
        sandbox: restricts the program.
    """

    def __init__(
        self,
        name: str,
        environ: Mapping[str, str],
        data_dir: DataDir,
        grace: float,
        environ_of: EnvironOf,
        sandbox: Sandbox,
    ) -> None:
        self._name = name
        self._environ = environ
        self._data_dir = data_dir
        self._grace = grace
        self._environ_of = environ_of
        self._sandbox = sandbox
        self._programs = Programs(environ)

    async def find(self) -> str | None:
        """The program's absolute path, or None if it is not installed."""
        return await asyncio.to_thread(_which, self._name, self._environ.get("PATH"))

    async def execute(self, run: Run, path: str) -> RunResult:
        """Run the program at *path*.

        Raises:
            RunError: the program returned no result.
        """
        folder = RunFolder(self._data_dir, run.id)
        try:
            stdin = await asyncio.to_thread(_prepare, folder, run.request)
            try:
                output = await self._collect_output(run, path, folder, stdin)
                schema = run.request.schema
                return await asyncio.to_thread(read_result, output, schema, run.note_usage)
            finally:
                os.close(stdin)
        finally:
            await asyncio.to_thread(folder.remove)

    async def _collect_output(self, run: Run, path: str, folder: RunFolder, stdin: int) -> Output:
        own = self._environ_of(run.request.app_name)
        environ = claude_environ({**self._environ, **own}, run.timeout)
        cwd = folder.path / WORK
        spec = AgentSpec(
            key=run.id, agent=CLAUDE, cwd=str(cwd), permission="", owner=run.request.app_name
        )
        try:
            sandbox, chosen = self._sandbox.of(spec.owner), {name: environ[name] for name in own}
            plan = await asyncio.to_thread(sandbox.plan, spec, chosen, [folder.path])
            plan["program"] = [
                path
            ]  # other arguments are the client's: a system prompt may be a path
        except FolderError as error:
            raise unusable_folder(str(error)) from None
        program = await self._programs.start(
            claude_argv(path, run.request, folder.path),
            environ={**environ, process_tree.AGENT_VARIABLE: run.id},
            cwd=cwd,
            stdin=stdin,
            sandbox=plan,
        )
        try:
            return await self._wait_for_output(run, program, own.values())
        finally:
            await program.close()

    async def _wait_for_output(self, run: Run, program: Program, secrets: Iterable[str]) -> Output:
        env_tag = process_tree.env_tag(process_tree.AGENT_VARIABLE, run.id)
        capture = _Capture(program, env_tag, secrets, run.request.on_update)
        stdout_in_time = b""

        def terminate() -> None:
            nonlocal stdout_in_time
            stdout_in_time = capture.stdout  # later output is a reaction to the SIGTERM
            program.terminate()

        async def kill() -> None:
            program.kill()

        work = asyncio.create_task(capture.collect())
        try:
            cause = await run.wait(work, terminate, kill, self._grace)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if cause is None:
            return work.result()
        if await asyncio.to_thread(find_result, stdout_in_time) is not None:
            # The program printed its result in time, but did not exit.
            return Output(0, stdout_in_time, capture.stderr)
        raise stopped_error(cause, capture.stderr)

    async def stop(self) -> None:
        """End all processes of the program."""
        await self._programs.stop()


def _which(name: str, path: str | None) -> str | None:
    program = shutil.which(name, path=path)
    return str(Path(program).absolute()) if program is not None else None


def check_prompt_size(request: RunRequest) -> None:
    """Check that the prompt is not larger than the program accepts.

    Raises:
        Error: ``payload_too_large``.
    """
    if len(_stdin_content(request)) > STDIN_BYTES:
        raise Error(
            ErrorCode.PAYLOAD_TOO_LARGE, f"prompt: claude takes at most {STDIN_BYTES >> 20} MiB"
        )


def claude_argv(path: str, request: RunRequest, folder: Path) -> list[str]:
    """The command line. The prompt is not part of it: it is sent to stdin.

    Args:
        path: the program.
        folder: the run's folder.
    """
    argv = [path, "-p", "--output-format", "json", "--no-session-persistence"]
    if request.on_update is not None:
        argv[3] = "stream-json"
        argv.append("--verbose")  # the program requires it for this format
    if request.schema is not None:
        argv += ["--json-schema", request.schema.text]
    # Overrides the settings of the server's user: a tool that is not allowed there is denied.
    argv += ["--permission-mode", "dontAsk"]
    if request.model is not None:
        argv += ["--model", request.model]
    if request.effort is not None:
        argv += ["--effort", request.effort]
    if request.system is not None:
        flag = "--system-prompt" if request.system_mode == "replace" else "--append-system-prompt"
        if _needs_file(request.system):
            argv += [f"{flag}-file", str(folder / SYSTEM_FILE)]
        else:
            argv += [flag, request.system]
    if request.files:
        argv += ["--add-dir", *dict.fromkeys(str(path.parent) for path in request.files)]
    return argv


def claude_environ(environ: Mapping[str, str], timeout: float) -> dict[str, str]:
    """*environ* with the program's settings for a run of *timeout* seconds.

    A single API request may take the whole time, because a model that thinks sends its first byte
    late. The run's deadline also limits the retries.
    """
    extended = {
        "CLAUDE_CODE_MAX_RETRIES": str(RETRIES),
        # Otherwise `@/any/file` in a prompt is read without asking for permission.
        "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
        # Otherwise the program itself refuses prompts from about 4 MB. The API decides instead.
        "CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE": str(STDIN_BYTES),
        **environ,
    }
    timeout_ms = math.ceil(timeout * 1000)
    configured = extended.get("API_TIMEOUT_MS", "")
    if configured.isdecimal():
        timeout_ms = min(timeout_ms, int(configured))
    extended["API_TIMEOUT_MS"] = str(timeout_ms)
    return extended


def _stdin_content(request: RunRequest) -> bytes:
    block = prepend_file_paths([{"type": "text", "text": request.prompt}], request.files)[0]
    return str(block["text"]).encode()


def _needs_file(system: str) -> bool:
    return len(system.encode()) > MAX_SYSTEM_ARGUMENT_BYTES


def _prepare(folder: RunFolder, request: RunRequest) -> int:
    """Create the run's folder, and return the program's stdin: the prompt, in a memory file."""
    folder.create()
    folder.create(WORK)
    if request.system is not None and _needs_file(request.system):
        with folder.new_file(SYSTEM_FILE) as file:
            file.write(request.system.encode())
    descriptor = os.memfd_create("prompt")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(_stdin_content(request))
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class _Capture:
    """Reads a program's output while the program runs.

    Args:
        env_tag: the entry in the environment of all processes that the program starts.
        secrets: values that stderr must not show.
        on_update: called with each line that is JSON and not the result.
    """

    def __init__(
        self,
        program: Program,
        env_tag: bytes,
        secrets: Iterable[str],
        on_update: Callable[[bytes], None] | None,
    ) -> None:
        self._on_update = on_update
        self._lines = LineReader(MAX_OUTPUT_BYTES)
        self._program = program
        self._env_tag = env_tag
        self._secrets = [value for value in secrets if len(value) >= MIN_SECRET]
        self._pieces: list[bytes] = []
        self._size = 0
        self._stderr = b""

    @property
    def stdout(self) -> bytes:
        """The output so far."""
        return b"".join(self._pieces)

    @property
    def stderr(self) -> str:
        """The last :data:`STDERR_BYTES` of stderr so far."""
        text = self._stderr.decode(errors="replace").strip()
        for secret in self._secrets:
            text = text.replace(secret, SECRET)
        return text

    async def collect(self) -> Output:
        """Read until the program has ended.

        Raises:
            RunError: the output exceeded its limit, and the program was killed.
        """
        _, _, status = await asyncio.gather(self._read_stdout(), self._read_stderr(), self._wait())
        if self._size > MAX_OUTPUT_BYTES:
            raise output_too_large()
        return Output(status, self.stdout, self.stderr)

    async def _wait(self) -> int | None:
        status = await self._program.wait()
        if status is None:  # the supervisor was killed before it could end the other processes
            await asyncio.to_thread(process_tree.end_tagged, self._env_tag)
        return status

    async def _read_stdout(self) -> None:
        while piece := await self._program.stdout.read(1 << 18):
            self._size += len(piece)
            if self._size <= MAX_OUTPUT_BYTES:
                self._pieces.append(piece)
                if self._on_update is not None:
                    self._report(piece, self._on_update)
            else:
                self._program.kill()

    def _report(self, piece: bytes, on_update: Callable[[bytes], None]) -> None:
        for line in self._lines.feed(piece):
            message = parse_message(line)
            if message is not None and message.get("type") != "result":
                on_update(line)

    async def _read_stderr(self) -> None:
        while piece := await self._program.stderr.read(1 << 16):
            self._stderr = (self._stderr + piece)[-STDERR_BYTES:]
