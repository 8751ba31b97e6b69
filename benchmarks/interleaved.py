"""Programs run in turn, and their times as ratios with spread.

A machine gets faster and slower by itself. So each round runs all programs, and a ratio is that of two times of one round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Times = dict[str, list[float]]  # seconds by program, one for each round


def measure(programs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> Times:
    """Run all programs in turn, `rounds` times after `warm_up` rounds that don't count."""
    found: Times = {name: [] for name in programs}
    for number in range(warm_up + rounds):
        for name, program in programs.items():
            began = time.perf_counter()
            program()
            if number >= warm_up:
                found[name].append(time.perf_counter() - began)
    return found


def ratio(longer: Sequence[float], shorter: Sequence[float]) -> str:
    """How many times as long the first took: median over the rounds, and range."""
    values = [a / b for a, b in zip(longer, shorter, strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(times: Times, ours: str, count: float, unit: str) -> str:
    """A row for each program: how many of `unit` a second (of `count` in a run), and its time compared with ours."""
    lines = [f"| program | {unit} | time, ours = 1 |", "| --- | --- | --- |"]
    for name, seconds in times.items():
        lines.append(f"| {name} | {count / statistics.median(seconds):.1f} | {ratio(seconds, times[ours])} |")
    return "\n".join(lines)
