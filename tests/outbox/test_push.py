"""Push: what browsers receive, and when their subscriptions end."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from server.outbox.push_crypto import MAX_PUSH_BYTES, encrypt, from_base64url

from ..conftest import Serve
from ..support.client import failure
from ..support.engine import only_sqlite
from ..support.harness import Client, LocalServer, eventually, local_server, script
from ..support.push_service import PushService, check_authorization
from .conftest import LOCAL

QUESTION = {
    "mode": "form",
    "message": "Which colour?",
    "requestedSchema": {"type": "object", "properties": {"colour": {"type": "string"}}},
}
POINT = from_base64url(
    "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
)


def test_encryption_gives_the_example_of_rfc_8291() -> None:
    body = encrypt(
        b"When I grow up, I want to be a watermelon",
        POINT,
        from_base64url("BTBZMqHH6r4Tts7J_aSIgg"),
        sender=from_base64url("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"),
        salt=from_base64url("DGv6ra1nlYgDCS1FRnbzlw"),
    )
    assert body == from_base64url(
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS"
        "6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qu"
        "lcy4a-fN"
    )


def test_longest_message_fits_into_one_record() -> None:
    assert len(encrypt(bytes(MAX_PUSH_BYTES), POINT, bytes(16))) == 4096


async def test_permission_request_is_pushed_with_its_options_and_answered_from_them(
    client: Client, service: PushService
) -> None:
    browser = service.browser()
    await browser.subscribe(client)
    session = await client.create(permission="ask", meta={"title": "My title"})
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"permission": True}))
    entry = await socket.until("permission_request")
    message = await browser.next("permission_requested")
    assert message["session_id"] == session
    assert message["title"] == "My title"
    assert message["body"]
    for name in ("request_id", "seq", "turn_index", "expires_at"):
        assert message[name] == entry[name]
    offered = entry["request"]["options"]
    assert message["options"] == offered
    headers = browser.headers[-1]
    assert headers["Urgency"] == "high"
    assert 0 < int(headers["TTL"]) <= 300  # no longer than the request waits
    assert 0 < len(headers["Topic"]) <= 32
    status, _ = await client.post(
        f"/sessions/{session}/permissions/{message['request_id']}",
        {"option_id": message["options"][0]["optionId"]},
    )
    assert status == 200
    end = await socket.until("turn_end")
    message = await browser.next("turn_ended")
    assert (message["stop_reason"], message["seq"]) == (end["stop_reason"], end["seq"])
    assert browser.headers[-1]["Urgency"] == "normal"
    assert browser.headers[-1]["Topic"] != headers["Topic"]


async def test_question_and_chosen_events_are_pushed(client: Client, service: PushService) -> None:
    browser, other = service.browser(), service.browser("other")
    await browser.subscribe(client)
    await other.subscribe(client, events=["session_closed"])
    session = await client.create(elicitation="ask")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"elicit": QUESTION}))
    entry = await socket.until("elicitation_request")
    message = await browser.next("elicitation_requested")
    assert message["request_id"] == entry["request_id"]
    assert message["body"] == entry["request"]["message"]
    await client.delete(f"/sessions/{session}")
    closed = await other.next("session_closed")
    assert closed["reason"] == "client"
    assert [one["type"] for one in other.messages] == ["session_closed"]
    assert "session_closed" not in [one["type"] for one in browser.messages]


async def test_key_signs_the_requests_and_outlives_the_server(
    service: PushService, tmp_path: Path
) -> None:
    keys = set()
    subscription = ""
    for name in ("first", "second"):
        async with local_server(tmp_path / "data", push_hosts=LOCAL) as server:
            client = await server.client(name)
            if subscription:
                (row,) = server.services.outbox.subscriptions.of("first")
                assert row.id == subscription
            status, reply = await client.get("/push/key")
            assert status == 200
            assert len(from_base64url(reply["key"])) == 65
            browser = service.browser(name)
            subscription = await browser.subscribe(client)
            await client.turn(await client.create(), "hello")
            await browser.next("turn_ended")
            claims = check_authorization(browser.headers[-1]["Authorization"], service.url)
            assert claims["k"] == reply["key"]
            keys.add(reply["key"])
    assert len(keys) == 1


@only_sqlite
async def test_file_of_the_key_is_private(serve: Serve, tmp_path: Path) -> None:
    await serve()
    assert b"PRIVATE" not in (tmp_path / "data" / "clawdforge.db").read_bytes()
    assert (tmp_path / "data" / "clawdforge.db").stat().st_mode & 0o777 == 0o600


async def test_contact_of_the_operator_is_part_of_the_token(
    client: Client, service: PushService
) -> None:
    browser = service.browser()
    await browser.subscribe(client)
    await client.turn(await client.create(), "hello")
    await browser.next("turn_ended")
    claims = check_authorization(browser.headers[-1]["Authorization"], service.url)
    assert claims["sub"] == "mailto:operator@example.org"


@pytest.mark.parametrize("status", [404, 410])
async def test_subscription_that_the_service_has_ended_is_removed(
    client: Client, service: PushService, status: int
) -> None:
    browser = service.browser()
    subscription = await browser.subscribe(client)
    service.status = status
    await client.turn(await client.create(), "hello")

    async def is_removed() -> bool:
        return bool((await client.get("/push/subscriptions"))[1]["count"] == 0)

    await eventually("the subscription to be removed", is_removed)
    failure(await client.delete(f"/push/subscriptions/{subscription}"), 404, "not_found")


async def test_message_is_sent_again_if_the_service_is_busy(
    client: Client, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.outbox.push_sender.PUSH_RETRY_SECS", (0.05,) * 600)
    browser = service.browser()
    await browser.subscribe(client)
    service.status = 503
    await client.turn(await client.create(), "hello")
    await eventually("a failed request", lambda: service.requests)
    service.status = 201
    await browser.next("turn_ended")
    assert len(browser.messages) == 1


async def test_same_endpoint_keeps_its_id_and_limit_is_enforced(
    client: Client, service: PushService
) -> None:
    first = service.browser("one")
    subscription = await first.subscribe(client)
    replaced = service.browser("one")
    assert await replaced.subscribe(client, events=["turn_ended"]) == subscription
    for name in ("two", "three"):
        await service.browser(name).subscribe(client)
    over = service.browser("four").subscription()
    failure(await client.post("/push/subscriptions", over), 429, "rate_limited")
    await client.turn(await client.create(), "hello")
    await replaced.next("turn_ended")
    assert not first.messages
    status, reply = await client.get("/push/subscriptions")
    assert (status, reply["count"]) == (200, 3)
    assert not {"p256dh", "auth", "endpoint"} & reply["subscriptions"][0].keys()
    assert (await client.delete(f"/push/subscriptions/{subscription}"))[0] == 200
    assert (await client.get("/push/subscriptions"))[1]["count"] == 2


async def test_subscriptions_belong_to_their_app_and_end_with_its_token(
    server: LocalServer, service: PushService
) -> None:
    owner, other = await server.client("owner"), await server.client("other")
    browser = service.browser()
    subscription = await browser.subscribe(owner)
    assert await browser.subscribe(other) != subscription
    failure(await other.delete(f"/push/subscriptions/{subscription}"), 404, "not_found")
    await owner.turn(await owner.create(), "hello")
    await browser.next("turn_ended")
    assert len(browser.messages) == 1
    assert (await server.admin().delete("/admin/tokens/owner"))[0] == 200
    again = await server.client("owner")
    assert (await again.get("/push/subscriptions"))[1]["count"] == 0


async def test_app_without_the_scope_read_gets_no_push(
    server: LocalServer, service: PushService
) -> None:
    client = await server.client("blind", scopes=["prompt", "manage"])
    browser = service.browser()
    await browser.subscribe(client)
    session = await client.create()
    await client.turn(session, "hello")
    change = {"scopes": ["prompt", "read"]}
    assert (await server.admin().call("PATCH", "/admin/tokens/blind", change))[0] == 200
    await client.turn(session, "again")
    message = await browser.next("turn_ended")
    assert (message["turn_index"], service.requests) == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "https://10.0.0.1/push"},
        {"endpoint": "https://push.example.org/x"},
        {"endpoint": "http://127.0.0.1:80@evil.example/x"},
        {"endpoint": "http://127.0.0.1/\r\nX-Header: 1"},
        {"endpoint": "ftp://127.0.0.1/x"},
        {"endpoint": "https://127.0.0.1/" + "x" * 2100},
        {"keys": {"p256dh": base64.b64encode(b"\x04" + bytes(64)).decode(), "auth": "A" * 22}},
        {"keys": {"p256dh": "AAAA", "auth": "A" * 22}},
        {"keys": {"p256dh": "é", "auth": "A" * 22}},
        {"events": []},
        {"events": ["turn_started"]},
    ],
)
async def test_invalid_subscription_is_refused(
    client: Client, service: PushService, change: dict[str, object]
) -> None:
    body = {**service.browser().subscription(), **change}
    failure(await client.post("/push/subscriptions", body), 400, "bad_request")


async def test_short_secret_is_refused(client: Client, service: PushService) -> None:
    body = service.browser().subscription()
    body["keys"]["auth"] = "AAAA"
    assert "auth" in failure(await client.post("/push/subscriptions", body), 400, "bad_request")
