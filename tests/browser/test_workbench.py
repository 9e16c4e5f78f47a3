"""Projects, the board, sessions side by side, and the pages for agents and administrators."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from ..support.harness import MOCKS, Client, LocalServer, local_server, mock_agent, script
from .conftest import OpenTab
from .tab import PHONE, Tab


@pytest.mark.slow
async def test_project_is_chosen_and_several_agents_are_compared(
    open_tab: OpenTab, tmp_path: Path
) -> None:
    projects = (tmp_path / "code").resolve()
    (projects / "website" / ".git").mkdir(parents=True)
    async with local_server(tmp_path / "data", agents=MOCKS, workspace_roots=(projects,)) as server:
        client = await server.client("app")
        tab = await open_tab(client)
        await tab.sign_in()
        await choose_and_compare(tab, client, projects)


async def choose_and_compare(tab: Tab, client: Client, projects: Path) -> None:
    page = tab.page
    await tab.button("Project: New folder").click()
    chooser = page.get_by_role("dialog", name="Choose a project")
    await chooser.get_by_role("button", name="code").click()
    await chooser.get_by_role("button", name="website").click()
    await expect(chooser.get_by_label("In its own worktree")).to_be_visible()  # it is a repository
    await tab.axe("projects")
    await tab.picture("projects")
    await chooser.get_by_role("button", name="Use this folder").click()
    await expect(tab.button("Project: website")).to_be_visible()
    await tab.button("Agent: mock").click()
    await page.get_by_role("menuitem", name="Ask several and compare").click()
    await page.get_by_label("demo", exact=True).check()
    await tab.button("Compare 2").click()
    await tab.say("help")
    panes = page.locator(".session:not([hidden])")
    await expect(panes).to_have_count(2)
    await expect(panes.locator(".facts:not(.working)")).to_have_count(2)
    await tab.axe("side by side")
    await tab.picture("side-by-side")
    # Compared by their results.
    await tab.button("Compare", exact=True).first.click()
    results = page.locator(".compared")
    await expect(results).to_have_count(2)
    await expect(results.locator(".md")).to_have_count(2)
    await expect(results.get_by_text("fastest")).to_have_count(1)
    await tab.axe("compare")
    await tab.picture("compare")
    await page.reload()
    await expect(results.locator(".md")).to_have_count(2)
    await page.go_back()
    await expect(panes).to_have_count(2)
    listed = (await client.get("/sessions"))[1]["sessions"]
    assert sorted(one["agent"] for one in listed) == ["demo", "mock"]
    assert {one["cwd"] for one in listed} == {str(projects / "website")}
    assert {one["retention_secs"] for one in listed} == {None}
    await page.reload()
    await expect(panes).to_have_count(2)
    await tab.button("Close this pane").first.click()
    await expect(panes).to_have_count(1)
    # The list by projects, and the project as a card.
    await tab.button("Group and filter").click()
    await page.get_by_role("menuitemradio", name="By project").click()
    await expect(page.locator(".session-list h2")).to_have_text(["website"])
    await tab.button("New session").click()
    card = tab.button(re.compile("^website 2 sessions"))
    await expect(card).to_have_attribute("aria-pressed", "true")
    await page.goto("about:blank")  # before its server ends


@pytest.mark.slow
async def test_results_are_compared_on_a_phone(open_tab: OpenTab, client: Client) -> None:
    tab = await open_tab(client, viewport=PHONE, has_touch=True, is_mobile=True)
    page = tab.page
    await tab.sign_in()
    await tab.button("Agent: mock").tap()
    await page.get_by_role("menuitem", name="Ask several and compare").tap()
    await page.get_by_label("demo", exact=True).check()
    await tab.button("Compare 2").tap()
    await tab.say(script({"say": "Some words. " * 200}, {"permission": {"title": "Delete it"}}))
    results = page.locator(".compared")
    await expect(results).to_have_count(2)
    waits = results.filter(has_text="waits for you")
    await waits.get_by_role("button", name="Answer", exact=True).tap()
    await tab.shown.get_by_role("button", name="Allow once").tap()
    await tab.settled()
    await tab.shown.get_by_role("button", name="Compare").tap()
    await expect(results.locator(".md")).to_have_count(2)
    # A long answer is cut, then shown whole; a finger scrolls nothing but the page.
    long = results.filter(has_text="Some words.").filter(has_not_text="demo agent")
    answer = long.locator(".compared-answer")
    cut = "(one) => [one.scrollHeight > one.clientHeight, getComputedStyle(one).overflowY]"
    assert await answer.evaluate(cut) == [True, "hidden"]
    await tab.axe("compare on a phone")
    await tab.picture("compare-phone")
    await long.get_by_role("button", name="Show all").tap()
    await expect(long.get_by_role("button", name="Show all")).to_be_hidden()
    assert (await answer.evaluate(cut))[0] is False
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) == 0


@pytest.mark.slow
async def test_board_answers_requests_and_menu_keeps_sessions(tab: Tab, client: Client) -> None:
    page = tab.page
    asks = await client.create(permission="ask", meta={"title": "Asks"})
    socket = await client.connect(asks)
    await socket.send("prompt", prompt=script({"permission": {"title": "Delete it"}}))
    await socket.until("permission_request")
    await tab.button("Board").click()
    tile = page.get_by_role("article", name="Asks")
    await expect(tile).to_contain_text("Delete it")
    await expect(tile).to_contain_text("left to answer")
    await tab.axe("board")
    await tab.picture("board")
    await tile.get_by_role("button", name="Reject once").click()
    resolved = await socket.until("permission_resolved")
    assert resolved["outcome"]["optionId"] == "reject_once"
    # Another session waits: one key leads to its request, from anywhere.
    other = await client.create(permission="ask", meta={"title": "Asks too"})
    second = await client.connect(other)
    await second.send("prompt", prompt=script({"permission": True}))
    await expect(page.locator(".tile[data-state=waiting]")).to_have_text(re.compile("^Asks too"))
    await page.keyboard.press("Control+.")
    await expect(page.get_by_role("heading", name="Asks too", level=1)).to_be_visible()
    await expect(page.locator(".ask-card button").first).to_be_focused()
    await page.keyboard.press("1")
    await second.until("turn_end")

    # Pinned, archived, unread, and deleted for good.
    rows = page.locator(".session-row")

    async def choose(title: str, entry: str) -> None:
        row = rows.filter(has_text=re.compile(f"^{title}(?! too)"))
        await row.hover()
        await row.get_by_role("button", name="More for").click()
        await page.get_by_role("menuitem", name=entry).click()

    await choose("Asks", "Pin")
    await expect(page.locator(".session-list h2").first).to_have_text("Pinned")
    assert (await client.state(asks))["meta"]["pinned"] is True
    await choose("Asks too", "Archive")
    await expect(rows).to_have_count(1)
    state = await client.state(other)
    assert (state["meta"]["archived"], state["state"]) == (True, "closed")
    await tab.button("Group and filter").click()
    await page.get_by_role("menuitemradio", name="The archive").click()
    await expect(rows).to_have_text(re.compile("^Asks too"))
    await choose("Asks too", "Delete for good")
    await page.get_by_role("dialog").get_by_role("button", name="Delete for good").click()
    await expect(rows).to_have_count(0)
    assert (await client.get(f"/sessions/{other}"))[0] == 404


@pytest.mark.slow
async def test_views_of_agents_and_administration_fit_on_a_phone(
    open_tab: OpenTab, server: LocalServer, client: Client, app: str
) -> None:
    await client.create()  # for the records
    tab = await open_tab(client, viewport=PHONE, has_touch=True, is_mobile=True)
    page = tab.page
    await tab.sign_in()
    await page.goto(f"{tab.url}/#view=agents")
    demo = page.get_by_role("article", name="demo", exact=True)
    await expect(demo).to_contain_text("Ready")
    missing = page.locator("[data-installed=false]").filter(has=page.locator("code"))
    await expect(missing.first.get_by_role("button", name="Copy")).to_be_visible()
    await tab.button("Check again").tap()
    await expect(page.get_by_text(re.compile(r"\d+ of \d+ agents are installed"))).to_be_visible()
    await tab.axe("agents")
    await tab.picture("agents")
    await demo.get_by_role("button", name="New session with it").tap()
    await expect(tab.button("Agent: demo")).to_be_visible()

    await page.goto(f"{tab.url}/#view=admin")
    await page.get_by_label("Admin token").fill(tab.token)  # an app's token is not enough
    await tab.button("Continue").tap()
    await expect(page.get_by_role("alert").filter(has_text="not the admin token")).to_be_visible()
    await page.get_by_label("Admin token").fill(server.admin().token or "")
    await tab.button("Continue").tap()
    await expect(page.get_by_role("cell", name=app, exact=True)).to_be_visible()
    await page.get_by_label("Name of the app").fill(f"{app}-new")
    await page.get_by_label("Create and delete sessions").uncheck()
    await tab.button("Create").tap()
    shown = page.locator(".new-token code").first
    await expect(shown).to_have_text(re.compile("^cf_"))
    await tab.button(f"Change the budget of {app}-new").tap()
    await page.get_by_role("textbox", name="Budget of").fill("2.5")
    await tab.button("Change", exact=True).tap()
    await expect(page.get_by_text("usd per day: 2.5")).to_be_visible()
    await tab.axe("administration")
    await tab.picture("administration")
    await page.get_by_role("tab", name="Usage").tap()
    await expect(page.get_by_role("group", name="Group by")).to_be_visible()
    await page.get_by_role("tab", name="Audit").tap()
    await expect(page.locator(".admin-content tbody tr").first).to_be_visible()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) == 0
    # It is in memory only.
    await page.reload()
    await expect(page.get_by_label("Admin token")).to_be_visible()


@pytest.mark.slow
async def test_agent_without_a_login_is_logged_in_and_works(
    open_tab: OpenTab, tmp_path: Path
) -> None:
    agents = {"mock": MOCKS["mock"], "keyed": mock_agent(f"--login-file={tmp_path / 'login'}")}
    async with local_server(tmp_path / "data", agents=agents) as server:
        tab = await open_tab(await server.client("app"))
        page = tab.page
        await tab.sign_in()
        await tab.button("Agent: ").click()
        await page.get_by_role("menuitemradio", name="keyed").click()
        await tab.say("hello")
        await expect(tab.button("Log in", exact=True)).to_be_visible()
        await tab.axe("no login")
        await tab.picture("no-login")
        await tab.button("Log in", exact=True).click()
        card = page.get_by_role("article", name="keyed")
        await expect(card).to_contain_text("Needs a login")
        await tab.picture("login")
        await card.get_by_role("button", name="Log in: Log in").click()
        await page.get_by_label("Admin token").fill(server.admin().token or "")
        await tab.button("Continue").click()
        await expect(page.get_by_text("keyed is logged in.")).to_be_visible()
        await card.get_by_role("button", name="New session with it").click()
        await tab.composer.fill("")
        await tab.say("here again")
        await expect(tab.answer("echo: here again")).to_be_visible()
        await page.goto("about:blank")  # before its server ends
