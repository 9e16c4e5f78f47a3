"""The calls to the acpx host that have no result yet."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec

EARLIER_CALLS_SECS = 20
"""The longest wait for the calls of an earlier version of the server."""


class CallError(Exception):
    """A call that acpx rejected or failed, with acpx's ``code``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class HostGoneError(Exception):
    """The end of the host before it responded."""


class CallsState(msgspec.Struct, kw_only=True):
    """The calls for the next version of the server.

    Attributes:
        last: the id of the last call.
        open: the keys of the sessions of the calls without a result, by the calls' ids.
    """

    last: int
    open: dict[int, str | None]


class _Call(NamedTuple):
    key: str | None
    result: asyncio.Future[Any]


class HostCalls:
    """The calls without a result, by their ids."""

    def __init__(self) -> None:
        self._last = 0
        self._open: dict[int, _Call] = {}

    def add(self, key: str | None) -> tuple[int, asyncio.Future[Any]]:
        """Add a call for the session of that key. Return its id and its future result."""
        self._last += 1
        return self._last, self._add(self._last, key)

    def _add(self, call_id: int, key: str | None) -> asyncio.Future[Any]:
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[call_id] = _Call(key, result)
        result.add_done_callback(lambda _: self._open.pop(call_id, None))
        return result

    def complete(self, message: dict[str, Any]) -> bool:
        """Complete the call to which *message* responds. False if *message* is not a response."""
        call_id = message.get("id")
        if message.keys() not in ({"id", "result"}, {"id", "error"}) or type(call_id) is not int:
            return False  # for example, a line that a library logged
        call = self._open.get(call_id)
        if call is None or call.result.done():
            return True
        if error := message.get("error"):
            call.result.set_exception(CallError(error["code"], error["message"]))
            call.result.exception()  # a call of an earlier version may have no waiter
        else:
            call.result.set_result(message["result"])
        return True

    def fail_all(self) -> None:
        """Fail the calls of a host that has ended."""
        for call in tuple(self._open.values()):
            if not call.result.done():
                call.result.set_exception(HostGoneError())
                call.result.exception()

    # A reload of the server.

    def restore(self, state: CallsState) -> None:
        """Await the results of the calls of an earlier version of the server, too."""
        self._last = state.last
        for call_id, key in state.open.items():
            self._add(call_id, key)

    def pack(self) -> CallsState:
        keys = {call_id: call.key for call_id, call in self._open.items()}
        return CallsState(last=self._last, open=keys)

    def id_of(self, result: asyncio.Future[Any]) -> int | None:
        """The id of the call with that future result; None if it has its result."""
        return next((n for n, call in self._open.items() if call.result is result), None)

    def result_of(self, call_id: int | None) -> asyncio.Future[Any]:
        """The result of a call of an earlier version of the server, which may have it already."""
        if (call := self._open.get(call_id or 0)) is not None:
            return call.result
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result({})
        return done

    async def wait_for(self, key: str) -> None:
        """Wait until the host has carried out every call for that session."""
        if waiting := [call.result for call in self._open.values() if call.key == key]:
            await asyncio.wait(waiting, timeout=EARLIER_CALLS_SECS)
