"""The time that the key proxy adds to the first byte of a provider's response."""

from __future__ import annotations

import asyncio
import time

import aiohttp
from aiohttp import web
from measure import Samples
from report import Report

from server.gateways.key_proxy import KeyProxy
from server.gateways.session_keys import Holder, SessionKeys
from server.sandbox.trial import TrialSpec

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello " * 1000}]}
EVENT = b'event: message_start\ndata: {"message": {"usage": {"input_tokens": 1}}}\n\n'


def measure_key_proxy(report: Report, *, quick: bool) -> None:
    """The first byte of a stream through the proxy, compared to a direct request."""
    direct, proxied = asyncio.run(_measure(200 if quick else 2000))
    found = {"direct": direct, "key proxy": proxied}
    report.compare("First byte of a provider's response", "ms", found)
    added = proxied.median - direct.median
    report.at_most("first byte, added by the key proxy", added, 1, "ms")


async def _answer(request: web.Request) -> web.StreamResponse:
    await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(EVENT)
    await response.write_eof()
    return response


async def _measure(rounds: int) -> tuple[Samples, Samples]:
    app = web.Application()
    app.router.add_post("/v1/messages", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    proxy = KeyProxy(SessionKeys(None), {})
    proxy.keys.find_holder = lambda _: Holder("app", is_working=True)
    await proxy.start()
    environ = {"ANTHROPIC_API_KEY": "a key", "ANTHROPIC_BASE_URL": url}
    given = proxy.keys.replace(TrialSpec("session", "/"), environ, {}).environ
    targets = {url: Samples(), given["ANTHROPIC_BASE_URL"]: Samples()}
    headers = {"x-api-key": given["ANTHROPIC_API_KEY"]}
    try:
        async with aiohttp.ClientSession(headers=headers) as http:
            for number in range(rounds + 20):  # one after the other, with the same noise
                for target, samples in targets.items():
                    started_at = time.perf_counter()
                    async with http.post(f"{target}/v1/messages", json=BODY) as reply:
                        await reply.content.readany()
                        secs = time.perf_counter() - started_at
                        await reply.read()
                    if number >= 20:
                        samples.add(secs * 1000)
    finally:
        await proxy.stop()
        await runner.cleanup()
    direct, proxied = targets.values()
    return direct, proxied
