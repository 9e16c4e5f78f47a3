"""Cutting an agent's bytes into lines."""

from __future__ import annotations

import itertools
import time
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.agents.host import stdio_proxy
from server.agents.host.stdio_proxy import Lines, StdioProxy, Unfinished

# Few letters, so that ends of lines are everywhere.
STREAMS = st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"{}", b"\xff", b"x" * 50]), max_size=40)


@given(STREAMS.map(b"".join), st.lists(st.integers(0, 400), max_size=20))
def test_a_stream_gives_the_same_lines_wherever_it_is_cut(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines = Lines(1 << 20)
    found = [line for a, b in itertools.pairwise(edges) for line in lines.feed(data[a:b])]
    assert found == data.split(b"\n")[:-1]


def test_half_a_line_waits_for_its_end() -> None:
    lines = Lines(1 << 20)
    assert lines.feed(b'{"a":') == []
    assert lines.feed(b"1") == []
    assert lines.feed(b'}\n{"b"') == [b'{"a":1}']
    assert lines.feed(b":2}\n\n") == [b'{"b":2}', b""]


def test_line_over_the_limit_is_refused() -> None:
    lines = Lines(100)
    assert lines.feed(b"x" * 60) == []
    assert lines.feed(b"x" * 40) == []
    with pytest.raises(OverflowError):
        lines.feed(b"x")


def test_limit_applies_to_each_line() -> None:
    lines = Lines(100)
    for _ in range(5):
        assert lines.feed(b"x" * 80) == []
        assert lines.feed(b"\n") == [b"x" * 80]


def test_incomplete_messages_of_an_app_are_limited_in_bytes() -> None:
    unfinished = Unfinished(2 << 20)
    first, second, others = (cast("StdioProxy", object()) for _ in range(3))
    unfinished.note(first, "app", 1 << 20)
    unfinished.note(others, "other", 2 << 20)
    with pytest.raises(OverflowError):
        unfinished.note(second, "app", (1 << 20) + 1)
    unfinished.note(first, "app", 0)
    unfinished.note(second, "app", 2 << 20)
    unfinished.note(second, "its new owner", 2 << 20)
    unfinished.note(first, "app", 2 << 20)


def test_a_long_line_is_joined_once() -> None:
    # Joined piece by piece, 64 MB in pieces of a pipe's size would copy 32 GB.
    lines = Lines(stdio_proxy.MAX_PROMPT_LINE_BYTES)
    piece = b"x" * 65536
    began = time.process_time()
    for _ in range(1000):
        assert lines.feed(piece) == []
    assert lines.feed(b"\n") == [piece * 1000]
    assert time.process_time() - began < 2
