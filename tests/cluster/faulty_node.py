"""Runs the server with the faults that its arguments name.

``clock=3600``: its wall clock is wrong by so many seconds. ``change=3``: it is killed before its
third change of the database; beats and messages do not count. ``change_after_taking=3``: the same,
but the changes count only after it has taken over another node.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from server.storage.drivers.postgres import PostgresDriver
from server.storage.nodes import NodeTable

MESSAGES = ("WITH i AS (INSERT INTO commands", "DELETE FROM commands", "SELECT pg_notify")


def shift_clock(secs: float) -> None:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + secs
    time.time_ns = lambda: nanoseconds() + int(secs * 1e9)


class Killer:
    """Kills this process before a change of the database.

    Args:
        number: of the change, from 1.
        is_counting: whether the changes count from the start.
    """

    def __init__(self, number: int, *, is_counting: bool) -> None:
        self._left = number
        self._is_counting = is_counting
        for name in ("change", "write"):
            setattr(PostgresDriver, name, self._counted(getattr(PostgresDriver, name)))
        take = NodeTable.take

        async def take_and_count(*arguments: Any) -> bool:
            has_taken = await take(*arguments)
            self._is_counting |= has_taken
            return has_taken

        setattr(NodeTable, "take", take_and_count)  # noqa: B010 - replaces a method

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(
            driver: PostgresDriver, statement: Any, *arguments: Any, **options: Any
        ) -> Any:
            is_message = isinstance(statement, str) and statement.startswith(MESSAGES)
            if self._is_counting and not is_message:
                self._left -= 1
                if not self._left:
                    os.kill(os.getpid(), signal.SIGKILL)
            return await method(driver, statement, *arguments, **options)

        return call


faults = dict(argument.split("=") for argument in sys.argv[1:] if "=" in argument)
if "clock" in faults:
    shift_clock(float(faults["clock"]))
for name in faults.keys() & {"change", "change_after_taking"}:
    Killer(int(faults[name]), is_counting=name == "change")
sys.argv = ["server"]
runpy.run_module("server", run_name="__main__", alter_sys=True)
