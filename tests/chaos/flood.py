"""Unauthenticated clients that repeatedly send bodies which are expensive to read.

    python -m tests.chaos.flood URL SECONDS

This is a separate program, so that it does not slow the measuring client. Four clients send gzip
that unpacks to two gigabytes, and four send deep JSON, all without a token. Each sends at least one
request. At the end the program prints JSON: the number of responses by status.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import sys
import time
import zlib
from collections import Counter

from ..support.raw_socket import open_connection, read_head

PATHS = ("/sessions", "/run", "/files", "/admin/tokens")
BLOCKS = 2048
BLOCK_BYTES = 1 << 20


@functools.cache
def bomb() -> bytes:
    """A gzip body of two megabytes. Its checksum is missing, which only the end reveals."""
    packer = zlib.compressobj(wbits=31)
    head = packer.flush(zlib.Z_FULL_FLUSH)
    return head + BLOCKS * (packer.compress(bytes(BLOCK_BYTES)) + packer.flush(zlib.Z_FULL_FLUSH))


def request(path: str, body: bytes, more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


async def flood(url: str, data: bytes, end: float, statuses: Counter[str]) -> None:
    """Send *data* until *end*, and at least once, however slow the machine is."""
    loop = asyncio.get_running_loop()
    while True:
        status = "dropped"
        with contextlib.suppress(ConnectionError), await open_connection(url) as connection:
            sending = asyncio.ensure_future(loop.sock_sendall(connection, data))
            head, _ = await read_head(connection)
            if head:
                status = head.split(b" ", 2)[1].decode()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        statuses[status] += 1
        if time.monotonic() >= end:
            return


async def main(url: str, seconds: float) -> None:
    os.nice(19)  # real clients run on other machines
    deep = b"[" * (16 << 20)
    statuses: Counter[str] = Counter()
    packed = [request(path, bomb(), "Content-Encoding: gzip\r\n") for path in PATHS]
    nested = [request(path, deep) for path in PATHS]
    sys.stdout.write("\n")
    sys.stdout.flush()
    end = time.monotonic() + seconds
    await asyncio.gather(*(flood(url, data, end, statuses) for data in packed + nested))
    sys.stdout.write(json.dumps(statuses))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
