"""Lines from stdin and to stdout, with limits on the memory of both.

Threads read and write, because not every stdin can be polled: an editor may pass a pipe, a socket,
a terminal or a file.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections import deque
from collections.abc import Iterable

MAX_EDITOR_LINE_BYTES = 4 << 20
"""The server accepts no larger message."""
MAX_WAITING_BYTES = 8 << 20
"""Bytes of lines that wait for the server. More stay in the pipe."""
MAX_UNWRITTEN_BYTES = 1 << 20
"""Bytes that wait for the editor. Above that, nothing is read from the server."""
STDIN_READ_BYTES = 64 << 10
ENDS_BYTES = 4 << 10
"""Bytes that are kept of the beginning and of the end of a line that is too long."""

_MEMBER = rb'"(?:[^"\\]|\\.)*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|-?[\d.eE+]+|null)'
_ID = rb'"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?[\d.eE+]+)'
_ID_FIRST = re.compile(rb"\A\s*\{\s*(?:" + _MEMBER + rb"\s*,\s*)*?" + _ID)
_ID_LAST = re.compile(rb"[}\]]\s*,\s*" + _ID + rb"\s*(?:,\s*" + _MEMBER + rb"\s*)*\}\s*\Z")


class TooLongLine:
    """A line of the editor that exceeds :data:`MAX_EDITOR_LINE_BYTES`.

    Attributes:
        id: the JSON of the id of its message, as far as it can be found; else ``null``.
    """

    def __init__(self, start: bytes, end: bytes) -> None:
        match = _ID_FIRST.match(start) or _ID_LAST.search(end)
        self.id = match[1] if match is not None else b"null"


class LineSplitter:
    """Splits a stream into lines, and discards the middle of lines that are too long."""

    def __init__(self, limit: int = MAX_EDITOR_LINE_BYTES) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._long: tuple[bytes, bytes] | None = None  # the two ends of a line that is too long

    def feed(self, data: bytes) -> list[bytes | TooLongLine]:
        """The lines that *data* completes, without their ends."""
        first, *others = data.split(b"\n")
        lines: list[bytes | TooLongLine] = []
        self._add(first)
        for piece in others:
            lines.append(self._take())
            self._add(piece)
        return lines

    def rest(self) -> list[bytes | TooLongLine]:
        """The last line, if it has no end."""
        return [self._take()] if self._size or self._long else []

    def _add(self, piece: bytes) -> None:
        if self._long is not None:
            start, end = self._long
            self._long = start, (end + piece)[-ENDS_BYTES:]
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            line = b"".join(self._pieces)
            self._long = line[:ENDS_BYTES], line[-ENDS_BYTES:]
            self._pieces.clear()

    def _take(self) -> bytes | TooLongLine:
        line = b"".join(self._pieces) if self._long is None else TooLongLine(*self._long)
        self._pieces.clear()
        self._size, self._long = 0, None
        return line


class EditorInput:
    """The lines of stdin. Must be created in a running event loop.

    Attributes:
        ended: set when stdin has ended; lines may still wait.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self.ended = asyncio.Event()
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._lines: deque[bytes | TooLongLine] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._has_capacity = threading.Semaphore(0)
        self._is_full = False
        os.set_blocking(descriptor, True)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    async def wait(self) -> bool:
        """Wait for a line. Returns whether there is one; if not, stdin has ended."""
        while not self._lines and not self.ended.is_set():
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._lines)

    def take(self) -> bytes | TooLongLine:
        """Take the next line, for which :meth:`wait` has waited."""
        line = self._lines.popleft()
        self._waiting_bytes -= _size(line)
        if self._is_full and self._waiting_bytes <= MAX_WAITING_BYTES:
            self._is_full = False
            self._has_capacity.release()
        return line

    def _read(self) -> None:
        """Read until the end; runs in its thread."""
        splitter = LineSplitter()
        try:
            while data := os.read(self._descriptor, STDIN_READ_BYTES):
                if lines := splitter.feed(data):
                    self._hand_over(lines)
                    self._has_capacity.acquire()
        except OSError:
            pass  # the editor has closed its end of a socket or a terminal
        self._hand_over(splitter.rest(), is_end=True)

    def _hand_over(self, lines: list[bytes | TooLongLine], *, is_end: bool = False) -> None:
        try:
            self._loop.call_soon_threadsafe(self._accept, lines, is_end)
        except RuntimeError:
            return  # the loop is closed: the program ends

    def _accept(self, lines: list[bytes | TooLongLine], is_end: bool) -> None:
        self._lines.extend(line for line in lines if not (isinstance(line, bytes) and not line))
        self._waiting_bytes += sum(map(_size, lines))
        if is_end:
            self.ended.set()
        elif self._waiting_bytes > MAX_WAITING_BYTES:
            self._is_full = True
        else:
            self._has_capacity.release()
        self._arrived.set()


def _size(line: bytes | TooLongLine) -> int:
    return len(line) if isinstance(line, bytes) else 0


class EditorOutput:
    """The lines to stdout, which are written in their order. Must be created in a running loop.

    Attributes:
        closed: set when the editor does not read any more.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.closed = asyncio.Event()
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._unwritten = 0
        self._chunks: deque[bytes] = deque()
        self._available = threading.Semaphore(0)
        self._written = asyncio.Event()
        os.set_blocking(descriptor, True)
        threading.Thread(target=self._write, name="stdout", daemon=True).start()

    def write(self, lines: Iterable[bytes]) -> None:
        """Write lines; follow it with :meth:`drain`."""
        data = b"".join(line + b"\n" for line in lines)
        if data and not self.closed.is_set():
            self._unwritten += len(data)
            self._chunks.append(data)
            self._available.release()

    async def drain(self, limit: int = MAX_UNWRITTEN_BYTES) -> None:
        """Wait until at most *limit* bytes wait for the editor."""
        while self._unwritten > limit and not self.closed.is_set():
            self._written.clear()
            await self._written.wait()

    def _write(self) -> None:
        """Write the queued bytes; runs in its thread."""
        while True:
            self._available.acquire()
            data = self._chunks.popleft()
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError:
                self._report(0, is_closed=True)
                return
            self._report(len(data))

    def _report(self, size: int, *, is_closed: bool = False) -> None:
        try:
            self._loop.call_soon_threadsafe(self._note_written, size, is_closed)
        except RuntimeError:
            return  # the loop is closed

    def _note_written(self, size: int, is_closed: bool) -> None:
        self._unwritten -= size
        if is_closed:
            self.closed.set()
        self._written.set()
