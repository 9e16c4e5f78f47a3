"""Which media type and which coding a client accepts."""

from __future__ import annotations

import pytest
from aiohttp import hdrs
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from server.web.negotiation import accepts_coding, weight_of
from server.web.sse import wants_stream

SSE = "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ([], False),
        ([""], False),
        (["*/*"], False),
        ([SSE], True),
        (["Text/Event-Stream"], True),
        ([f"{SSE};q=0"], False),
        ([f"{SSE};q=0.000"], False),
        ([f"{SSE} ; Q=0"], False),
        ([f"{SSE};q=0, */*"], False),
        ([f"{SSE};q=0.001"], True),
        ([f"{SSE};q=nonsense"], False),
        ([f"{SSE};charset=utf-8"], True),
        ([f'{SSE};note="a,b;q=0"'], True),
        ([f"{SSE}, application/json"], True),
        (["application/json, text/event-stream"], True),
        ([f"{SSE}, */*"], True),
        ([f"{SSE};q=0.5, application/json"], False),
        ([f"{SSE};q=0.5, */*"], False),
        (["application/json;q=0.5", SSE], True),
        (["text/*"], True),
        (["text/*, application/json"], False),
        (["application/json;q=0, */*"], True),
        (["application/json"], False),
        (["text/html"], False),
        (["application/x-text/event-stream"], False),
        ([",, ;q=1 ,"], False),
    ],
)
def test_accept_header_selects_stream_or_json(accept: list[str], streams: bool) -> None:
    headers = CIMultiDict([(hdrs.ACCEPT, value) for value in accept])
    assert wants_stream(make_mocked_request("GET", "/", headers=headers)) is streams


def test_most_specific_media_range_wins() -> None:
    lines = ["text/*;q=0.3, text/plain;q=0.7, */*;q=0.1"]
    assert weight_of(lines, "text/plain") == (0.7, True)
    assert weight_of(lines, "text/html") == (0.3, False)
    assert weight_of(lines, "image/png") == (0.1, False)


@pytest.mark.parametrize(
    ("lines", "accepted"),
    [
        ([], False),
        (["gzip"], True),
        (["GZIP, br"], True),
        (["gzip;q=0"], False),
        (["gzip;q=0, *"], False),
        (["*"], True),
        (["*;q=0"], False),
        (["br", "gzip;q=0.2"], True),
        (["x-gzip"], False),
        (["identity"], False),
    ],
)
def test_coding_is_used_only_if_accepted(lines: list[str], accepted: bool) -> None:
    assert accepts_coding(lines, "gzip") is accepted
