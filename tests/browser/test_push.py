"""Notifications of the service worker: with the options of a request, and while no page is open."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Worker, expect

from ..support.harness import Client, eventually, script
from ..support.push_service import push_service
from .conftest import OpenTab
from .tab import PHONE

Json = dict[str, Any]

# The browser's part of a subscription, which a browser without a push service cannot play.
SUBSCRIBE = """
PushManager.prototype.subscribe = async ({ applicationServerKey }) =>
    applicationServerKey && { toJSON: () => (%s) };
PushManager.prototype.getSubscription = async () => ({ unsubscribe: async () => true });
Notification.requestPermission = async () => "granted";
"""
# An event that a test makes cannot be extended, so the test waits for the promise itself.
DISPATCH = """async ([name, fields]) => {
    self.shown ??= [];
    registration.showNotification = async (title, options) => shown.push({ title, ...options });
    const { data, ...others } = fields;
    let done = Promise.resolve();
    const given = name === "push"
        ? { data: { json: () => data } }
        : { notification: { data, close() {} }, ...others };
    dispatchEvent(Object.assign(new Event(name), given, { waitUntil: (work) => (done = work) }));
    await done;
    return shown;
}"""

KEPT = """() => new Promise((resolve) => {
    indexedDB.open("clawdforge", 1).onsuccess = ({ target }) => {
        const kept = target.result.transaction("kept").objectStore("kept");
        kept.get("settings").onsuccess = ({ target }) => resolve(target.result ?? null);
    };
})"""


async def dispatch(worker: Worker, name: str, **fields: Any) -> list[Json]:
    """All notifications that were shown so far."""
    shown: list[Json] = await worker.evaluate(DISPATCH, [name, fields])
    return shown


async def test_request_is_answered_in_the_notification(open_tab: OpenTab, client: Client) -> None:
    async with push_service() as service:
        browser = service.browser()
        tab = await open_tab(client, viewport=PHONE, has_touch=True, is_mobile=True)
        page, context = tab.page, tab.page.context
        subscription = str(browser.subscription()).replace("None", "null")
        await page.add_init_script(SUBSCRIBE % subscription)
        await tab.sign_in()
        await page.get_by_role("button", name="Show the sessions").tap()
        await tab.button("Settings").click()
        key = page.get_by_role("menuitem", name="Keyboard shortcuts").locator("kbd")
        await expect(key).to_have_css("background-color", "rgba(0, 0, 0, 0)")  # no badge
        await page.get_by_role("menuitem", name="Notifications and quiet hours").click()
        dialog = page.get_by_role("dialog", name="Notifications")
        await dialog.get_by_label("On this device").check()
        await expect(dialog.get_by_label("On this device")).to_be_enabled()
        await expect(dialog.get_by_role("alert")).to_be_empty()
        await tab.axe("notifications")
        await tab.picture("notifications")
        (worker,) = context.service_workers
        assert worker.url.endswith("/static/sw.js")

        session = await client.create(permission="ask", meta={"title": "Tidy up"})
        socket = await client.connect(session)
        await socket.send("prompt", prompt=script({"permission": {"title": "rm -rf build"}}))
        message = await browser.next("permission_requested")
        await page.goto("about:blank")
        (shown,) = await dispatch(worker, "push", data=message)
        assert (shown["title"], shown["body"], shown["silent"]) == (
            "Tidy up",
            "rm -rf build",
            False,
        )
        allow, reject = shown["actions"]
        assert [allow["title"], reject["title"]] == ["Allow once", "Reject once"]
        await dispatch(worker, "notificationclick", data=message, action=allow["action"])
        resolved = await socket.until("permission_resolved")
        assert (resolved["outcome"]["optionId"], resolved["by"]) == ("allow_once", "client")
        # A late answer says so.
        late = await dispatch(worker, "notificationclick", data=message, action=reject["action"])
        assert len(late) == 2

        # In quiet hours there is no sound; after the sign-out, no sign-in.
        await tab.sign_in()
        await page.evaluate(
            "navigator.serviceWorker.ready.then(({ active }) => active.postMessage("
            "{ settings: { token: 'cf_x', quiet: { from: '00:00', to: '23:59' } } }))"
        )
        await page.goto("about:blank")
        assert (await dispatch(worker, "push", data=message))[-1]["silent"] is True
        await tab.sign_in()
        await page.get_by_role("button", name="Show the sessions").tap()
        await tab.button("Settings").click()
        await page.get_by_role("menuitem", name="Sign out").click()

        async def forgotten() -> bool:
            status, reply = await client.get("/push/subscriptions")
            return bool(status == 200 and reply["count"] == 0)

        await eventually("the subscription to end", forgotten)
        assert await worker.evaluate(KEPT) is None
