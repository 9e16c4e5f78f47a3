"""The signs of life of a client, without a connection."""

from __future__ import annotations

from server.ws.liveness import Liveness

STALL, HEARTBEAT = 30.0, 20.0


def test_client_that_reads_nothing_is_stalled_after_the_timeout() -> None:
    liveness = Liveness(0)
    assert not liveness.is_stalled(1, 1000, 400, STALL)
    assert not liveness.is_stalled(30, 2000, 1400, STALL)
    assert liveness.is_stalled(31, 2000, 1400, STALL)


def test_client_that_reads_a_little_is_not_stalled() -> None:
    liveness = Liveness(0)
    for now in range(0, 300, 20):
        assert not liveness.is_stalled(now, 10_000, 9_000 - now, STALL)


def test_client_that_has_read_everything_is_not_stalled() -> None:
    liveness = Liveness(0)
    assert not liveness.is_stalled(1000, 500, 0, STALL)
    assert not liveness.is_stalled(2000, 500, 0, STALL)


def test_quiet_client_is_silent_unless_data_was_sent_lately() -> None:
    liveness = Liveness(0)
    assert not liveness.is_silent(30, 0, HEARTBEAT, STALL)
    assert liveness.is_silent(61, 0, HEARTBEAT, STALL)
    assert not liveness.is_silent(61, 10, HEARTBEAT, STALL)
    liveness.last_heard = 40
    assert not liveness.is_silent(61, 0, HEARTBEAT, STALL)


def test_heartbeat_is_due_once_in_each_interval() -> None:
    liveness = Liveness(0)
    assert [liveness.is_heartbeat_due(now, HEARTBEAT) for now in (10, 20, 30, 41)] == [
        *(False, True, False, True)
    ]
