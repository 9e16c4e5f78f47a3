"""Questions of agents on the page: forms with every type of field, and links."""

from __future__ import annotations

from typing import Any

from playwright.async_api import expect

from ..sessions.test_elicitations import FORM, LINK
from ..support.harness import Client, Json, script
from .tab import Tab

EVERY: Json = {
    "mode": "form",
    "message": "A few questions",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "size": {"type": "string", "title": "Size", "enum": ["Small", "Large"]},
            "parts": {
                "type": "array",
                "title": "Parts",
                "maxItems": 1,
                "items": {
                    "anyOf": [{"const": "a", "title": "First"}, {"const": "b", "title": "Second"}]
                },
            },
            "count": {"type": "integer", "title": "Count", "minimum": 2, "default": 3},
            "name": {"type": "string", "title": "Name", "pattern": "^[a-z]+$"},
            "mail": {"type": "string", "title": "Mail", "format": "email"},
            "when": {"type": "string", "title": "When", "format": "date-time"},
            "sure": {"type": "boolean", "title": "Sure"},
            "later": {"type": "_color", "title": "Colour"},
        },
        "required": ["size", "name"],
    },
}


async def told(tab: Tab) -> Any:
    await tab.settled()
    return await tab.told()


async def test_form_with_every_type_is_filled_in_by_keyboard(tab: Tab) -> None:
    page = tab.page
    await tab.say(script({"elicit": EVERY}))
    card = page.get_by_role("group", name="mock asks you")
    await expect(card).to_contain_text("A few questions")
    await expect(card).to_contain_text("This page cannot show such a field.")
    await page.keyboard.press("Control+.")
    small = card.get_by_label("Small")
    await expect(small).to_be_focused()
    assert await small.evaluate("one => one.offsetWidth") < 24  # a circle, not a field
    await tab.axe("form")
    await tab.picture("form")

    # The browser checks what is required, and the number of choices.
    await page.keyboard.press("Enter")
    await expect(card.get_by_label("Small")).to_have_js_property("validity.valueMissing", True)
    await page.keyboard.press("Space")
    await card.get_by_label("First").check()
    await card.get_by_label("Second").check()
    await card.get_by_label("Name").fill("Zoe")
    await card.get_by_role("button", name="Send").click()
    await expect(card.get_by_label("First")).to_have_js_property("validity.customError", True)

    # The server checks the rest, and the page shows its words at the field.
    await card.get_by_label("Second").uncheck()
    await card.get_by_role("button", name="Send").click()
    await expect(card.get_by_label("Name")).to_have_js_property("validity.customError", True)
    await card.get_by_label("Name").fill("zoe")
    await card.get_by_label("When").fill("2026-12-24T18:30")
    await card.get_by_label("Name").press("Enter")
    answer = (await told(tab))["elicitation"]
    assert answer["action"] == "accept"
    when = answer["content"].pop("when")
    assert when.endswith("Z")
    assert answer["content"] == {
        "size": "Small",
        "parts": ["a"],
        "count": 3,
        "name": "zoe",
        "sure": False,
    }
    await expect(page.locator("form .hint").last).to_contain_text("Answered")


async def test_several_questions_are_answered_separately(tab: Tab) -> None:
    forms = [{**FORM, "message": f"Question {number}"} for number in (1, 2)]
    await tab.say(script({"elicit": forms}))
    cards = tab.page.get_by_role("group", name="mock asks you")
    await expect(cards).to_have_count(2)
    await cards.nth(1).get_by_role("button", name="Skip").click()
    await expect(cards).to_have_count(1)
    await cards.get_by_label("City").fill("Oslo")
    await cards.get_by_role("button", name="Send").click()
    assert (await told(tab))["elicitations"] == [
        {"action": "accept", "content": {"city": "Oslo"}},
        {"action": "decline"},
    ]


async def test_link_is_shown_in_full_and_only_websites_can_be_opened(tab: Tab) -> None:
    page = tab.page
    bad = {**LINK, "url": "javascript:alert(1)", "elicitationId": "bad"}
    await tab.say(script({"elicit": [LINK, bad]}))
    cards = page.get_by_role("group", name="mock asks you")
    await expect(cards).to_have_count(2)
    await expect(cards.nth(0)).to_contain_text(LINK["url"])
    await expect(cards.nth(0)).to_contain_text("example.com")
    await expect(cards.nth(1)).to_contain_text("javascript:alert(1)")
    await expect(cards.nth(1).get_by_role("button")).to_have_count(1)
    await tab.picture("link")
    await cards.nth(1).get_by_role("button", name="Skip").click()
    async with page.context.expect_page() as opened:
        await cards.nth(0).get_by_role("button", name="Open the link").click()
    await (await opened.value).close()
    assert (await told(tab))["elicitations"] == [{"action": "accept"}, {"action": "decline"}]


async def test_answer_of_another_client_closes_the_form(tab: Tab, client: Client) -> None:
    await tab.say(script({"elicit": FORM}))
    card = tab.page.get_by_role("group", name="mock asks you")
    await expect(card).to_be_visible()
    bot = await client.connect(tab.session_id)
    (waiting,) = bot.frames[0]["pending_elicitations"]
    await bot.send("elicitation", request_id=waiting["request_id"], action="decline")
    await expect(card).to_have_count(0)
    assert (await told(tab))["elicitation"] == {"action": "decline"}
