"""A run on the claude program: its command line, its environment, and one process of it."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from .. import safe_files
from ..agents.process import process_tree
from ..agents.process.programs import Program, Programs
from ..errors import Error
from ..uploads.files import annotate
from .answers import MAX_OUTPUT_BYTES, Answer, too_long
from .outcome import Output, find_result, read_answer
from .run import Run, RunRequest, ended, leave_nothing, run_place

CLAUDE = "claude"
NOT_INSTALLED = (
    "the claude program is not installed:"
    " npm install -g @anthropic-ai/claude-code, or set CLAWDFORGE_CLAUDE_BIN"
)
STDIN_BYTES = 10 << 20
"""More than this the program refuses."""
MAX_ARGUMENT_BYTES = 100 << 10
"""Linux takes no argument over 128 KiB; what is longer goes by a file."""
STDERR_BYTES = 8 << 10
RETRIES = 2
"""Of a request that the API refuses. By itself the program tries for minutes."""
WORK = "work"


class Claude:
    """The program, run once for each run.

    Args:
        name: of the program, or its path.
        environ: of the program: an allow-list.
        folder: in which each run has a folder for its time.
        grace: seconds from SIGTERM to SIGKILL.
    """

    def __init__(self, name: str, environ: Mapping[str, str], folder: Path, grace: float) -> None:
        self._name = name
        self._environ = environ
        self._folder = folder
        self._grace = grace
        self._programs = Programs(environ)

    async def find(self) -> str | None:
        """The program's path, where it is installed."""
        return await asyncio.to_thread(_find, self._name, self._environ.get("PATH"))

    async def run(self, run: Run, path: str) -> Answer:
        """Run the program at *path*.

        Raises:
            RunFailed: it gave no answer.
        """
        folder = self._folder / run.id
        try:
            stdin = await asyncio.to_thread(_prepare, folder, run.request)
            try:
                output = await self._output(run, path, folder, stdin)
                return await asyncio.to_thread(read_answer, output)
            finally:
                os.close(stdin)
        finally:
            await asyncio.to_thread(leave_nothing, folder)

    async def _output(self, run: Run, path: str, folder: Path, stdin: int) -> Output:
        program = await self._programs.start(
            claude_argv(path, run.request, folder),
            environ={**claude_environ(self._environ, run.timeout), process_tree.MARK: run.id},
            cwd=folder / WORK,
            stdin=stdin,
        )
        try:
            return await self._watch(run, program)
        finally:
            await program.close()

    async def _watch(self, run: Run, program: Program) -> Output:
        capture = _Capture(program, f"{process_tree.MARK}={run.id}".encode())
        in_time: list[bytes] = []

        def terminate() -> None:
            in_time.append(capture.stdout)  # what it says from now on comes of the SIGTERM
            program.terminate()

        async def kill() -> None:
            program.kill()

        work = asyncio.create_task(capture.collect())
        try:
            ending = await run.watch(work, terminate, kill, self._grace)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if ending is None:
            return work.result()
        [stdout] = in_time
        if await asyncio.to_thread(find_result, stdout) is not None:
            return Output(0, stdout, capture.stderr)  # it had answered, and did not end
        raise ended(ending, capture.stderr)

    async def stop(self) -> None:
        """End whatever of it still runs."""
        await self._programs.stop()


def _find(name: str, path: str | None) -> str | None:
    found = shutil.which(name, path=path)
    return str(Path(found).absolute()) if found is not None else None


def check_size(request: RunRequest) -> None:
    """Refuse what the program would not take.

    Raises:
        Error: ``payload_too_large``.
    """
    if len(_stdin_of(request)) > STDIN_BYTES:
        raise Error("payload_too_large", f"prompt: claude takes at most {STDIN_BYTES >> 20} MiB")


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
    """*environ* with what the program needs for a run of that many seconds.

    One request to the model may take all of the time: the first byte of a model that thinks can
    be long in coming. The run's own deadline ends what is left, retries included.
    """
    bounded = {
        "CLAUDE_CODE_MAX_RETRIES": str(RETRIES),
        # Otherwise `@/any/file` in a prompt is read without asking for permission.
        "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
        # Whether a prompt fits is the model's to say: the program refuses from some 4 MB on.
        "CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE": str(STDIN_BYTES),
        **environ,
    }
    longest = math.ceil(timeout * 1000)
    asked = bounded.get("API_TIMEOUT_MS", "")
    bounded["API_TIMEOUT_MS"] = str(min(longest, int(asked)) if asked.isdecimal() else longest)
    return bounded


def _stdin_of(request: RunRequest) -> bytes:
    block = annotate([{"type": "text", "text": request.prompt}], request.files)[0]
    return str(block["text"]).encode()


def _is_long(text: str) -> bool:
    return len(text.encode()) > MAX_ARGUMENT_BYTES


def _system_file(folder: Path) -> Path:
    return folder / "system"


def _prepare(folder: Path, request: RunRequest) -> int:
    """Make the run's folder; the prompt, as a file in memory that can be its stdin."""
    place = run_place(folder)
    safe_files.make_folder(*place)
    safe_files.make_folder(*place, WORK)
    if request.system is not None and _is_long(request.system):
        with safe_files.new_file(*place, _system_file(folder).name) as file:
            file.write(request.system.encode())
    descriptor = os.memfd_create("prompt")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(_stdin_of(request))
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class _Capture:
    """What a program has written so far, and in the end all of it.

    Attributes:
        stdout, stderr: so far; of stderr the end.
    """

    def __init__(self, program: Program, mark: bytes) -> None:
        self._program = program
        self._mark = mark
        self._pieces: list[bytes] = []
        self._size = 0
        self._stderr = b""

    @property
    def stdout(self) -> bytes:
        return b"".join(self._pieces)

    @property
    def stderr(self) -> str:
        return self._stderr.decode(errors="replace").strip()

    async def collect(self) -> Output:
        """Read until the program has ended.

        Raises:
            RunFailed: it has written too much, and was killed.
        """
        _, _, status = await asyncio.gather(self._read(), self._read_end(), self._wait())
        if self._size > MAX_OUTPUT_BYTES:
            raise too_long()
        return Output(status, self.stdout, self.stderr)

    async def _wait(self) -> int | None:
        status = await self._program.wait()
        if status is None:  # what its supervisor did not see to
            await asyncio.to_thread(process_tree.kill_marked, self._mark)
        return status

    async def _read(self) -> None:
        while piece := await self._program.stdout.read(1 << 18):
            self._size += len(piece)
            if self._size <= MAX_OUTPUT_BYTES:
                self._pieces.append(piece)
            else:
                self._program.kill()

    async def _read_end(self) -> None:
        while piece := await self._program.stderr.read(1 << 16):
            self._stderr = (self._stderr + piece)[-STDERR_BYTES:]
