"""Renders the results for docs/explanation/performance.md: tables and a chart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from measure import Samples, table

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
OURS = "clawdforge"

WIDTH, LEFT, RIGHT, BAR, GAP = 720, 190, 90, 18, 8


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal, and whether it was reached."""

    what: str
    measured: str
    wanted: str
    reached: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Samples of one quantity, of clawdforge and its rivals."""

    title: str
    unit: str
    digits: int
    samples: Mapping[str, Samples]


class Report:
    """All results in order. Each comparison is printed at once."""

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.goals: list[Goal] = []
        self.comparisons: list[Comparison] = []

    def compare(
        self, title: str, unit: str, samples: Mapping[str, Samples], *, digits: int = 0
    ) -> None:
        """Add a comparison. The first of *samples* is clawdforge's."""
        found = Comparison(title, unit, digits, samples)
        self.comparisons.append(found)
        print(comparison_table(found), end="\n\n", flush=True)

    def at_least(self, what: str, value: float, goal: float, unit: str) -> None:
        self._add(what, value, ">=", goal, unit, reached=value >= goal)

    def at_most(self, what: str, value: float, goal: float, unit: str) -> None:
        self._add(what, value, "<=", goal, unit, reached=value <= goal)

    def _add(
        self, what: str, value: float, sign: str, goal: float, unit: str, *, reached: bool
    ) -> None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        found = Goal(what, f"{value:,.{digits}f} {unit}", f"{sign} {goal:,g} {unit}", reached)
        self.goals.append(found)
        print(f"{what}: {found.measured} ({found.wanted}) {'' if reached else 'MISSED'}\n")

    def goal_table(self) -> str:
        return table(
            ("goal", "measured", "wanted", "reached"),
            (
                (goal.what, goal.measured, goal.wanted, "yes" if goal.reached else "no")
                for goal in self.goals
            ),
        )

    def write(self, page: Path, chart: Path) -> None:
        """Write the figures between the markers of *page*, and the chart."""
        chart.write_text(draw(self.comparisons), "utf-8")
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        tables = "\n\n".join(map(comparison_table, self.comparisons))
        middle = f"{self.machine}\n\n{self.goal_table()}\n\n{tables}"
        page.write_text(f"{before}{BEGIN}\n\n{middle}\n\n{END}{after}", "utf-8")


def comparison_table(found: Comparison) -> str:
    base = next(iter(found.samples.values())).median
    return table(
        (f"{found.title} ({found.unit})", "median", "quartiles", "range", "n", "of ours"),
        (
            (name, *samples.cells(found.digits), ratio(samples.median / base))
            for name, samples in found.samples.items()
        ),
    )


def ratio(value: float) -> str:
    return f"{value:.0f} x" if value >= 10 else f"{value:.2f} x"


def draw(comparisons: list[Comparison]) -> str:
    """Draw bars on a logarithmic scale. A thin line is the range between the quartiles."""
    parts: list[str] = []
    y = 0
    for found in comparisons:
        y += 30
        parts.append(
            f'<text class="title" x="0" y="{y - 8}">{escape(found.title)} '
            f'<tspan class="unit">{escape(found.unit)}</tspan></text>'
        )
        values = [samples.median for samples in found.samples.values()]
        low = 10 ** math.floor(math.log10(min(values)) - 0.3)
        span = math.log10(max(*values, *(s.quartiles[1] for s in found.samples.values())) / low)
        width = WIDTH - LEFT - RIGHT

        def at(value: float, low: float = low, scale: float = width / (span or 1)) -> float:
            return LEFT + max(0.0, math.log10(max(value, low) / low)) * scale

        for name, samples in found.samples.items():
            middle = y + BAR / 2
            first, third = samples.quartiles
            kind = "ours" if name.startswith(OURS) else "rival"
            label = escape(name.replace("`", ""))
            parts += [
                f'<text class="name" x="{LEFT - 8}" y="{middle + 4:.1f}">{label}</text>',
                f'<rect class="{kind}" x="{LEFT}" y="{y}" height="{BAR}"'
                f' width="{max(1.0, at(samples.median) - LEFT):.1f}" rx="2"/>',
                f'<path class="spread" d="M{at(first):.1f} {middle}H{at(third):.1f}"/>',
                f'<text x="{max(at(samples.median), at(third)) + 6:.1f}" y="{middle + 4:.1f}">'
                f"{samples.median:,.{found.digits}f}</text>",
            ]
            y += BAR + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img"'
        f' aria-label="clawdforge and its rivals, measured">\n{STYLE}\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 13px; }
.unit { font-weight: 400; fill: #57606a; }
.name { text-anchor: end; }
.ours { fill: #2f6feb; }
.rival { fill: #afb8c1; }
.spread { stroke: #24292f; stroke-width: 2; opacity: .55; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .unit { fill: #9198a1; } .rival { fill: #57606a; }
  .ours { fill: #4c8dff; } .spread { stroke: #e6edf3; }
}
</style>"""
