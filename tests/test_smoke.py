from __future__ import annotations

from .harness import Client, LocalServer, script, texts_of


async def test_a_turn_round_trips_over_rest(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(session, "hello")
    assert status == 200
    assert texts_of(reply["events"]) == "echo: hello"


async def test_a_turn_streams_over_the_socket(client: Client, server: LocalServer) -> None:
    session = await client.create()
    socket = await client.connect(session)
    end = await socket.turn(script({"say": "one "}, {"say": "two"}), id="c1")
    assert end["stop_reason"] == "end_turn"
    assert socket.text() == "one two"
