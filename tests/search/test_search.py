"""``GET /search``: what was said in the sessions of an app."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from urllib.parse import urlencode

import pytest

from server.codec import dumps
from server.data_dir import DataDir
from server.search.documents import Document, DocumentReader
from server.search.index import SearchIndex
from server.search.text import match_expression
from server.sessions import entries

from ..conftest import Serve
from ..sessions.test_subagents import of_claude, update
from ..sessions.test_sweeper import sweep
from ..support.client import Client, Json, chunk_text, failure
from ..support.harness import Clock, LocalServer, eventually, script


async def find(client: Client, query: str, **options: object) -> list[Json]:
    status, reply = await client.get(f"/search?{urlencode({'q': query, **options})}")
    assert status == 200, reply
    hits: list[Json] = reply["hits"]
    return hits


async def until_found(client: Client, query: str, count: int = 1) -> list[Json]:
    async def is_found() -> bool:
        return len(await find(client, query)) == count

    await eventually(f"{count} hits of {query!r}", is_found)
    return await find(client, query)


async def test_prompts_and_messages_are_found_newest_first(client: Client) -> None:
    session = await client.create(meta={"title": "Fruit"})
    say = [{"say": "The pine"}, {"say": "apple is "}, {"say": "yellow."}]
    await client.turn(session, "Tell me about the pineapple")
    await client.turn(session, script(*say))
    hits = await until_found(client, "pineapple", 3)
    events = {entry["seq"]: entry for entry in await client.events(session)}
    assert [(hit["session_id"], hit["title"]) for hit in hits] == [(session, "Fruit")] * 3
    assert [hit["turn_index"] for hit in hits] == [2, 1, 1]
    assert hits[0]["snippet"] == "The pineapple is yellow."
    assert chunk_text(events[hits[0]["seq"]]) == "The pine"
    assert events[hits[2]["seq"]]["type"] == "turn_start"
    assert await find(client, "pineapple", limit=1) == hits[:1]
    assert await find(client, "yellow pineapple") == hits[:1]
    assert await find(client, "green pineapple") == []


async def test_texts_of_subagents_are_found_apart_and_attributed(client: Client) -> None:
    session = await client.create()
    aside = update(None, **of_claude("t1"))
    steps = [{"say": "One walrus"}, aside, {"say": " sings."}, aside]
    await client.turn(session, script(*steps))
    [found] = await until_found(client, "asideaside")
    chunks = [one["seq"] for one in await client.events(session) if "subagent" in one]
    assert (found["subagent"], found["seq"]) == ({"tool_call_id": "t1"}, chunks[0])
    message, prompt = await find(client, "walrus")
    assert message["snippet"] == "One walrus sings."
    assert "subagent" not in message
    assert "subagent" not in prompt


def test_documents_are_the_same_wherever_the_reading_is_interrupted() -> None:
    dice = random.Random(11)
    speakers = [None, {"session_id": "a"}, {"session_id": "a", "tool_call_id": "b"}]
    lines = []
    for seq in range(1, 400):
        fields = b'"prompt":[{"type":"text","text":"ask"}]'
        kind = dice.choice(["event"] * 30 + ["turn_start", "notice"])
        if kind == "event":
            call = {"sessionUpdate": "tool_call", "toolCallId": "1"}
            said = {"sessionUpdate": "agent_message_chunk", "content": {"text": f" {seq}"}}
            params = {"update": dice.choice([call, said, said, said])}
            fields = entries.event_fields(dumps({"params": params}), dice.choice(speakers))
        lines.append(entries.entry(kind, seq, seq, 1, fields))

    def read(cuts: list[int]) -> list[Document]:
        """Read up to each cut, and then begin again where the reading was complete."""
        found: list[Document] = []
        done, reader = 0, DocumentReader(0)
        for cut in [*cuts, len(lines)]:
            reader = DocumentReader(done)
            found += reader.read(lines[done:cut])
            done = max(done, reader.complete_seq)
        return sorted([*found, *reader.end()], key=lambda document: document.seq)

    whole = read([])
    assert {tuple((one.subagent or {}).items()) for one in whole} == {
        tuple((one or {}).items()) for one in speakers
    }
    for _ in range(50):
        assert read(sorted(dice.sample(range(len(lines)), 5))) == whole


async def test_words_of_scripts_without_spaces_are_found(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "東京都に住んでいます")
    hits = await until_found(client, "京都", 2)
    assert hits[1]["snippet"] == "東京都に住んでいます"


async def test_another_app_finds_nothing(server: LocalServer, client: Client) -> None:
    other = await server.client("another")
    await client.turn(await client.create(), "a secret word")
    await other.turn(await other.create(), "an open word")
    assert len(await until_found(client, "word", 2)) == 2
    assert [hit["snippet"] for hit in await until_found(other, "word", 2)][1] == "an open word"
    assert await find(other, "secret") == []


async def test_closed_session_is_found_and_deleted_one_is_not(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock)
    client = await server.client()
    session = await client.create(ttl_secs=10, retention_secs=20)
    await client.turn(session, "remember this")
    clock.advance(10)
    await sweep(server)
    assert (await client.state(session))["state"] == "closed"
    await until_found(client, "remember", 2)
    clock.advance(20)
    await sweep(server)
    assert (await client.get(f"/sessions/{session}"))[0] == 404
    await until_found(client, "remember", 0)
    path = DataDir(server.services.settings.data_dir).search_index

    def is_forgotten() -> bool:
        with sqlite3.connect(path) as database:
            tables = ("texts", "documents", "indexed")
            return not any(
                database.execute(f"SELECT 1 FROM {table}").fetchone() for table in tables
            )

    await eventually("the index to forget it", is_forgotten)


@pytest.mark.parametrize("damage", ["none", "deleted", "corrupt"])
async def test_index_is_complete_after_a_restart(serve: Serve, tmp_path: Path, damage: str) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    await client.turn(session, "first")
    await until_found(client, "first", 2)
    await client.turn(session, "second")  # not indexed yet
    await server.stop()
    path = DataDir(tmp_path / "data").search_index
    if damage == "deleted":
        path.unlink()
    elif damage == "corrupt":
        path.write_bytes(b"not a database" * 1000)
    server = await serve()
    client = Client(server.url, client.token, client.http)
    for word in ("first", "second"):
        await until_found(client, word, 2)


async def test_position_of_one_session_is_that_of_the_list(tmp_path: Path) -> None:
    index = await SearchIndex.open(tmp_path / "index.sqlite3")
    try:
        for session in (1, 2):
            await index.add("app", session, f"id-{session}", [], seq=10 * session)
        assert await index.progress_of(2) == (await index.progress())[2]
        assert await index.progress_of(3) is None
    finally:
        await index.close()


async def test_bad_queries_are_refused(client: Client) -> None:
    for query in ("", "?q=", "?q=a&limit=0", "?q=a&limit=101", f"?q={'x' * 1001}"):
        failure(await client.get(f"/search{query}"), 400, "bad_request")
    for odd in ('"', "*", "a AND", "NEAR(", "a\0b", "said:x"):
        assert await find(client, odd) == []


async def test_search_finds_what_the_log_contains(client: Client) -> None:
    """Random messages in random pieces: the log is the reference."""
    choose = random.Random(7)
    words = ["red", "green", "blue", "grün", "日本", "本語", "naïve"]
    said: list[tuple[str, int, str]] = []
    for _ in range(3):
        session = await client.create()
        for turn_index in range(1, 6):
            text = " ".join(choose.choices(words, k=6))
            cut = sorted(choose.sample(range(1, len(text)), 3))
            pieces = [text[a:b] for a, b in zip([0, *cut], [*cut, None], strict=True)]
            await client.turn(session, script(*({"say": piece} for piece in pieces)))
            said.append((session, turn_index, text))
    await until_found(client, "marker", 0)
    await client.turn(await client.create(), "marker")
    await until_found(client, "marker", 2)
    for word in words:
        hits = [
            (hit["session_id"], hit["turn_index"], hit["snippet"])
            for hit in await find(client, word, limit=100)
            if "steps" not in hit["snippet"]  # the prompt
        ]
        wanted = [one for one in said if word.replace("ü", "u") in one[2].replace("ü", "u")]
        assert sorted(hits) == sorted(wanted), word


async def test_split_emoji_and_far_future_do_not_stop_the_index(client: Client) -> None:
    def chunk(text: str) -> str:
        content = f'{{"type":"text","text":"{text}"}}'
        update = f'{{"sessionUpdate":"agent_message_chunk","content":{content}}}'
        return f'{{"jsonrpc":"2.0","method":"session/update","params":{{"update":{update}}}}}'

    far = (1 << 53) - 1
    lines = ['{"session":{},"meta":{},"title":null}']
    for seq, text in enumerate(["halves: \\ud83d", "\\ude00 and \\ud83d nul \\u0000"], 1):
        head = f'{{"type":"event","seq":{seq},"ts":{far},"turn_index":0'
        lines.append(f'{head},"event":{chunk(text)}}}')
    status, reply = await client.post("/sessions/import", "\n".join(lines).encode())
    assert status == 200, reply
    await client.turn(await client.create(), "a word of the next session")
    assert len(await until_found(client, "word", 2)) == 2
    [hit] = await until_found(client, "halves")
    assert hit["session_id"] == reply["session_id"]
    assert hit["snippet"].startswith("halves: \N{GRINNING FACE} and \N{REPLACEMENT CHARACTER} nul")


async def test_entry_over_a_mebibyte_is_not_read_and_those_beside_it_are_found(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    large = {"chunk": 2_000_000}
    await client.turn(session, script({"say": "pelican"}, large, {"say": "a pelican"}))
    assert len(await until_found(client, "pelican", 3)) == 3  # with the prompt
    queries = server.services.sessions.queries
    number = server.services.sessions.cached[session].row.n
    rows, read = [
        await queries.read_log(number, 0, 10_000_000, largest=size) for size in (None, 1 << 20)
    ]
    assert max(len(row.body) for row in rows) > 2_000_000
    assert [(row.first_seq, row.last_seq) for row in read] == [
        (row.first_seq, row.last_seq) for row in rows
    ]
    assert [row.body for row in read] == [
        row.body if len(row.body) < 1 << 20 else b"" for row in rows
    ]


async def test_documents_with_the_same_time_keep_their_order(tmp_path: Path) -> None:
    index = await SearchIndex.open(tmp_path / "search.db")
    try:
        documents = [Document(seq, 1_767_225_600_000, 1, f"text {seq}") for seq in range(1, 2001)]
        await index.add("app", 1, "an id", documents, seq=2000)
        hits = await index.find("app", "text", 2000)
        assert {hit.seq for hit in hits} == set(range(1, 2001))
        assert [hit.seq for hit in hits[:3]] == [2000, 1999, 1998]
        assert match_expression("app", "…") is None
    finally:
        await index.close()
