"""Webhooks: what the receiver gets, in which order, and what happens while it is down."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from aiohttp import web

from server.outbox.delivery_queue import DeliveryQueue
from server.sessions.alerts import ALERT_KINDS
from server.storage.outbox import WebhookRow

from ..conftest import Serve
from ..sessions.test_usage import reporting
from ..support.client import failure
from ..support.harness import Client, Clock, Json, LocalServer, eventually, local_server, script
from ..support.receiver import Receiver, webhook_receiver
from .conftest import LOCAL

BIG = {"title": "x" * 4000, "options": [{"optionId": "a", "name": "A", "kind": "allow_once"}]}


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after a moment."""
    monkeypatch.setattr("server.outbox.webhook_delivery.FIRST_RETRY_SECS", 0.05)


async def shown(client: Client) -> Json:
    status, reply = await client.get("/webhook")
    assert status == 200, reply
    return reply


async def until_empty(client: Client) -> None:
    async def is_empty() -> bool:
        return bool((await shown(client))["pending"] == 0)

    await eventually("all deliveries", is_empty)


async def test_events_are_delivered_with_the_fields_of_their_entries(
    client: Client, receiver: Receiver
) -> None:
    await receiver.register(client)
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"permission": True}))
    asked = await socket.until("permission_request")
    event = await receiver.next("permission_requested")
    assert event["timestamp"].endswith("Z")
    data = event["data"]
    assert data["request"]["options"] == asked["request"]["options"]
    for name in ("request_id", "expires_at", "turn_index", "seq"):
        assert data[name] == asked[name]
    assert data["session_id"] == session
    assert data["head"] >= data["seq"]
    await socket.send("permission", request_id=asked["request_id"], option_id="allow_once")
    end = await socket.until("turn_end")
    data = (await receiver.next("turn_ended"))["data"]
    for name in ("stop_reason", "duration_ms", "error", "turn_index", "seq"):
        assert data[name] == end[name]
    await client.delete(f"/sessions/{session}")
    data = (await receiver.next("session_closed"))["data"]
    assert data["reason"] == "client"
    assert [event["type"] for event in receiver.accepted] == [
        "permission_requested",
        "turn_ended",
        "session_closed",
    ]
    assert len(set(receiver.ids())) == 3
    await until_empty(client)


async def test_request_that_a_policy_resolves_is_not_reported(
    client: Client, receiver: Receiver
) -> None:
    await receiver.register(client)
    await client.turn(await client.create(), script({"permission": True}))
    await receiver.next("turn_ended")
    assert [event["type"] for event in receiver.accepted] == ["turn_ended"]


async def test_only_chosen_events_are_delivered(client: Client, receiver: Receiver) -> None:
    reply = await receiver.register(client, events=["session_closed"])
    assert reply["events"] == ["session_closed"]
    session = await client.create()
    await client.turn(session, "hello")
    await client.delete(f"/sessions/{session}")
    await receiver.next("session_closed")
    assert [event["type"] for event in receiver.accepted] == ["session_closed"]


async def test_secret_is_created_and_shown_once(client: Client, receiver: Receiver) -> None:
    status, reply = await client.call("PUT", "/webhook", {"url": receiver.url})
    assert status == 200
    assert reply["events"] == list(ALERT_KINDS)
    receiver.secret = reply["secret"]
    assert len(base64.b64decode(receiver.secret.removeprefix("whsec_"))) == 32
    assert receiver.secret not in str(await shown(client))
    await client.turn(await client.create(), "hello")
    await receiver.next("turn_ended")
    given = await receiver.register(client)
    assert "secret" not in given


@pytest.mark.usefixtures("fast_retries")
async def test_failed_delivery_is_repeated_with_its_id_and_before_the_next_of_its_session(
    client: Client, receiver: Receiver
) -> None:
    await receiver.register(client, events=["turn_ended"])
    failing, other = await client.create(), await client.create()

    async def refuse(request: web.Request) -> web.Response:
        event = receiver.attempts[-1][2]
        if event["data"]["session_id"] == failing and len(receiver.attempts) < 6:
            return web.Response(status=503)
        receiver.accepted.append(event)
        return web.Response()

    receiver.answer = refuse
    await client.turn(failing, "one")
    await receiver.until("an attempt", lambda: receiver.attempts)
    await client.turn(failing, "two")
    await client.turn(other, "three")
    await receiver.next("turn_ended", session_id=other)
    await receiver.next("turn_ended", session_id=failing, turn_index=2)
    delivered = [
        event["data"]["turn_index"]
        for event in receiver.accepted
        if event["data"]["session_id"] == failing
    ]
    assert delivered == [1, 2]
    assert len(receiver.accepted) == 3  # nothing that was accepted is repeated
    assert len(set(receiver.ids())) == 3
    await until_empty(client)
    failures = (await shown(client))["failures"]
    assert {one["status"] for one in failures} == {503}
    assert [one["attempt"] for one in failures] == sorted(
        (one["attempt"] for one in failures), reverse=True
    )
    assert not any(one["gave_up"] for one in failures)


