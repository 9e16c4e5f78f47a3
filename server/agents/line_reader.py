"""Cuts a byte stream into lines."""

from __future__ import annotations


class LineReader:
    """Cuts a byte stream into lines, and joins the pieces of a long line only once.

    Args:
        limit: the largest number of bytes of a line.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def size(self) -> int:
        """The number of bytes of the incomplete line."""
        return self._size

    @property
    def rest(self) -> bytes:
        """The incomplete line."""
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that *data* completes, without their line ends.

        Raises:
            OverflowError: a line is longer than the limit. It is dropped.
        """
        lines = data.split(b"\n")
        if len(lines) > 1 and self._pieces:
            lines[0] = b"".join([*self._pieces, lines[0]])
            self._pieces.clear()
            self._size = 0
        if tail := lines.pop():
            self._pieces.append(tail)
            self._size += len(tail)
            if self._size > self._limit:
                self._pieces.clear()
                self._size = 0
                raise OverflowError("a message with too many bytes")
        return lines
