"""Many connections that never authenticate.

    python -m tests.chaos.unauthenticated URL SERVER_PID SESSION COUNT

This is a separate program, so that it does not slow the measuring client. A third of the
connections upgrades and sends nothing more, a third never completes its request, and a third sends
nothing. At the end the program prints JSON: how many connections were accepted, dropped and refused
with 429, and the largest number of descriptors of the server.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections import Counter

from ..support.raw_socket import open_connection, upgrade_request
from .measurements import open_files

CONCURRENT = 1000
INCOMPLETE = b"GET /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


async def read_until_closed(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
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
    limit = asyncio.Semaphore(CONCURRENT)
    upgrade = upgrade_request(url, f"/sessions/{session}/ws", None)

    async def connect(data: bytes) -> None:
        nonlocal most
        async with limit:
            try:
                connection = await open_connection(url)
                await asyncio.get_running_loop().sock_sendall(connection, data)
                most = max(most, open_files(pid))
                received = await read_until_closed(connection)
            except ConnectionError:
                received = b""
        status = received.split(b" ", 2)[1].decode() if received else "dropped"
        outcomes[{"101": "accepted", "429": "refused"}.get(status, status)] += 1

    await asyncio.gather(*(connect((upgrade, INCOMPLETE, b"")[n % 3]) for n in range(count)))
    sys.stdout.write(json.dumps({"outcomes": outcomes, "most": most}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
