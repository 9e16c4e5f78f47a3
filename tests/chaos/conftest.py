"""The scenarios: their sizes, and the table of their figures.

Each scenario is one test with two sizes. The short form takes seconds and is part of ``make test``.
The long form is ``make chaos``, which prints a table of all figures at the end.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import pytest

LONG = os.environ.get("CLAWDFORGE_TEST_CHAOS") == "long"
KEY = "chaos"

T = TypeVar("T")


class Scenario:
    """The size and the measured figures of one scenario.

    Attributes:
        figures: the values of the table, by name.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def size(self, short: T, long: T) -> T:
        """The value for the form that is running."""
        return long if LONG else short

    def record(self, **figures: Any) -> None:
        """Record figures for the table. Underscores in their names become spaces."""
        for name, value in figures.items():
            shown = f"{value:.3g}" if isinstance(value, float) else value
            self.figures[name.replace("_", " ")] = shown


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Scenario:
    """The scenario of this test. The test's docstring is the promise in the table."""
    scenario = Scenario()
    promise = str(request.function.__doc__).strip().splitlines()[0].rstrip(".")
    request.node.user_properties.append((KEY, {"promise": promise, "figures": scenario.figures}))
    return scenario


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table as Markdown at the end of the long form."""
    if not LONG:
        return
    rows = ["| promise | figures | | s |", "| --- | --- | --- | --- |"]
    seconds: dict[str, float] = {}
    failed: set[str] = set()
    found: dict[str, dict[str, Any]] = {}
    reports = [
        r for kind in ("passed", "failed", "error") for r in terminalreporter.getreports(kind)
    ]
    for report in reports:
        seconds[report.nodeid] = seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            failed.add(report.nodeid)
        found.update((report.nodeid, value) for key, value in report.user_properties if key == KEY)
    for node, scenario in found.items():
        figures = ", ".join(f"{name} {value}" for name, value in scenario["figures"].items())
        result = "FAIL" if node in failed else "pass"
        rows.append(f"| {scenario['promise']} | {figures} | {result} | {seconds[node]:.0f} |")
    terminalreporter.section("chaos")
    terminalreporter.write_line("\n".join(rows))
