"""The JavaScript client against a real server: ``javascript.mjs`` has the tests."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from playwright.async_api import Route, async_playwright

from server.agents.catalog import find_node

from ..conftest import Spawn
from ..repository.test_guides import program_of
from ..repository.test_readme import CHROMIUM, HAS_CHROMIUM
from ..support.client import ADMIN
from ..support.harness import (
    ROOT,
    TIMEOUT_SECS,
    Client,
    http_session,
    new_client,
    run_program,
)

HERE = Path(__file__).parent
NODE = find_node()


async def test_javascript_client_passes_its_own_tests(client: Client, tmp_path: Path) -> None:
    assert client.token is not None
    keeper = tmp_path / "keeper.mjs"
    program = program_of("howto/javascript-client.md", "keeper.mjs")
    keeper.write_text(program.replace("meta: {", "agent: 'mock', meta: {"))
    status, out, err = await run_program(
        NODE,
        *("--test", "--test-reporter=tap", str(HERE / "javascript.mjs")),
        URL=client.url,
        TOKEN=client.token,
        ADMIN=ADMIN,
        KEEPER=str(keeper),
    )
    assert status == 0, out + err


@pytest.mark.slow
async def test_turn_survives_a_killed_server(spawn: Spawn) -> None:
    server = await spawn()
    port = server.url.rpartition(":")[2]
    async with http_session() as http:
        token = (await new_client(server.url, http)).token
    assert token is not None
    process = await asyncio.create_subprocess_exec(
        *(NODE, str(HERE / "killed.mjs")),
        env={**os.environ, "URL": server.url, "TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(2 * TIMEOUT_SECS):
        assert await process.stdout.readline() == b"started\n"
        await server.kill()
        await spawn(PORT=port)
        found = json.loads(await process.stdout.readline())
        assert await process.wait() == 0
    assert found["code"] == "server_restarted"
    assert found["again"] == "echo: again"
    assert found["seqs"] == list(range(found["seqs"][0], found["seqs"][0] + len(found["seqs"])))


IN_THE_PAGE = """async token => {
    const { Clawdforge } = await import('/client/client.js');
    const forge = new Clawdforge(location.origin, token);
    const session = await forge.createSession({ agent: 'mock' });
    const ticket = async () => ({ ticket: await session.ticket() });
    const guest = new Clawdforge(location.origin, null, { credential: ticket });
    const texts = [];
    const following = (async () => {
        for await (const entry of guest.session(session.id).entries())
            if (entry.type === 'turn_end') return entry.stop_reason;
    })();
    for await (const text of session.prompt('hello').text()) texts.push(text);
    texts.push(await following);
    forge.close();
    guest.close();
    return texts;
}"""


@pytest.mark.slow
@pytest.mark.browser
async def test_client_works_in_a_browser_with_a_token_and_with_tickets(spawn: Spawn) -> None:
    if not HAS_CHROMIUM:
        pytest.skip(f"{CHROMIUM} is missing")
    server = await spawn()
    async with http_session() as http:
        token = (await new_client(server.url, http)).token
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        page = await browser.new_page()

        async def send_file(route: Route) -> None:
            name = route.request.url.rpartition("/")[2]
            body = (ROOT / "clients" / "javascript" / name).read_bytes()
            await route.fulfill(body=body, content_type="text/javascript")

        await page.route("**/client/*", send_file)
        await page.goto(server.url)
        assert await page.evaluate(IN_THE_PAGE, token) == ["echo: hello", "end_turn"]
        await browser.close()
