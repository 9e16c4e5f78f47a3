"""A bare aiohttp server: sends the payloads from its stdin to all of its sockets.

Each line of stdin is a payload, and an empty line sends the payloads so far. The first line on
stdout is the server's address.
"""

import asyncio
import sys

from aiohttp import WSMsgType, web


async def main() -> None:
    sockets: set[web.WebSocketResponse] = set()

    async def accept(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        sockets.add(ws)
        async for _ in ws:
            pass
        sockets.discard(ws)
        return ws

    async def send(ws: web.WebSocketResponse, payloads: list[bytes]) -> None:
        for payload in payloads:
            await ws.send_frame(payload, WSMsgType.TEXT)

    app = web.Application()
    app.router.add_get("/", accept)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"ws://127.0.0.1:{runner.addresses[0][1]}/", flush=True)

    stdin = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    payloads: list[bytes] = []
    while line := await stdin.readline():
        if line != b"\n":
            payloads.append(line[:-1])
            continue
        await asyncio.gather(*(send(ws, payloads) for ws in tuple(sockets)))
        payloads = []


asyncio.run(main())
