"""Programs run in turn, and their times as ratios with spread.

A machine gets faster and slower by itself. So each round runs all programs, and a ratio is that of two times of one round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

PRODUCT_SIDE = 1024
SHOWN = 12  # operations
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
    """Times of the first in units of the second: median over the rounds, and range."""
    values = [a / b for a, b in zip(longer, shorter, strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(times: Times, ours: str, count: float, unit: str) -> str:
    """A row for each program: how many of `unit` a second (of `count` in a run), and its time compared with ours."""
    lines = [f"| program | {unit} | time, ours = 1 |", "| --- | --- | --- |"]
    for name, seconds in times.items():
        lines.append(f"| {name} | {count / statistics.median(seconds):.1f} | {ratio(seconds, times[ours])} |")
    return "\n".join(lines)


def products(flops: float) -> Callable[[], None]:
    """Square matrix products of about so many FLOPs in fp32: the time that no network of the same FLOPs can beat by much."""
    count = max(1, round(flops / (2 * PRODUCT_SIDE**3)))
    a, b = torch.rand(2, PRODUCT_SIDE, PRODUCT_SIDE)
    out = torch.empty_like(a)

    def run() -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    return run


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A step as the training loop does it: gradients, clipping, fused AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def operations(program: Callable[[], object]) -> str:
    """The operations of torch that take most of a program's time, as a table."""
    with torch.profiler.profile() as profile:
        program()
    found = sorted(profile.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
    total = sum(entry.self_cpu_time_total for entry in found)
    lines = ["| operation of ours | share of the time, % | calls |", "| --- | --- | --- |"]
    for entry in found[:SHOWN]:
        lines.append(f"| {entry.key} | {100 * entry.self_cpu_time_total / total:.1f} | {entry.count} |")
    return "\n".join(lines)
