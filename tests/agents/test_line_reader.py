"""Cutting a byte stream into lines."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.agents.line_reader import LineReader

# Few letters, so that there are many line ends.
STREAMS = st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"{}", b"\xff", b"x" * 50]), max_size=40)


@given(STREAMS.map(b"".join), st.lists(st.integers(0, 400), max_size=20))
def test_lines_do_not_depend_on_how_the_stream_is_cut(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines = LineReader(1 << 20)
    found = [line for a, b in itertools.pairwise(edges) for line in lines.feed(data[a:b])]
    assert found == data.split(b"\n")[:-1]


def test_incomplete_line_is_kept_until_its_end() -> None:
    lines = LineReader(1 << 20)
    assert lines.feed(b'{"a":') == []
    assert lines.feed(b"1") == []
    assert lines.feed(b'}\n{"b"') == [b'{"a":1}']
    assert lines.feed(b":2}\n\n") == [b'{"b":2}', b""]


def test_line_over_the_limit_is_refused() -> None:
    lines = LineReader(100)
    assert lines.feed(b"x" * 60) == []
    assert lines.feed(b"x" * 40) == []
    with pytest.raises(OverflowError):
        lines.feed(b"x")


def test_limit_applies_to_each_line() -> None:
    lines = LineReader(100)
    for _ in range(5):
        assert lines.feed(b"x" * 80) == []
        assert lines.feed(b"\n") == [b"x" * 80]


def test_long_line_is_joined_once() -> None:
    # Joined piece by piece, 64 MB in pieces of a pipe's size would copy 32 GB.
    lines = LineReader(1 << 30)
    piece = b"x" * 65536
    began = time.process_time()
    for _ in range(1000):
        assert lines.feed(piece) == []
    assert lines.feed(b"\n") == [piece * 1000]
    assert time.process_time() - began < 2
