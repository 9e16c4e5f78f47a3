"""Changes of an agent, undo, and the files of a session's folder."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.async_api import expect

from ..support.harness import Client, script
from .conftest import OpenTab
from .tab import PHONE, Tab

OLD = "def greet(name):\n    print('hello ' + name)\n    return True\n"
NEW = "def greet(name):\n    print(f'hello {name}')\n    return True\n\n\ngreet('you')\n"


def edit(path: str) -> dict[str, object]:
    call = {"toolCallId": path, "title": f"Edit {path}", "kind": "edit", "status": "completed"}
    return {"update": {"sessionUpdate": "tool_call", **call, "locations": [{"path": path}]}}


async def folder_of(tab: Tab, client: Client) -> Path:
    return Path((await client.state(tab.session_id))["cwd"])


async def test_changes_are_reviewed_undone_and_downloaded(
    tab: Tab, client: Client, open_tab: OpenTab, tmp_path: Path
) -> None:
    page = tab.page
    file = tmp_path
    for turn, (name, text) in enumerate(
        [("greet.py", OLD), ("greet.py", NEW), ("notes/<b>.md", "# Notes\n")], 1
    ):
        gate = tmp_path / str(turn)
        await tab.say(script({"say": f"turn {turn}"}, {"gate": str(gate)}, edit(name)))
        await expect(tab.answer(f"turn {turn}")).to_be_visible()
        file = await folder_of(tab, client) / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        gate.touch()
        await tab.settled(turn)
    review = tab.button(re.compile("^2 files.*Review"))
    await expect(review).to_contain_text("+7")
    await review.click()
    side = page.get_by_role("complementary", name="Changes and files")
    files = side.locator(".file-row")
    await expect(files).to_have_count(2)
    whole = "(all) => all.every((one) => one.scrollWidth <= one.clientWidth)"
    assert await files.locator(".path").evaluate_all(whole)
    await files.first.locator("summary").click()
    await expect(files.first.locator(".row.add")).to_have_count(6)
    await tab.axe("changes")
    await tab.picture("changes")
    # The changes of one turn, and the way back from it.
    await side.get_by_role("button", name="The whole session").click()
    await page.get_by_role("menuitemradio").nth(2).press("Enter")
    await expect(files.first.locator(".row.del .changed").first).to_be_visible()
    await expect(files.first.locator(".row .hljs-keyword").first).to_have_text("def")
    await expect(files.first.locator(".row.del .hljs-string.changed").first).to_be_visible()
    # Old and new lines side by side, with a comment on either side; the choice stays.
    halves = side.get_by_role("button", name="Side by side")
    await halves.press("Enter")
    await expect(halves).to_have_attribute("aria-pressed", "true")
    pair = files.first.locator(".pair").nth(1)
    await expect(pair.locator(".row.del")).to_contain_text("'hello '")
    await expect(pair.locator(".row.add")).to_contain_text("{name}")
    await expect(pair.locator(".row.add .hljs-string").first).to_be_visible()
    await pair.get_by_role("button", name="Comment on line 2").first.press("Enter")
    await page.keyboard.press("Escape")
    await expect(pair.get_by_role("button", name="Comment on line 2").first).to_be_focused()
    await tab.axe("side by side changes")
    await tab.picture("changes-split")
    await halves.press("Enter")
    await expect(files.first.locator(".pair")).to_have_count(0)
    await side.get_by_role("button", name="Undo since here").click()
    await page.get_by_role("dialog").get_by_role("button", name="Undo").click()
    await expect(side.locator(".strip")).to_contain_text("2 files restored")
    assert file.parent.parent.joinpath("greet.py").read_text() == OLD
    assert not file.exists()
    await side.get_by_role("button", name="Undo the undo").click()
    await expect(side.get_by_role("button", name="Undo that")).to_be_visible()
    assert file.parent.parent.joinpath("greet.py").read_text() == NEW
    # Comments on lines go back as one prompt, and survive a reload of the page.
    await side.get_by_role("button", name="Comment on line 2").last.press("Enter")
    await page.keyboard.type("Use a logger.")
    await page.keyboard.press("Escape")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await page.keyboard.type("Why?")
    await tab.axe("comments")
    await tab.picture("comments")
    await page.reload()
    await review.click()
    await expect(side.get_by_role("button", name="Send 2 comments")).to_be_visible()
    await files.first.locator("summary").click()
    await side.get_by_label("Comment on line 3").locator("visible=true").last.press("Control+Enter")
    await tab.settled(4)
    await expect(tab.turns.last.locator(".bubble")).to_have_text(
        "greet.py, line 2:\n> +     print(f'hello {name}')\nUse a logger.\n\n"
        "greet.py, line 3:\n>       return True\nWhy?",
        use_inner_text=True,
    )
    await expect(side.locator(".comment")).to_have_count(0)
    # The files, with a preview.
    await side.get_by_role("button", name="Files", exact=True).click()
    # Until then the changed files are shown, one of which has the same name.
    await expect(side.locator(".changes-list")).to_have_attribute("aria-busy", "false")
    await side.locator("summary", has_text="notes").press("Enter")
    await expect(side.locator("summary", has_text="<b>.md")).to_be_visible()
    await side.get_by_role("button", name="Files", exact=True).click()  # what is open stays open
    await expect(side.locator(".changes-list")).to_have_attribute("aria-busy", "false")
    await tab.picture("files-open")
    await side.locator("summary", has_text="<b>.md").click()
    await expect(side.locator("pre")).to_have_text("# Notes")
    async with page.expect_download() as saved:
        await side.get_by_role("button", name="Download", exact=True).click()
    assert Path(await (await saved.value).path()).read_text() == "# Notes\n"
    await tab.axe("files")
    await tab.picture("files")
    await page.keyboard.press("Control+Shift+E")
    await expect(side).to_be_hidden()
    await expect(tab.composer).to_be_focused()
    # A file of the folder is attached by its name.
    bot = await client.connect(tab.session_id)
    await page.keyboard.type("see @no")
    option = page.get_by_role("option", name="notes")
    await expect(option.first).to_have_attribute("aria-selected", "true")
    await page.keyboard.press("Tab")
    await expect(tab.composer).to_have_value("see @notes/")
    await expect(option).to_have_count(1)
    await tab.axe("paths")
    await tab.picture("paths")
    await page.keyboard.press("Enter")
    await expect(tab.composer).to_have_value("see @notes/<b>.md ")
    await page.keyboard.press("Enter")
    await tab.settled(5)
    sent = (await bot.until("turn_start"))["prompt"]
    link = {"type": "resource_link", "name": "notes/<b>.md", "size": 8}
    uri = (file.parent.parent / "notes" / "<b>.md").as_uri()
    assert sent == [{"type": "text", "text": "see @notes/<b>.md"}, {**link, "uri": uri}]
    phone = await open_tab(client, viewport=PHONE, color_scheme="dark")
    await phone.sign_in(tab.session_id)
    await phone.button(re.compile("Review$")).click()
    await phone.shown.page.locator(".file-row summary").first.click()
    await expect(phone.page.locator(".file-row .row.add").first).to_be_visible()
    await phone.axe("changes on a phone")
    await phone.picture("changes-phone")
