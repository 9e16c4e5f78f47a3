"""Tokens: created and revoked by the operator, stored as hashes, bound to networks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.accounts.accounts import Accounts
from server.accounts.limits import Budget
from server.auth.admin_token import ADMIN_KEY
from server.auth.credential import hash_secret
from server.auth.first_tokens import FirstTokens
from server.auth.token_options import TokenOptions
from server.auth.tokens import TokenRegistry
from server.errors import DatabaseError, Error, ErrorCode
from server.metrics import Metrics
from server.storage.database import Database
from server.storage.queries import Queries
from server.storage.schema import TokenRow
from server.storage.statements import set_server_value
from server.storage.usage import UsageQueries
from server.storage.writer import DatabaseWriter

from ..conftest import Serve, Spawn
from ..support.engine import only_sqlite
from ..support.harness import (
    ADMIN,
    TIMEOUT_SECS,
    Client,
    Deadline,
    LocalServer,
    failure,
    new_client,
    script,
)


async def names(admin: Client) -> list[str]:
    status, reply = await admin.get("/admin/tokens")
    assert (status, reply["count"]) == (200, len(reply["tokens"]))
    return [token["name"] for token in reply["tokens"]]


# Creation, list and deletion.


async def test_new_token_is_shown_once_and_admits_its_app(server: LocalServer) -> None:
    admin = server.admin()
    status, reply = await admin.post("/admin/tokens", {"name": "shop"})
    assert (status, reply["ok"], reply["name"], reply["ip_cidrs"]) == (200, True, "shop", [])
    token = reply["token"]
    assert re.fullmatch(r"cf_[A-Za-z0-9_-]{43}", token)  # 256 bits
    assert (await Client(server.url, token, admin.http).get("/sessions"))[0] == 200
    _, reply = await admin.get("/admin/tokens")
    assert token not in json.dumps(reply)


async def test_list_has_names_and_networks(server: LocalServer) -> None:
    admin = server.admin()
    await admin.post("/admin/tokens", {"name": "b"})
    await admin.post("/admin/tokens", {"name": "a", "ip_cidrs": ["10.0.0.0/8", "::1"]})
    _, reply = await admin.get("/admin/tokens")
    first, second = (t for t in reply["tokens"] if t["name"] in ("a", "b"))
    assert (first["name"], first["ip_cidrs"]) == ("a", ["10.0.0.0/8", "::1"])
    assert (second["name"], second["ip_cidrs"]) == ("b", [])
    assert isinstance(first["created_at"], int)
    assert set(first) == {"name", "ip_cidrs", "created_at"}


async def test_all_tokens_differ(server: LocalServer) -> None:
    admin = server.admin()
    replies = [(await admin.post("/admin/tokens", {"name": f"n{i}"}))[1] for i in range(20)]
    assert len({reply["token"] for reply in replies}) == 20


async def test_taken_name_is_conflict(server: LocalServer) -> None:
    admin = server.admin()
    first = (await admin.post("/admin/tokens", {"name": "shop"}))[1]["token"]
    failure(await admin.post("/admin/tokens", {"name": "shop"}), 409, "conflict")
    assert (await Client(server.url, first, admin.http).get("/sessions"))[0] == 200


async def test_concurrent_requests_for_one_name_create_one_token(server: LocalServer) -> None:
    admin = server.admin()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(admin.post("/admin/tokens", {"name": "x"})) for _ in range(5)]
    assert sorted(task.result()[0] for task in asked) == [200, 409, 409, 409, 409]


async def test_invalid_names_and_networks_are_refused(server: LocalServer) -> None:
    admin = server.admin()
    before = await names(admin)
    for name in ("", " ", "a b", "../x", "-x", ".x", "x" * 65, "ü", "a\n", "a\0", 1, None, ["a"]):
        response = await admin.post("/admin/tokens", {"name": name})
        assert "name" in failure(response, 400, "bad_request")
    networks: Any
    for networks in (
        "10.0.0.0/8",
        ["10.0.0.1/8"],
        ["10.0.0.0/33"],
        ["10.0.0"],
        ["localhost"],
        [""],
        [10],
        ["::1/129"],
        ["10.0.0.0/8", "x"],
        {},
    ):
        response = await admin.post("/admin/tokens", {"name": "ok", "ip_cidrs": networks})
        assert "ip_cidrs" in failure(response, 400, "bad_request")
    for body in (b"", b"{}", b"[]", b"x"):
        failure(await admin.call("POST", "/admin/tokens", body), 400, "bad_request")
    assert await names(admin) == before


async def test_name_of_deleted_token_is_free(server: LocalServer) -> None:
    admin = server.admin()
    first = (await admin.post("/admin/tokens", {"name": "shop"}))[1]["token"]
    assert await admin.delete("/admin/tokens/shop") == (200, {"ok": True, "name": "shop"})
    assert "shop" not in await names(admin)
    failure(await admin.delete("/admin/tokens/shop"), 404, "not_found")
    second = (await admin.post("/admin/tokens", {"name": "shop"}))[1]["token"]
    assert second != first
    failure(await Client(server.url, first, admin.http).get("/sessions"), 401, "unauthorized")
    assert (await Client(server.url, second, admin.http).get("/sessions"))[0] == 200


async def test_tokens_survive_restart_and_deleted_tokens_do_not(serve: Serve) -> None:
    server = await serve()
    kept, gone = await server.client("kept"), await server.client("gone")
    session = await kept.create()
    await server.admin().delete("/admin/tokens/gone")
    await server.stop()
    again = await serve()
    kept, gone = (Client(again.url, client.token, kept.http) for client in (kept, gone))
    assert (await kept.state(session))["state"] == "idle"
    failure(await gone.get("/sessions"), 401, "unauthorized")


# Storage and logs.


@only_sqlite
async def test_only_hash_of_token_is_stored(serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = await serve(data_dir=data)
    client = await server.client()
    session = await client.create()
    await client.turn(session, "hello")
    ticket = (await client.post(f"/sessions/{session}/ticket"))[1]["ticket"]
    assert client.token is not None

    def stored() -> bytes:
        return b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())

    # The newest rows are in the write-ahead log while the database is open.
    assert (data / "clawdforge.db-wal").stat().st_size > 0
    while_open = stored()
    await server.stop()
    for everything in (while_open, stored()):
        assert hashlib.sha256(client.token.encode()).digest() in everything
        for secret in (client.token, ticket, ADMIN):
            assert secret.encode() not in everything


async def test_log_contains_no_token(server: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = await server.client()
    assert client.token is not None
    session = await client.create()
    ticket = (await client.post(f"/sessions/{session}/ticket"))[1]["ticket"]
    await client.get(f"/sessions?token={client.token}")
    socket = await server.anonymous().connect(session, ready=False)
    await socket.send("auth", ticket=ticket)
    await socket.until("ready")
    wrong = Client(server.url, client.token + "x", client.http)
    failure(await wrong.get("/sessions"), 401, "unauthorized")
    assert "GET /sessions" in caplog.text
    for secret in (client.token, ticket, ADMIN):
        assert secret not in caplog.text


@pytest.mark.slow
async def test_log_contains_no_token_of_subprotocol(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    # By default, aiohttp logs subprotocols that the server does not know.
    server = await spawn(LOG_LEVEL="debug")
    client = await new_client(server.url, http)
    assert client.token is not None
    url = f"{server.url}/sessions/{await client.create()}/ws"
    for headers in ({}, {"Authorization": f"Bearer {client.token}"}):
        protocols = ("acp", f"acp.auth.{client.token}")
        await (await http.ws_connect(url, protocols=protocols, headers=headers)).close()
    await server.stop()
    log = (tmp_path / "server.log").read_text("utf-8")
    assert "/ws 101" in log
    assert client.token not in log


async def test_token_in_url_is_ignored(server: LocalServer) -> None:
    client = await server.client()
    anonymous = server.anonymous()
    for name in ("token", "access_token", "authorization"):
        response = await anonymous.get(f"/sessions?{name}={client.token}")
        failure(response, 401, "unauthorized")


# Refusals: the response is always the same.


async def test_all_invalid_credentials_get_same_response(server: LocalServer) -> None:
    client = await server.client()
    revoked = await server.client("revoked")
    elsewhere = await server.client("elsewhere", ip_cidrs=["10.0.0.0/8"])
    await server.admin().delete("/admin/tokens/revoked")
    good = f"Bearer {client.token}"
    bodies = []
    for header in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer cf_" + "A" * 43,
        f"Basic {client.token}",
        f"{client.token}",
        f"{good}x",
        good[:-1],
        f"{good} {client.token}",
        f"{good},{good}",
        f"Bearer {revoked.token}",
        f"Bearer {elsewhere.token}",
        f"Bearer {ADMIN}",  # the admin token is not an app token
        "Bearer " + "x" * 4000,
        "Bearer ü",
    ):
        headers = {} if header is None else {"Authorization": header}
        status, reply = await server.anonymous().get("/sessions", headers=headers)
        assert status == 401, header
        assert reply.pop("request_id")
        bodies.append(json.dumps(reply))
    assert len(set(bodies)) == 1
    assert json.loads(bodies[0])["code"] == "unauthorized"


async def test_refused_token_gets_the_scheme_in_www_authenticate(server: LocalServer) -> None:
    anonymous = server.anonymous()
    await anonymous.get("/sessions")
    assert anonymous.last_headers["WWW-Authenticate"] == "Bearer"


async def test_scheme_is_case_insensitive(server: LocalServer) -> None:
    client = await server.client()
    for scheme in ("bearer", "BEARER", "Bearer"):
        headers = {"Authorization": f"{scheme} {client.token}"}
        assert (await server.anonymous().get("/sessions", headers=headers))[0] == 200


async def test_admin_routes_require_admin_token(server: LocalServer) -> None:
    client, anonymous = await server.client(), server.anonymous()
    before = await names(server.admin())
    for method, path, body in (
        ("POST", "/admin/tokens", {"name": "mine"}),
        ("GET", "/admin/tokens", None),
        ("DELETE", "/admin/tokens/app", None),
        ("GET", "/metrics", None),
    ):
        failure(await client.call(method, path, body), 403, "forbidden")
        failure(await anonymous.call(method, path, body), 401, "unauthorized")
        wrong = Client(server.url, "cf_wrong", client.http)
        failure(await wrong.call(method, path, body), 401, "unauthorized")
    assert await names(server.admin()) == before


# Revocation.


async def test_revoked_token_is_refused_at_once(server: LocalServer) -> None:
    client = await server.client()
    session = await client.create()
    ticket = (await client.post(f"/sessions/{session}/ticket"))[1]["ticket"]
    await server.admin().delete("/admin/tokens/app")
    failure(await client.get(f"/sessions/{session}"), 401, "unauthorized")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.connect(session)
    assert refused.value.status == 401
    for credential in ({"token": client.token}, {"ticket": ticket}):
        socket = await server.anonymous().connect(session, ready=False)
        await socket.send("auth", **credential)
        assert await socket.until_closed() == 4500


async def test_sockets_of_revoked_token_close_at_once(server: LocalServer) -> None:
    client, other = await server.client("gone"), await server.client("other")
    session = await client.create()
    ticket = (await client.post(f"/sessions/{session}/ticket"))[1]["ticket"]
    by_header = await client.connect(session)
    by_ticket = await server.anonymous().connect(session, ready=False)
    await by_ticket.send("auth", ticket=ticket)
    await by_ticket.until("ready")
    unharmed = await other.connect(await other.create())
    async with Deadline("the sockets to close"):
        await server.admin().delete("/admin/tokens/gone")
        assert await by_header.until_closed() == 4503
        assert await by_ticket.until_closed() == 4503
    assert by_header.frames[-1]["type"] == "bye"
    assert by_header.frames[-1]["code"] == 4503
    assert (await unharmed.turn("hello"))["stop_reason"] == "end_turn"


async def test_event_stream_of_revoked_token_ends(server: LocalServer) -> None:
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"say": "before"}, {"gate": "go"}, {"say": "after"}))
    await socket.until_text("before")
    folder = Path((await client.state(session))["cwd"])
    headers = {**client.headers(), "Accept": "text/event-stream"}
    url = f"{server.url}/sessions/{session}/events?after=0"
    async with client.http.get(url, headers=headers) as stream:
        text = b""
        while b"before" not in text:
            text += await asyncio.wait_for(stream.content.readany(), TIMEOUT_SECS)
        await server.admin().delete("/admin/tokens/app")
        (folder / "go").touch()
        text = await asyncio.wait_for(stream.content.read(), TIMEOUT_SECS)
    assert b'"after"' not in text


# Networks.


async def test_token_is_valid_from_its_networks_only(server: LocalServer) -> None:
    here = await server.client("here", ip_cidrs=["10.0.0.0/8", "127.0.0.0/8"])
    elsewhere = await server.client("elsewhere", ip_cidrs=["10.0.0.0/8"])
    assert (await here.get("/sessions"))[0] == 200
    failure(await elsewhere.get("/sessions"), 401, "unauthorized")
    session = await here.create()
    socket = await server.anonymous().connect(session, ready=False)
    await socket.send("auth", token=elsewhere.token)
    assert await socket.until_closed() == 4500


async def test_networks_may_be_ipv4_and_ipv6(server: LocalServer) -> None:
    client = await server.client(ip_cidrs=["2001:db8::/32", "192.0.2.1", "::1"])
    authenticate = server.services.tokens.authenticate
    address: str | None
    for address in ("2001:db8::1", "192.0.2.1", "::ffff:192.0.2.1", "::1", "::1%lo"):
        assert authenticate(client.token, address).app_name == "app"
    for address in ("2001:db9::1", "192.0.2.2", "127.0.0.1", "::ffff:127.0.0.1", "", "x", None):
        with pytest.raises(Error) as refused:
            authenticate(client.token, address)
        assert refused.value.code == "unauthorized"


# First start.


def shown_tokens(greeting: str) -> dict[str, str]:
    return dict(re.findall(r"^ *(admin|app) token +(\S+)$", greeting, re.MULTILINE))


async def test_first_start_creates_tokens_and_shows_them_once(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn(ADMIN_TOKEN=None)
    assert server.process.stdout is not None
    shown = (await asyncio.wait_for(server.process.stdout.readuntil(b"hashes"), 5)).decode()
    tokens = shown_tokens(shown)
    assert tokens.keys() == {"admin", "app"}
    assert all(token.startswith("cf_") for token in tokens.values())
    assert (
        f"{server.url}/#token={tokens['app']}" in shown
    )  # browsers do not send a fragment to the server

    async def check_both_tokens(url: str) -> None:
        assert (await Client(url, tokens["admin"], http).get("/admin/tokens"))[0] == 200
        assert (await Client(url, tokens["app"], http).get("/sessions"))[0] == 200

    await check_both_tokens(server.url)
    await server.stop()
    again = await spawn(ADMIN_TOKEN=None)
    await check_both_tokens(again.url)
    await again.stop()
    assert again.process.stdout is not None
    output = again.greeting + (await again.process.stdout.read()).decode()
    assert "token" not in output


async def test_admin_token_from_settings_is_not_shown(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    assert (await Client(server.url, ADMIN, http).get("/admin/tokens"))[0] == 200
    await server.stop()
    assert server.process.stdout is not None
    output = server.greeting + (await server.process.stdout.read()).decode()
    assert shown_tokens(output).keys() == {"app"}
    assert ADMIN not in output


@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored by an earlier version"])
async def test_admin_token_from_settings_is_valid_only_while_set(
    tmp_path: Path, stored: bool
) -> None:
    async def start(setting: str | None) -> tuple[TokenRegistry, FirstTokens | None]:
        async with contextlib.AsyncExitStack() as stack:
            database = await Database.open(tmp_path / "clawdforge.db")
            stack.push_async_callback(database.close)
            if stored and setting == "leaked":
                await database.write([set_server_value(ADMIN_KEY, hash_secret("leaked"))])
            writer = DatabaseWriter(database, Metrics())
            writer.start()
            stack.push_async_callback(writer.stop)
            tokens = TokenRegistry(Queries(database), writer)
            return tokens, await tokens.load(setting)

    for setting in ("leaked", "another"):
        tokens, _ = await start(setting)
        assert [t for t in ("leaked", "another") if tokens.is_admin(t)] == [setting]
    tokens, shown = await start(None)
    assert shown is not None
    assert shown.admin is not None
    assert [t for t in ("leaked", "another", shown.admin) if tokens.is_admin(t)] == [shown.admin]
    again, shown_again = await start(None)
    assert again.is_admin(shown.admin)
    assert shown_again is None


# Tokens of other nodes.


@pytest.fixture
async def two_nodes(tmp_path: Path) -> AsyncIterator[tuple[TokenRegistry, TokenRegistry]]:
    """The tokens of two nodes on one database."""
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(tmp_path / "clawdforge.db")
        stack.push_async_callback(database.close)
        writer = DatabaseWriter(database, Metrics())
        writer.start()
        stack.push_async_callback(writer.stop)
        one, two = (
            TokenRegistry(Queries(database), writer, accounts=Accounts(UsageQueries(database)))
            for _ in range(2)
        )
        await one.load("admin")
        await two.load("admin")
        yield one, two


def fail_once(monkeypatch: pytest.MonkeyPatch, accounts: Accounts) -> None:
    """Let the next read of what an app has spent fail."""
    load, failures = accounts.load, ["out of reach"]

    async def fail_first(name: str) -> None:
        if failures:
            raise DatabaseError(failures.pop(), is_transient=True)
        await load(name)

    monkeypatch.setattr(accounts, "load", fail_first)


@pytest.mark.parametrize("is_new", [True, False])
async def test_options_of_another_node_take_effect_after_a_refresh_that_failed(
    two_nodes: tuple[TokenRegistry, TokenRegistry], monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    one, two = two_nodes
    options = TokenOptions(budget=Budget(tokens_per_day=0))
    if is_new:
        await one.create("shop", options=options)
    else:
        await one.create("shop")
        await two.refresh()
        await one.change("shop", options)
    fail_once(monkeypatch, two.accounts)
    with pytest.raises(DatabaseError):
        await two.refresh()
    await two.refresh()
    with pytest.raises(Error) as refused:
        two.accounts.check("shop")
    assert refused.value.code is ErrorCode.BUDGET_EXCEEDED


async def test_changes_during_a_refresh_stay(
    two_nodes: tuple[TokenRegistry, TokenRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = two_nodes
    _, revoked = await one.create("revoked")
    queries, read = one._queries, one._queries.tokens
    created: list[str] = []

    async def read_before_the_change() -> list[TokenRow]:
        rows = await read()
        if not created:
            created.append((await one.create("new"))[1])
            await one.revoke("revoked")
        return rows

    monkeypatch.setattr(queries, "tokens", read_before_the_change)
    await one.refresh()
    credential = one.authenticate(created[0], None)
    assert not credential.is_revoked
    with pytest.raises(Error) as refused:
        one.authenticate(revoked, None)
    assert refused.value.code is ErrorCode.UNAUTHORIZED