async def test_first_retry_comes_within_ten_seconds(client: Client, receiver: Receiver) -> None:
    await receiver.register(client)
    receiver.status = 500
    await client.turn(await client.create(), "hello")
    await receiver.until("an attempt", lambda: receiver.attempts)

    async def pending() -> list[Json]:
        found: list[Json] = (await shown(client))["deliveries"]
        return [one for one in found if one["attempts"]]

    (delivery,) = await eventually("the failure", pending)
    assert delivery["next_attempt_at"] - delivery["created_at"] <= 10
    assert delivery["id"] == receiver.ids()[0]


@pytest.mark.slow
async def test_receiver_that_was_down_for_an_hour_gets_everything_after_a_restart(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with webhook_receiver() as receiver:
        receiver.clock = clock
        await receiver.stop()
        async with local_server(tmp_path / "data", clock=clock, webhook_hosts=LOCAL) as server:
            client = await server.client()
            await receiver.register(client, events=["turn_ended"])
            session = await client.create()
            for prompt in ("one", "two", "three"):
                await client.turn(session, prompt)
            for _ in range(6):
                clock.advance(600)
                before = (await shown(client))["deliveries"][0]["attempts"]

                async def is_attempted(before: int = before) -> bool:
                    return bool((await shown(client))["deliveries"][0]["attempts"] > before)

                await eventually("another attempt", is_attempted)
            assert (await shown(client))["pending"] == 3
            assert (await shown(client))["failures"][0]["status"] is None
        await receiver.start()
        clock.advance(1800)
        async with local_server(tmp_path / "data", clock=clock, webhook_hosts=LOCAL) as server:
            await receiver.next("turn_ended", turn_index=3)
            turns = [event["data"]["turn_index"] for event in receiver.accepted]
            # The end of the server has interrupted no turn.
            assert turns == [1, 2, 3]
            head = receiver.accepted[0]["data"]["head"]
            assert head == receiver.accepted[2]["data"]["seq"]


async def test_limits_of_deliveries(serve: Serve, receiver: Receiver) -> None:
    clock = Clock()
    server = await serve(
        clock=clock,
        webhook_hosts=LOCAL,
        max_webhook_attempts=2,
        webhook_max_age_secs=3600,
        max_webhook_deliveries_per_app=3,
        max_webhook_bytes_per_app=2000,
        permission_timeout_secs=0.01,
    )
    client = await server.client()
    await receiver.register(client)
    receiver.status = 500
    session = await client.create()
    await client.turn(session, "one")
    await receiver.until("an attempt", lambda: receiver.attempts)
    await client.turn(session, "two")
    clock.advance(60)
    await receiver.until("a second attempt", lambda: len(receiver.attempts) == 2)
    await receiver.until("the next event", lambda: len(receiver.attempts) == 3)
    clock.advance(3600)
    await until_empty(client)
    assert [event["data"]["turn_index"] for _, _, event in receiver.attempts] == [1, 1, 2]
    gave_up = [one for one in (await shown(client))["failures"] if one["gave_up"]]
    assert [(one["seq"], one["attempt"]) for one in gave_up] == [
        (receiver.attempts[2][2]["data"]["seq"], 1),
        (receiver.attempts[0][2]["data"]["seq"], 2),
    ]
    for _ in range(5):
        await client.turn(session, "hello")
    reply = await shown(client)
    assert (reply["pending"], reply["dropped"]) == (3, 2)
    failed = reply["failures"][0]
    assert (failed["attempt"], failed["gave_up"]) == (None, True) or reply["failures"][1]["gave_up"]
    other = await server.client("other")
    await receiver.register(other)
    await other.turn(await other.create(permission="ask"), script({"permission": BIG}))
    reply = await shown(other)
    assert (reply["pending"], reply["dropped"]) == (1, 1)


async def test_receiver_that_never_responds_delays_no_other_app(
    server: LocalServer, receiver: Receiver
) -> None:
    hang = asyncio.Event()

    async def never(request: web.Request) -> web.Response:
        await hang.wait()
        return web.Response()

    async with webhook_receiver() as dead:
        dead.answer = never
        slow, fast = await server.client("slow"), await server.client("fast")
        await dead.register(slow)
        await receiver.register(fast)
        for _ in range(6):
            await slow.turn(await slow.create(), "hello")
        await dead.until("requests", lambda: len(dead.attempts) == 4)  # its limit
        await fast.turn(await fast.create(), "hello")
        await receiver.next("turn_ended")
        assert (await shown(slow))["pending"] == 6
        assert (await server.admin().delete("/admin/tokens/slow"))[0] == 200
        hang.set()


async def test_webhook_ends_with_its_token_and_belongs_to_its_app(
    server: LocalServer, receiver: Receiver
) -> None:
    owner, other = await server.client("owner"), await server.client("other")
    await receiver.register(owner)
    failure(await other.get("/webhook"), 404, "not_found")
    failure(await other.delete("/webhook"), 404, "not_found")
    receiver.status = 500
    session = await owner.create()
    await owner.turn(session, "hello")
    await receiver.until("an attempt", lambda: receiver.attempts)
    assert (await server.admin().delete("/admin/tokens/owner"))[0] == 200
    again = await server.client("owner")
    failure(await again.get("/webhook"), 404, "not_found")
    receiver.status = 200
    await receiver.register(again)
    assert (await shown(again))["pending"] == 0
    assert not (await shown(again))["failures"]


async def test_deleted_webhook_gets_nothing_more(client: Client, receiver: Receiver) -> None:
    await receiver.register(client)
    receiver.status = 500
    session = await client.create()
    await client.turn(session, "hello")
    await receiver.until("an attempt", lambda: receiver.attempts)
    assert (await client.delete("/webhook"))[0] == 200
    failure(await client.get("/webhook"), 404, "not_found")
    receiver.status = 200
    await client.turn(session, "again")
    await receiver.register(client)
    await client.turn(session, "and again")
    await receiver.next("turn_ended")
    assert [event["data"]["turn_index"] for event in receiver.accepted] == [3]


async def test_changed_address_gets_the_waiting_deliveries(
    client: Client, receiver: Receiver
) -> None:
    async with webhook_receiver() as old:
        old.status = 500
        await old.register(client)
        await client.turn(await client.create(), "hello")
        await old.until("an attempt", lambda: old.attempts)
        await receiver.register(client)
        await receiver.next("turn_ended", turn_index=1)
        assert receiver.ids()[0] == old.ids()[0]


async def test_token_without_the_scope_read_gets_no_webhooks(
    server: LocalServer, receiver: Receiver
) -> None:
    client = await server.client("blind", scopes=["prompt", "manage"])
    await receiver.register(client)
    session = await client.create()
    await client.turn(session, "hello")
    change = {"scopes": ["prompt", "manage", "read"]}
    assert (await server.admin().call("PATCH", "/admin/tokens/blind", change))[0] == 200
    await client.turn(session, "again")
    await receiver.next("turn_ended", turn_index=2)
    assert len(receiver.attempts) == 1


async def test_purge_cancels_the_pending_requests_of_the_agent(
    client: Client, receiver: Receiver
) -> None:
    await receiver.register(client)
    receiver.status = 500
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"permission": True}))
    await socket.until("permission_request")
    await receiver.until("an attempt", lambda: receiver.attempts)
    assert (await client.delete(f"/sessions/{session}?purge=true"))[0] == 200
    receiver.status = 200
    await receiver.register(client)  # sends what waits at once
    await receiver.next("session_closed")
    await until_empty(client)
    assert [event["type"] for event in receiver.accepted] == ["turn_ended", "session_closed"]
    assert {event["data"]["session_id"] for event in receiver.accepted} == {session}


