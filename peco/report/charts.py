"""Line charts as inline SVG: sharp at any size, a few kB each, and the same bytes for the same numbers.

Colours come from the page's style sheet by class (`grid`, `axis`, `line`, `area`, `reference`), for light, dark and print. A chart
has no ids and no namespace declaration, since it is always part of an HTML page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

WIDTH, HEIGHT = 320, 180  # of the viewBox; text is 11 units high, so 1 unit should be about 1 CSS pixel
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 34  # margins around the plot
MAX_POINTS = 200  # longer series are averaged in groups
INTERVALS = 4  # approximate number of intervals between ticks
FLAT = 1e-4  # a range of at most this share of the values is drawn as constant

ChartPoint = tuple[float, float]  # x, y


def line_chart(
    points: Iterable[ChartPoint],
    *,
    label: str,
    x_label: str = "step",
    zero: bool = False,
    area: bool = False,
    reference: tuple[float, str] | None = None,
) -> str:
    """Draw one series without its points that aren't finite.

    Args:
        points: (x, y) with x increasing from 0 or more. The x axis goes from 0 to the last x.
        label: description of the chart for screen readers.
        x_label: name of the x axis.
        zero: True to always include 0 in the y axis.
        area: True to fill the area below the line.
        reference: height and name of a dashed horizontal line.

    Returns:
        an `<svg>` element.

    Raises:
        ValueError: no point is finite.
    """
    series = thin([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)], MAX_POINTS)
    if not series:
        raise ValueError("a chart needs at least one finite point")
    ys = [y for _, y in series] + ([0.0] if zero else []) + ([reference[0]] if reference else [])
    end = series[-1][0] or 1.0
    x_ticks, y_ticks = [tick for tick in ticks(0.0, end) if tick <= end], ticks(min(ys), max(ys))

    def to_chart(x: float, y: float) -> ChartPoint:
        right = x / end
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    floor = HEIGHT - BOTTOM
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for tick, name in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = to_chart(0, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for tick, name in zip(x_ticks, tick_labels(x_ticks), strict=True):
        x = to_chart(tick, 0)[0]
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{name}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    placed = [to_chart(x, y) for x, y in series]
    if area:
        corners = [(placed[0][0], floor), *placed, (placed[-1][0], floor)]
        parts.append(f'<polygon class="area" points="{_coordinates(corners)}"/>')
    if len(placed) == 1:
        parts.append(f'<circle class="point" cx="{placed[0][0]:.1f}" cy="{placed[0][1]:.1f}" r="3"/>')
    else:
        parts.append(f'<polyline class="line" points="{_coordinates(placed)}"/>')
    if reference:
        y = to_chart(0, reference[0])[1]
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end">{html.escape(reference[1])}</text>')
    return "".join([*parts, "</svg>"])


def thin(points: Sequence[ChartPoint], limit: int) -> list[ChartPoint]:
    """Reduce a series to at most `limit` points by averaging groups of neighbours."""
    group = -(-len(points) // limit)
    if group <= 1:
        return list(points)
    parts = [points[start : start + group] for start in range(0, len(points), group)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in parts]


def ticks(low: float, high: float) -> list[float]:
    """Two or more round numbers, evenly spaced, from at most `low` to at least `high`."""
    if high - low <= FLAT * max(abs(low), abs(high)):  # widen the range, but not across 0
        pad = abs(low) * 0.1 or 1.0
        low, high = (0.0, 1.0) if low == 0 else (low - pad, high + pad)
    rough = (high - low) / INTERVALS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of ticks, as short as their spacing allows and in one format."""
    step, largest = values[1] - values[0], max(abs(value) for value in values)
    if step < 0.99e-4 or largest >= 1e9:
        return ["0" if abs(value) < step / 2 else f"{value:.5g}" for value in values]
    units = ((1e6, "M"), (1e3, "k"), (1.0, ""))
    unit, suffix = next((u, s) for u, s in units if u == 1 or (step >= u / 10 and largest >= 10 * u))
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    return ["0" if abs(value) < step / 2 else f"{value / unit:.{decimals}f}{suffix}" for value in values]


def _coordinates(points: Iterable[ChartPoint]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
