"""Three clients in one conversation: an SDK at ``/acp``, a bot on the socket, and the page."""

from __future__ import annotations

import asyncio

from playwright.async_api import expect

from ..support.acp_sdk import SdkClient, connect_sdk, script_blocks, text_block
from ..support.harness import Client, Deadline
from .tab import Tab


async def test_sdk_bot_and_page_share_a_conversation(tab: Tab, client: Client) -> None:
    me = SdkClient()
    agent, recorder = await connect_sdk(client, me)
    session = (await agent.new_session(cwd="/", mcp_servers=[])).session_id
    bot = await client.connect(session)
    await tab.sign_in(session)

    await agent.prompt(session_id=session, prompt=[text_block("from the SDK")])
    await bot.turn("from the bot")
    await tab.say("from the page")
    await me.until_text(session, "echo: from the page")
    await bot.until_text("echo: from the page")
    await tab.settled(3)
    said = ["from the SDK", "from the bot", "from the page"]
    assert me.texts[session] == bot.text() == "".join(f"echo: {text}" for text in said)
    assert me.users[session] == "from the botfrom the page"
    prompts = [entry["prompt"] for entry in bot.entries if entry["type"] == "turn_start"]
    assert [prompt[0]["text"] for prompt in prompts] == said
    await expect(tab.turns.locator(".bubble")).to_have_text(said)
    await expect(tab.shown.locator(".message")).to_have_text([f"echo: {text}" for text in said])

    # All clients are asked. After the answer in the page, the SDK's client need not answer.
    me.decided.clear()
    asking = asyncio.create_task(
        agent.prompt(
            session_id=session, prompt=script_blocks({"permission": {"title": "together"}})
        )
    )
    await me.until("the question", lambda: me.asked == [(session, "together")])
    await bot.until("permission_request")
    card = tab.shown.get_by_role("group", name="asks for your permission")
    await expect(card).to_be_visible()
    await card.get_by_role("button", name="Reject once").click()
    async with Deadline("the SDK client's question to be withdrawn"):
        assert [await recorder.withdrawn.get()] == recorder.asked
        assert (await asking).stop_reason == "end_turn"
    resolved = await bot.until("permission_resolved")
    assert (resolved["outcome"]["optionId"], resolved["by"]) == ("reject_once", "client")
    await tab.settled(4)
    await expect(tab.shown.locator(".message").last).to_contain_text("reject_once")
    me.decided.set()  # too late, and no harm: the next turn is as any other
    await bot.turn("after all")
    await me.until_text(session, "echo: after all")
    await tab.settled(5)
    await agent.close()
