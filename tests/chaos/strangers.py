"""Connections that never say who they are, in numbers; a program, so that they cost no user's time.

    python -m tests.chaos.strangers URL SERVER_PID SESSION COUNT

A third upgrades and says no more, a third begins a request and never ends it, a third says nothing.
At the end it prints JSON: how many were let wait, dropped and told to come later, and how many
descriptors the server had at most.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections import Counter

from ..support.raw_socket import open_connection, upgrade_request
from .crowd import open_files

AT_ONCE = 1000
UNENDED = b"GET /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


async def until_gone(connection: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    received = b""
    try:
        while data := await asyncio.get_running_loop().sock_recv(connection, 65536):
            received += data
    except ConnectionError:
        pass
    finally:
        connection.close()
    return received


async def main(url: str, pid: int, session: str, count: int) -> None:
    outcomes: Counter[str] = Counter()
    most = 0
    together = asyncio.Semaphore(AT_ONCE)
    upgrade = upgrade_request(url, f"/sessions/{session}/ws", None)

    async def come(said: bytes) -> None:
        nonlocal most
        async with together:
            try:
                connection = await open_connection(url)
                await asyncio.get_running_loop().sock_sendall(connection, said)
                most = max(most, open_files(pid))
                received = await until_gone(connection)
            except ConnectionError:
                received = b""
        status = received.split(b" ", 2)[1].decode() if received else "dropped"
        outcomes[{"101": "let wait", "429": "told to come later"}.get(status, status)] += 1

    await asyncio.gather(*(come((upgrade, UNENDED, b"")[n % 3]) for n in range(count)))
    sys.stdout.write(json.dumps({"outcomes": outcomes, "most": most}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
