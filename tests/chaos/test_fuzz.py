"""Random input in random order: no 500, no data of another app, and a complete log."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ..support.harness import (
    ADMIN,
    Client,
    Json,
    ServerProcess,
    Socket,
    http_session,
    new_client,
    script,
    start_server,
)
from .conftest import LONG, Scenario

T = TypeVar("T")

FUZZ = settings(
    max_examples=2000 if LONG else 60,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # the server has state, so examples cannot be reduced
)


class World:
    """A server, and two apps with one session each, for synchronous test functions."""

    server: ServerProcess
    http: aiohttp.ClientSession

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    async def set_up(self) -> None:
        self.mine = await new_client(self.server.url, self.http, "mine")
        self.other = await new_client(self.server.url, self.http, "other")
        self.session = await self.mine.create()
        self.foreign = await self.other.create()
        self.socket = await self.mine.connect(self.session)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    with asyncio.Runner() as runner:
        world = World(runner)
        world.server = runner.run(
            start_server(
                folder / "data",
                folder / "server.log",
                DRAIN_SECS="0",
                CLAUDE_BIN="/bin/false",
                MAX_COMMANDS_PER_SEC="100000",
                MAX_PROMPTS_PER_MIN="1000000",
                MAX_SESSIONS="100000",
                MAX_SESSIONS_PER_APP="100000",
            )
        )
        http = http_session()
        try:
            world.http = runner.run(http.__aenter__())
            runner.run(world.set_up())
            yield world
        finally:
            runner.run(http.__aexit__(None, None, None))
            runner.run(world.server.stop())
    log = (folder / "server.log").read_text()
    assert "Traceback" not in log, log[-5000:]


# Values that clients may send, valid or not.

texts = st.text(max_size=20)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3)
)
KINDS = [
    "auth",
    "prompt",
    "cancel",
    "permission",
    "set_mode",
    "set_model",
    "set_config_option",
    "ping",
    "what",
]
FIELDS = [
    "id",
    "prompt",
    "files",
    "turn_index",
    "request_id",
    "option_id",
    "outcome",
    "mode",
    "model",
    "key",
    "value",
    "token",
    "ticket",
    "after",
    "protocol",
    "system",
    "meta",
    "permission",
    "agent",
    "cwd",
    "timeout_secs",
    "name",
    "ip_cidrs",
    "effort",
    "system_mode",
]
TYPICAL: list[Any] = [
    *(
        "hello",
        "",
        "x" * 300,
        "cancelled",
        "ask",
        "approve-all",
        "mock",
        "demo",
        "/etc",
        "../..",
        "\0",
    ),
    *(0, 1, -1, 1 << 70, 1.5, True, None, [], {}, [{"type": "text", "text": "hi"}]),
    *(
        [{"type": "image", "data": "aGk=", "mimeType": "image/png"}],
        [{"type": "what"}],
        ["10.0.0.0/8"],
    ),
]
typical = st.sampled_from(TYPICAL)
bodies = st.dictionaries(st.sampled_from(FIELDS), typical | values, max_size=4) | values


def as_json(value: Any) -> str:
    return json.dumps(value)  # includes NaN and lone surrogates


@given(
    st.dictionaries(st.sampled_from(FIELDS), typical | values, max_size=4).flatmap(
        lambda body: st.sampled_from(KINDS).map(lambda kind: {**body, "type": kind})
    )
    | bodies
)
def _up_frames(world: World, frame: Any) -> None:
    async def send() -> None:
        socket = world.socket
        await socket.ws.send_str(as_json(frame))
        await socket.send("ping", id="fuzz")
        while (response := await socket.next()) is not None:
            assert response.get("code") != "internal", (frame, response)
            if response["type"] == "pong" and response.get("id") == "fuzz":
                socket.clear()
                return
        # Only a frame that is not an object, or an invalid credential, closes the socket.
        assert socket.close_code in (4500, 4501), (frame, socket.close_code)
        world.socket = await world.mine.connect(world.session)

    world.run(send())


def test_random_frames(chaos: Scenario, world: World) -> None:
    """Any frame gets an error or a close code, and never fails in the server."""
    FUZZ(_up_frames)(world)
    chaos.record(frames=FUZZ.max_examples, failures=0)


ROUTES = [
    ("POST", "/sessions"),
    ("GET", "/sessions?include_closed={word}"),
    ("GET", "/sessions/{id}"),
    ("PATCH", "/sessions/{id}"),
    ("POST", "/sessions/{id}/turn"),
    ("POST", "/sessions/{id}/cancel"),
    ("POST", "/sessions/{id}/ticket"),
    ("POST", "/sessions/{id}/permissions/{word}"),
    ("GET", "/sessions/{id}/events?after={word}&limit={word}"),
    ("GET", "/sessions/{id}/ws?after={word}"),
    ("DELETE", "/sessions/{word}"),
    ("POST", "/files?ttl_secs={word}"),
    ("POST", "/run"),
    ("POST", "/admin/tokens"),
    ("DELETE", "/admin/tokens/{word}"),
    ("GET", "/{word}"),
]
words = st.sampled_from(
    ["0", "1", "-1", "true", "99999999999999999999", "a%00b", "%ff", "..", "é", "x"]
)


@given(
    st.sampled_from(ROUTES),
    st.sampled_from(["mine", "foreign", "none"]),
    words,
    bodies | st.none(),
    st.booleans(),
    st.sampled_from(["application/json", "text/event-stream", "*/*"]),
)
def _rest(
    world: World, route: tuple[str, str], whose: str, word: str, body: Any, admin: bool, accept: str
) -> None:
    method, template = route
    ids = {"mine": world.session, "foreign": world.foreign, "none": "no-such"}
    path = template.format(id=ids[whose], word=word)
    client = Client(world.server.url, ADMIN, world.http) if admin else world.mine

    async def send_request() -> tuple[int, bytes]:
        data = None if body is None else as_json(body)
        async with world.http.request(
            method, client.url + path, data=data, headers={**client.headers(), "Accept": accept}
        ) as reply:
            if reply.content_type == "text/event-stream":
                return reply.status, b""  # the stream has no end
            return reply.status, await reply.read()

    status, data = world.run(send_request())
    assert status != 500, (method, path, body, data)
    if status >= 400:
        reply = json.loads(data)
        assert reply["ok"] is False
        assert {"error", "code"} <= reply.keys()
    if whose == "foreign" and "{id}" in template:
        assert status in (400, 401, 404, 405), (method, path, status)


def test_random_requests(chaos: Scenario, world: World) -> None:
    """Any request gets one of the documented errors, and never a 500."""
    FUZZ(_rest)(world)
    chaos.record(requests=FUZZ.max_examples, failures=0)


# Random order.


class KnownSession:
    """A session, and its expected state."""

    def __init__(self, owner: str, session: str, socket: Socket) -> None:
        self.owner = owner
        self.id = session
        self.socket = socket
        self.closed = False
        self.prompts: set[str] = set()


PROMPTS = {
    "plain": "hello",
    "asks": script({"permission": True}),
    "hangs": script({"hang": True}),
    "crashes": script({"say": "x"}, {"crash": "SIGKILL"}),
    "fails": script({"error": {"code": -32603, "message": "no"}}),
}
numbers = st.integers(0, 100)


class RandomActions(RuleBasedStateMachine):
    """Two apps that perform random actions, permitted or not."""

    world: World
    steps = 0
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.sessions: list[KnownSession] = []
        self.clients: dict[str, Client] = {}
        for name in ("a", "b"):
            self._make_app(name)

    def _make_app(self, name: str) -> None:
        app = f"{name}-{type(self).runs}-{type(self).steps}"
        self.clients[name] = self.world.run(new_client(self.world.server.url, self.world.http, app))

    def _pick(self, number: int) -> KnownSession | None:
        return self.sessions[number % len(self.sessions)] if self.sessions else None

    def _ask(self, who: str, method: str, path: str, body: Any = None) -> tuple[int, Json]:
        status, reply = self.world.run(self.clients[who].call(method, path, body))
        assert status != 500, (method, path, reply)
        return status, reply

    @rule(who=st.sampled_from("ab"), ask=st.booleans())
    def create(self, who: str, ask: bool) -> None:
        async def make() -> KnownSession:
            client = self.clients[who]
            session = await client.create(permission="ask" if ask else "deny-all")
            return KnownSession(who, session, await client.connect(session, after=0))

        self.sessions.append(self.world.run(make()))

    @rule(number=numbers, kind=st.sampled_from(sorted(PROMPTS)), key=st.sampled_from("xyz"))
    def prompt(self, number: int, kind: str, key: str) -> None:
        if (known := self._pick(number)) is None:
            return
        if known.closed:
            late = self._ask(known.owner, "POST", f"/sessions/{known.id}/turn", {"prompt": "x"})
            assert late[0] == 410
            return
        key = f"{kind}-{key}"

        async def send() -> Json:
            await known.socket.send("prompt", id=key, prompt=PROMPTS[kind])
            while (frame := await known.socket.next()) is not None:
                if frame["type"] in ("accepted", "error") and frame.get("id") == key:
                    return frame
            raise AssertionError(f"closed with {known.socket.close_code}")

        response = self.world.run(send())
        if response["type"] == "accepted":
            assert response["duplicate"] == (key in known.prompts)
            known.prompts.add(key)
        else:
            assert response["code"] == "queue_full", response

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        if known := self._pick(number):
            status, _ = self._ask(known.owner, "POST", f"/sessions/{known.id}/cancel", {})
            assert status in (200, 404)

    @rule(number=numbers, option=st.sampled_from(["allow_once", "reject_once", "nonsense"]))
    def response(self, number: int, option: str) -> None:
        if (known := self._pick(number)) is None:
            return
        status, state = self._ask(known.owner, "GET", f"/sessions/{known.id}")
        pending = state.get("pending_permissions") or [{"request_id": "no-such"}]
        path = f"/sessions/{known.id}/permissions/{pending[0]['request_id']}"
        status, _ = self._ask(known.owner, "POST", path, {"option_id": option})
        assert status in (200, 400, 404)

    @rule(number=numbers)
    def close(self, number: int) -> None:
        if known := self._pick(number):
            status, reply = self._ask(known.owner, "DELETE", f"/sessions/{known.id}")
            assert status in (200, 404)
            if status == 200:
                assert reply.get("already_closed", False) == known.closed
                known.closed = True

    @rule(number=numbers)
    def reconnect(self, number: int) -> None:
        known = self._pick(number)
        if known is None or known.socket.close_code is not None:
            return

        async def again() -> None:
            last = known.socket.entries[-1]["seq"] if known.socket.entries else 0
            await known.socket.close()
            fresh = await self.clients[known.owner].connect(known.id, after=last)
            fresh.prepend(known.socket.entries)
            known.socket = fresh

        self.world.run(again())

    @rule(who=st.sampled_from("ab"))
    def revoke(self, who: str) -> None:
        """Revoke the app's token: its sockets close, and its sessions are lost."""
        name = None
        admin = Client(self.world.server.url, ADMIN, self.world.http)
        _, reply = self.world.run(admin.get("/admin/tokens"))
        names = [token["name"] for token in reply["tokens"]]
        name = max(n for n in names if n.startswith(f"{who}-{type(self).runs}-"))

        async def delete() -> None:
            status, _ = await admin.delete(f"/admin/tokens/{name}")
            assert status == 200
            for known in self.sessions:
                if known.owner == who:
                    assert await known.socket.until_closed() in (4503, 4508)

        self.world.run(delete())
        assert self._ask(who, "GET", "/sessions")[0] == 401
        self.sessions = [known for known in self.sessions if known.owner != who]
        self._make_app(who)

    @rule(number=numbers)
    def access_session_of_other_app(self, number: int) -> None:
        if (known := self._pick(number)) is None:
            return
        other = "b" if known.owner == "a" else "a"
        for method, path, body in (
            ("GET", "", None),
            ("POST", "/turn", {"prompt": "x"}),
            ("POST", "/cancel", {}),
            ("POST", "/ticket", {}),
            ("GET", "/events", None),
            ("DELETE", "", None),
        ):
            existing = self._ask(other, method, f"/sessions/{known.id}{path}", body)
            unknown = self._ask(other, method, f"/sessions/{known.id[::-1]}{path}", body)
            existing[1].pop("request_id"), unknown[1].pop("request_id")
            assert existing == unknown
            assert existing[0] == 404
        _, reply = self._ask(other, "GET", "/sessions?include_closed=true")
        assert known.id not in [session["session_id"] for session in reply["sessions"]]

    @invariant()
    def log_is_complete(self) -> None:
        type(self).steps += 1
        for known in self.sessions:
            entries = self.world.run(self.clients[known.owner].events(known.id))
            assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
            got = known.socket.entries
            assert got == entries[: len(got)]
            starts = Counter(e["turn_index"] for e in entries if e["type"] == "turn_start")
            ends = Counter(e["turn_index"] for e in entries if e["type"] == "turn_end")
            assert max([*starts.values(), *ends.values()], default=1) == 1
            assert not ends.keys() - starts.keys()
            assert not known.closed or starts == ends
            if known.closed:
                assert entries[-1]["type"] == "session_closed"

    def teardown(self) -> None:
        async def close_all() -> None:
            for known in self.sessions:
                await self.clients[known.owner].delete(f"/sessions/{known.id}")
                await known.socket.close()

        self.world.run(close_all())


@pytest.mark.slow
def test_random_actions(chaos: Scenario, world: World) -> None:
    """Two apps perform random actions: logs stay complete, and each app sees only its own data."""
    RandomActions.world = world
    examples, steps = chaos.size((6, 12), (60, 40))
    run_state_machine_as_test(
        RandomActions, settings=settings(FUZZ, max_examples=examples, stateful_step_count=steps)
    )
    chaos.record(runs=RandomActions.runs, steps=RandomActions.steps, failures=0)
