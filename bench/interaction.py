"""The way of a question, a permission request and a steered prompt between agent and client.

The agent and this program read the same clock.
"""

from __future__ import annotations

import re
import time
from typing import Any

from measure import Samples
from report import Report
from targets import BenchError, Server, Socket, parse_frames, text_frame

COUNT = 50
TEXT = re.compile(rb'"text":"(\d+)"')
ASKED = re.compile(rb'"(?:title|message)":"(\d+)"')
REQUEST_ID = re.compile(rb'"request_id":"([^"]+)"')


def measure_interaction(server: Server, report: Report, *, quick: bool) -> None:
    """The times to the client and back to the agent, in turn, in the same session."""
    body = {"permission": "ask", "elicitation": "ask"}
    session = server.call("POST", "/sessions", body)["session_id"]
    socket = Socket(f"{server.url}/sessions/{session}/ws", server.headers)
    try:
        _until(socket, re.compile(rb'"ready"'))
        samples = {
            name: Samples()
            for name in ("question", "permission", "answer", "decision", "steered prompt")
        }
        for _ in range(2 if quick else 10):
            for kind, back in (("permission", "decision"), ("question", "answer")):
                _ask(socket, kind, samples[kind], samples[back])
            _steer(socket, samples["steered prompt"])
    finally:
        socket.close()
    names = {
        "question": "a question, from the agent's line to the client's frame",
        "permission": "a permission request, the same",
        "answer": "the answer to a question, from the frame to the agent",
        "decision": "the answer to a permission request, the same",
        "steered prompt": "a steered prompt, the same",
    }
    shown = {names[name]: found for name, found in samples.items()}
    report.compare("Between the agent and the client", "ms", shown, digits=2)
    ask = samples["question"].median - samples["permission"].median
    report.at_most("a question to the client, median, minus a permission request", ask, 5, "ms")
    answer = samples["answer"].median - samples["decision"].median
    report.at_most("its answer to the agent, median, minus that of a permission", answer, 5, "ms")
    steering = samples["steered prompt"].median
    report.at_most("a steered prompt, from the socket to the agent, median", steering, 3, "ms")


def _until(socket: Socket, marker: re.Pattern[bytes]) -> tuple[re.Match[bytes], bytes, int]:
    """Read up to a frame with *marker*. Return the match, all data and the time in nanoseconds."""
    data = b""
    while True:
        if not (piece := socket.read()):
            raise BenchError(f"the server closed the socket after {data[-500:]!r}")
        data += piece
        found = marker.search(data)
        if found is not None and data.endswith(b"}"):
            return found, data, time.monotonic_ns()


def _send(socket: Socket, frame: dict[str, Any]) -> int:
    """Send a frame. Return the time before it in nanoseconds."""
    line = text_frame(frame)
    before = time.monotonic_ns()
    socket.send(line)
    return before


def _ask(socket: Socket, kind: str, to_client: Samples, to_agent: Samples) -> None:
    _send(socket, {"type": "prompt", "prompt": f"{kind} {COUNT}"})
    data = b""
    for _ in range(COUNT):
        found = ASKED.search(data)
        if found is None:
            found, data, received = _until(socket, ASKED)
            to_client.add((received - int(found[1])) / 1e6)
        asked = REQUEST_ID.search(data)
        if asked is None:
            raise BenchError(f"a request has no id: {data[-500:]!r}")
        answer: dict[str, Any] = {"type": "permission", "option_id": "yes"}
        if kind == "question":
            answer = {"type": "elicitation", "action": "accept", "content": {}}
        sent = _send(socket, {**answer, "request_id": asked[1].decode()})
        found, data, _ = _until(socket, TEXT)
        to_agent.add((int(found[1]) - sent) / 1e6)
        data = data[found.end() :]  # it may contain the next request
    if b'"turn_end"' not in data:
        _check_end(_until(socket, re.compile(rb'"turn_end"'))[1])


def _steer(socket: Socket, samples: Samples) -> None:
    _send(socket, {"type": "prompt", "prompt": f"steer {COUNT}"})
    _until(socket, re.compile(rb'"text":"ready"'))
    data = b""
    for _ in range(COUNT):
        sent = _send(socket, {"type": "prompt", "prompt": "left", "steer": True})
        found, data, _ = _until(socket, TEXT)
        samples.add((int(found[1]) - sent) / 1e6)
    if b'"turn_end"' not in data:
        _check_end(_until(socket, re.compile(rb'"turn_end"'))[1])


def _check_end(data: bytes) -> None:
    for frame in parse_frames(data):
        if frame.get("error"):
            raise BenchError(f"the turn failed: {frame}")
