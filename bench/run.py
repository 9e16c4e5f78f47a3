"""Measure the time that ``POST /run`` adds to its ``claude -p`` call.

``python bench/run.py`` requires the packages of requirements-dev.txt. The real program is installed
into the user's cache if it is not on the PATH. It uses a stand-in of its API in this process. The
bare call and ``/run`` are measured alternately, with the same arguments and environment. The second
measurement uses a program that does nothing, because the time of the real one varies too much.

The last measurement repeatedly makes fifty calls at once, of which four run and thirty wait.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import http.client
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from measure import Samples, print_table, read_memory
from targets import BenchError, Server

from server.runs.claude import claude_argv, claude_environ
from server.runs.run import RunRequest
from tests.support.anthropic_stand_in import stand_in
from tests.support.real_agents import NotInstalledError, find_claude, install

GOAL_MS = 15.0
CALLS, SLOTS, WAITING, ROUNDS = 50, 4, 30, 20
MAX_GROWTH_MB = 5.0
TIMEOUT_SECS = 600
PROMPT = "What is the answer?"
NOTHING = """#!/bin/sh
cat > /dev/null
echo '{"type":"result","is_error":false,"result":"OK","stop_reason":"end_turn"}'
"""


class BareCall:
    """The same call as in ``/run``, made by this program."""

    name = "`claude -p`"

    def __init__(self, program: str, folder: Path, environ: Mapping[str, str]) -> None:
        self._argv = claude_argv(program, RunRequest("bench", PROMPT), folder)
        self._environ = claude_environ(environ, TIMEOUT_SECS)
        self._folder = folder

    def run(self) -> None:
        done = subprocess.run(
            self._argv,
            input=PROMPT.encode(),
            capture_output=True,
            cwd=self._folder,
            env=self._environ,
            check=False,
        )
        if done.returncode or json.loads(done.stdout)["result"] != "OK":
            raise BenchError(f"the bare call failed: {done}")


class RunCall:
    """``POST /run`` over one open connection."""

    name = "`POST /run`"

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
        self._headers = {**server.headers, "Content-Type": "application/json"}

    def run(self) -> None:
        self._connection.request("POST", "/run", json.dumps({"prompt": PROMPT}), self._headers)
        with self._connection.getresponse() as response:
            reply = json.load(response)
        if reply.get("result") != "OK":
            raise BenchError(f"/run failed: {reply}")


def measure(title: str, program: str, folder: Path, environ: Mapping[str, str], count: int) -> bool:
    """Print a table. Returns whether the goal is reached."""
    folder.mkdir()
    server = Server(folder / "server", environ, ["true"], CLAUDE_BIN=program)
    with contextlib.closing(server):
        sides = (BareCall(program, folder, environ), RunCall(server))
        samples = {side.name: Samples() for side in sides}
        for number in range(-2, count):  # two rounds of warm-up
            # Both calls go first equally often.
            for side in sides if number % 2 else sides[::-1]:
                started_at = time.perf_counter()
                side.run()
                if number >= 0:
                    samples[side.name].add((time.perf_counter() - started_at) * 1000)
    rows = [[name, *found.cells(1)] for name, found in samples.items()]
    print_table((f"{title}, ms", "median", "quartiles", "range", "n"), rows)
    bare, run = (found.median for found in samples.values())
    reached = run - bare < GOAL_MS
    result = "reached" if reached else "NOT reached"
    print(f"/run adds {run - bare:.1f} ms at the median; goal: under {GOAL_MS:g}: {result}\n")
    return reached


def measure_concurrent_calls(program: str, folder: Path, environ: Mapping[str, str]) -> bool:
    """Print the responses and the server's memory. Returns whether both are as specified."""
    folder.mkdir()
    limits = {"MAX_RUNS": str(SLOTS), "RUN_QUEUE": str(WAITING)}
    server = Server(folder / "server", environ, ["true"], CLAUDE_BIN=program, **limits)

    def call(number: int) -> str:
        try:
            reply = server.call("POST", "/run", {"prompt": f"{PROMPT} {number}"})
        except urllib.error.HTTPError as error:
            with error:
                return f"{error.code} {json.load(error)['code']}"
        return f"200 {reply['result']}"

    memory, responses = [], collections.Counter[str]()
    threads = concurrent.futures.ThreadPoolExecutor(CALLS)
    with contextlib.closing(server), threads:
        for _ in range(ROUNDS):
            responses.update(threads.map(call, range(CALLS)))
            memory.append(read_memory([server.pid]) / 1024)
    # The first rounds fill caches. After them, memory must not grow.
    settled = memory[ROUNDS // 4]
    growth = memory[-1] - settled
    summary = ", ".join(f"{count} {what}" for what, count in sorted(responses.items()))
    print(f"{ROUNDS} times {CALLS} calls, {SLOTS} at once, {WAITING} waiting: {summary}")
    print(f"the server's own memory: {settled:.1f} MB, at the end {growth:+.1f} MB\n")
    all_answered = responses.keys() <= {"200 OK", "503 pool_full"}
    # More calls may get a slot if others end early, but not fewer.
    served = responses["200 OK"] >= ROUNDS * (SLOTS + WAITING)
    return all_answered and served and growth < MAX_GROWTH_MB


@contextlib.contextmanager
def running_stand_in() -> Iterator[Mapping[str, str]]:
    """Run the stand-in in a thread. Yields the environment with which claude uses it."""
    started: threading.Event = threading.Event()
    environ: dict[str, str] = {}
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with stand_in() as api:
            environ.update(api.environ)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        started.wait(10)
        yield environ
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--claude", default=shutil.which("claude"), help="the program's path")
    parser.add_argument(
        "--count", type=int, default=40, help="the number of calls of each kind (40)"
    )
    options = parser.parse_args()
    cores, busy = os.cpu_count(), os.getloadavg()[0]
    print(
        f"{cores} cores, {platform.system()}, Python {platform.python_version()}, load {busy:.1f}\n"
    )
    with tempfile.TemporaryDirectory(prefix="clawdforge-bench-") as name, running_stand_in() as api:
        folder = Path(name)
        environ = {"HOME": name, "PATH": os.environ["PATH"], **api}
        nothing = folder / "nothing"
        nothing.write_text(NOTHING, "utf-8")
        nothing.chmod(0o755)
        try:
            if not options.claude:
                install()
            claude = options.claude or str(find_claude())
            reached = [
                measure("real program", claude, folder / "real", environ, options.count),
                measure("does nothing", str(nothing), folder / "fake", environ, options.count * 5),
                measure_concurrent_calls(str(nothing), folder / "concurrent", environ),
            ]
        except (BenchError, NotInstalledError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