async def test_operator_sees_all_webhooks_without_secrets(
    server: LocalServer, client: Client, receiver: Receiver
) -> None:
    await receiver.register(client, url=f"{receiver.url}?key=hidden")
    status, reply = await server.admin().get("/admin/webhooks")
    assert (status, reply["count"]) == (200, 1)
    assert reply["webhooks"][0]["url"] == receiver.url
    assert "secret" not in str(reply)
    failure(await client.get("/admin/webhooks"), 403, "forbidden")


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://hooks.example.org/x"},
        {"url": "http://127.0.0.2/x"},
        {"url": "http://localhost:1/x"},
        {"url": "http://[::1]/x"},
        {"url": "http://2130706433/x"},
        {"url": "http://user:pass@127.0.0.1/x"},
        {"url": "http://127.0.0.1#@example.org/"},
        {"url": "http://127.0.0.1/\r\nHost: example.org"},
        {"url": "http://127.0.0.1\\@example.org/"},
        {"url": "file:///etc/passwd"},
        {"url": "http://127.0.0.1:99999/"},
        {"url": ""},
        {"events": []},
        {"events": ["turn_started"]},
        {"secret": "whsec_c2hvcnQ="},
        {"secret": "not base64!"},
    ],
)
async def test_invalid_webhook_is_refused(client: Client, body: Json) -> None:
    response = await client.call("PUT", "/webhook", {"url": "http://127.0.0.1/x", **body})
    failure(response, 400, "bad_request")
    failure(await client.get("/webhook"), 404, "not_found")


async def test_used_up_budget_is_reported_once(server: LocalServer, receiver: Receiver) -> None:
    client = await server.client("thrifty", budget={"tokens_per_day": 10})
    await receiver.register(client, events=["budget_exceeded"])
    session = await client.create()
    assert (await client.turn(session, reporting(100)))[0] == 200
    failure(await client.turn(session, "more"), 402, "budget_exceeded")
    event = await receiver.next("budget_exceeded", session_id=None, seq=None, head=None)
    assert event["data"]["resets_at"] > 0
    assert event["data"]["budget"]["tokens_per_day"]["remaining"] == 0
    await until_empty(client)
    assert len(receiver.attempts) == 1


def test_deliveries_of_another_node_are_not_subtracted() -> None:
    queue = DeliveryQueue(WebhookRow("app", "http://127.0.0.1/", "[]", b"", 0.0))
    deliveries = queue.append("s_1", 10)
    for _ in range(2):
        queue.remove(deliveries, 1, 10)
    assert (queue.length, queue.size) == (0, 0)
