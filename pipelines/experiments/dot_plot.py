"""Dot plots as inline SVG: a line for each row, a dot for each seed, a bar at their mean. The style sheet has the colours."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence

from peco.report.charts import WIDTH, tick_labels, ticks

SIDE = 22  # margin left and right
LINE = 38  # height of a row: its name, and its dots below
FLOOR = 26  # height of the axis with its numbers

Series = tuple[str, Sequence[float], bool]  # name, one value per seed, True to highlight it


def dot_plot(rows: Sequence[Series], *, label: str) -> str:
    """An `<svg>` element.

    Args:
        rows: at least one, each with at least one value.
        label: the plot in words, for screen readers.
    """
    values = [value for _, series, _ in rows for value in series]
    marks = ticks(min(values), max(values))

    def to_x(value: float) -> float:
        return SIDE + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - 2 * SIDE)

    floor = LINE * len(rows)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {floor + FLOOR}" role="img" aria-label="{html.escape(label)}">']
    for mark, name in zip(marks, tick_labels(marks), strict=True):
        x = to_x(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{floor}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{name}</text>')
    for number, (name, series, highlighted) in enumerate(rows):
        top, x = LINE * number, to_x(statistics.mean(series))
        parts.append(
            f'<g class="{"ours" if highlighted else "other"}"><text x="{SIDE}" y="{top + 12}">{html.escape(name)}</text>'
        )
        parts += [f'<circle class="dot" cx="{to_x(value):.1f}" cy="{top + 22}" r="3.5"/>' for value in series]
        parts.append(f'<line class="mean" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 15}" y2="{top + 29}"/></g>')
    return "".join([*parts, "</svg>"])
