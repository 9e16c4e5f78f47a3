"""The clock of the database, by which nodes decide what expires."""

from __future__ import annotations

import logging

import pytest

from server.storage.engine_clock import EngineClock


class Machine:
    """The clocks of a machine, which the test moves."""

    def __init__(self) -> None:
        self.monotonic = 50.0
        self.wall = 1_000_000.0

    def pass_secs(self, secs: float) -> None:
        self.monotonic += secs
        self.wall += secs


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def clock(machine: Machine) -> EngineClock:
    return EngineClock(lambda: machine.monotonic, lambda: machine.wall)


def test_machine_has_the_time_of_its_own_clock_before_the_first_answer(
    machine: Machine, clock: EngineClock
) -> None:
    assert clock() == machine.wall
    machine.pass_secs(10)
    assert clock() == machine.wall


def test_answer_of_the_engine_counts_and_not_the_clock_of_the_machine(
    machine: Machine, clock: EngineClock, caplog: pytest.LogCaptureFixture
) -> None:
    sent_at = machine.monotonic
    machine.pass_secs(0.2)
    with caplog.at_level(logging.WARNING):
        clock.note(996_400.0, sent_at)
    assert clock() == pytest.approx(996_400.1)
    assert clock.error_secs == pytest.approx(3600.1)
    assert "3600 s" in caplog.text
    machine.wall -= 7200  # somebody sets the clock of the machine
    machine.pass_secs(10)
    assert clock() == pytest.approx(996_410.1)
    assert clock.time_ns() == pytest.approx(996_410_100_000_000)


def test_wrong_clock_is_logged_once_until_it_is_right_again(
    machine: Machine, clock: EngineClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for engine_secs in (machine.wall - 60, machine.wall - 60, machine.wall, machine.wall + 60):
            clock.note(engine_secs, machine.monotonic)
    assert len(caplog.records) == 2
