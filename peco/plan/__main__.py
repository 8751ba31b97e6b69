"""Print what a run of the current parameters costs, stage by stage: `make plan`."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peco.core import config
from peco.core.device import select_device, uses_cuda
from peco.core.environment import THREADS
from peco.core.errors import exit_status
from peco.core.params import load_params
from peco.core.parsing import JSON_ERRORS
from peco.plan import measure
from peco.plan.networks import networks
from peco.plan.work import COUNTS, Data, Work, few_steps, read_data, works
from peco.runtime import paths

START_SECONDS = 3.5  # of a stage: DVC, the launcher, imports
LONG_SECONDS = 24 * 3600.0  # a run on one machine that takes longer is worth a warning
NOTHING = "-"


@dataclass(frozen=True)
class Row:
    """The cost of a stage.

    Attributes:
        images: that pass through its networks.
        flops, memory, disk, work: in all; bytes of a process, of results, and of checkpoints while the stage runs.
        seconds: on this machine; 0 if it was not measured.
        gpu_hours: on the named GPU, None without one.
    """

    stage: str
    images: float
    steps: int | None
    flops: float
    memory: float
    disk: float
    work: float
    seconds: float
    gpu_hours: float | None


def plan(cfg: config.Config, gpu: str | None = None) -> tuple[Data, list[Work], list[Row]]:
    """Count and time the stages.

    Args:
        cfg: parameters.
        gpu: a name of `measure.GPUS`, for GPU-hours; then nothing is measured here.

    Raises:
        PecoError: the images can't be read, or a network can't be built.
    """
    with tempfile.TemporaryDirectory(prefix="peco-") as work:
        data = read_data(cfg.dataset, Path(work))
    stages = works(cfg, data, _annotated())
    known = networks(cfg)
    used = {part.network for entry in stages for part in entry.parts}
    costs = {name: measure.count(network) for name, network in known.items() if name in used}
    batches = {part.network: _batch(cfg, entry) for entry in stages for part in entry.parts if entry.optim} | {
        "features": 128, "tokenize": 64,
    }  # fmt: skip
    seconds, loading = dict.fromkeys(costs, 0.0), dict[str, float]()
    if gpu is None:
        device = select_device()
        seconds = {name: measure.seconds_per_image(known[name], costs[name], batches[name], device) for name in costs}
        loading = _loading(cfg, data)
    rows = []
    for entry in stages:
        trained = next((part.network for part in entry.parts if known[part.network].trains), None)
        model, checkpoints = 0.0, 0.0
        if trained and entry.optim:
            model = 4 * costs[trained].parameters
            checkpoints = entry.trainings * (model + 4 * 2 * costs[trained].trained)  # two moments
        memory = max(
            (measure.memory(costs[p.network], batches[p.network], trains=known[p.network].trains) for p in entry.parts),
            default=measure.PROCESS_BYTES / 2,
        )
        hours = None
        if gpu:
            peaks = measure.GPUS[gpu]
            hours = sum(
                p.images * costs[p.network].flops / (peaks[known[p.network].precision] * measure.UTILIZATION)
                for p in entry.parts
            ) / 3600  # fmt: skip
        rows.append(
            Row(
                entry.stage,
                sum(part.images for part in entry.parts),
                entry.steps,
                sum(part.images * costs[part.network].flops for part in entry.parts),
                memory,
                entry.disk + model,
                checkpoints,
                (gpu is None) * START_SECONDS
                + entry.read * (data.seconds + loading["center"] if loading else 0.0)
                + sum(part.images * (seconds[part.network] + loading.get(part.view, 0.0)) for part in entry.parts),
                hours,
            )
        )
    return data, stages, rows


def _batch(cfg: config.Config, entry: Work) -> int:
    """Images that a process computes at a time in a training."""
    assert entry.optim
    resources = cfg.resources.train
    processes = resources.nodes * (resources.processes or resources.gpus or 1)
    return max(1, entry.optim.batch_size // (entry.optim.accumulate * processes))


def _annotated() -> dict[str, dict[str, Any]]:
    """Counts of the stage `annotations`, by task."""
    found = {}
    for path in (paths.METRICS / "annotations").glob("*.json"):
        with contextlib.suppress(OSError, *JSON_ERRORS):  # a damaged file is made again
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and all(type(content.get(key, 0)) is int for key in COUNTS):
                found[path.stem] = content
    return found


def _loading(cfg: config.Config, data: Data) -> dict[str, float]:
    """Seconds in which the training waits for an image to be decoded and cropped, by view; 0 where other processes do it."""
    size, distributions = cfg.loader.image_size, {
        "moco": cfg.perceptual_net.moco.view,
        "tokenizer": cfg.tokenizer.view,
        "tokens": cfg.tokens.view,
        "pretrain": cfg.tokens.view,
        "center": None,
    }  # fmt: skip
    found = {name: measure.seconds_of_view(data.encoded, view, size) for name, view in distributions.items()}
    found["moco"] *= 2
    # Augmentation of an annotated image costs about as much as a view for the perceptual network.
    found |= {"finetune": found["pretrain"], "segmentation": found["moco"], "detection": found["moco"]}
    waits = cfg.resources.train.workers == 0
    return {name: seconds if waits or name == "center" else 0.0 for name, seconds in found.items()}


def warnings(cfg: config.Config, data: Data, stages: list[Work], rows: list[Row]) -> list[str]:
    """Reasons to change something first: too few images, too little disk, too much time for one machine."""
    lines = few_steps(stages, data.train)
    need, free = _disk(rows), shutil.disk_usage(".").free
    if need > free:
        lines.append(
            f"disk: {_size(need)} are needed, {_size(free)} are free here; free space, or run it on another disk"
        )
    total = sum(row.seconds for row in rows)
    if total > LONG_SECONDS:
        lines.append(
            f"time: {_duration(total)} on this machine is out of proportion; take a smaller preset (docs/parameters.md), "
            "lower epochs, or a GPU cluster (docs/cluster.md)"
        )
    return lines


def _disk(rows: Sequence[Row]) -> float:
    """Bytes of all results, twice, since DVC keeps a copy in its cache, and the checkpoints of one stage."""
    return 2 * sum(row.disk for row in rows) + max(row.work for row in rows)


def table(rows: Sequence[Row], gpu: str | None) -> str:
    """All stages with their costs."""
    last = f"{gpu} hours" if gpu else "time"
    head = ("stage", "images", "steps", "FLOPs", "memory", "disk", last)
    cells = [head, *(_cells(row) for row in rows)]
    total = Row("total", 0, None, sum(r.flops for r in rows), max(r.memory for r in rows), _disk(rows), 0.0,
                sum(r.seconds for r in rows), sum(r.gpu_hours or 0 for r in rows) if gpu else None)  # fmt: skip
    cells.append(("total", "", "", *_cells(total)[3:]))
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )


def _cells(row: Row) -> tuple[str, ...]:
    cost = f"{row.gpu_hours:.3g}" if row.gpu_hours is not None else _duration(row.seconds)
    return (
        row.stage,
        f"{row.images:,.0f}" if row.images else NOTHING,
        f"{row.steps:,}" if row.steps else NOTHING,
        f"{row.flops:.1e}" if row.flops else NOTHING,
        _size(row.memory),
        _size(row.disk) if row.disk else NOTHING,
        cost,
    )


def brief(cfg: config.Config, data: Data, rows: Sequence[Row]) -> list[str]:
    """The plan in three lines."""
    trained = ", ".join(f"{row.stage} {row.steps:,}" for row in rows if row.steps)
    longest = sorted(rows, key=lambda row: -row.seconds)[:3]
    about = "about " if data.estimated else ""
    return [
        f"plan: {about}{data.train:,} train and {data.val:,} val images; steps: {trained}",
        f"plan: about {_duration(sum(row.seconds for row in rows))} on this machine for all {len(rows)} stages, "
        f"{_size(max(row.memory for row in rows))} of memory, {_size(_disk(rows))} of disk",
        f"plan: longest: {', '.join(f'{row.stage} {_duration(row.seconds)}' for row in longest)} (`make plan` shows all)",
    ]


def _duration(seconds: float) -> str:
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:,.0f} days"


def _size(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{max(1, size / 1e3):.0f} kB"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m peco.plan", description="Print what a run of params.yaml costs.")
    top.add_argument(
        "--gpu", choices=sorted(measure.GPUS), help="hours on this GPU at half of its peak, instead of time here"
    )
    top.add_argument(
        "--brief", type=Path, metavar="FILE", help="three lines, and the seconds of each stage as JSON in FILE"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: status 0, 2 for an error the user can fix, 130 if interrupted."""
    arguments = parser().parse_args(argv)
    return exit_status(lambda: _print_plan(arguments))


def _print_plan(arguments: argparse.Namespace) -> None:
    cfg = load_params()
    if threads := THREADS.integer():
        torch.set_num_threads(threads)
    began = time.monotonic()
    data, stages, rows = plan(cfg, arguments.gpu)
    took = time.monotonic() - began
    if arguments.brief:
        seconds: Mapping[str, float] = {row.stage: round(row.seconds, 1) for row in rows}
        arguments.brief.write_text(json.dumps(seconds), encoding="utf-8")
        print("\n".join(brief(cfg, data, rows)))
    else:
        about = "about " if data.estimated else ""
        device = "a GPU" if uses_cuda() else f"the CPU, threads: {torch.get_num_threads()}"
        peak = f"hours of one {arguments.gpu} at half of its peak, counted"
        where = peak if arguments.gpu else f"time on this machine, measured in {took:.0f} s on {device}"
        print(
            f"preset {cfg.preset}: {about}{data.train:,} train and {data.val:,} val images of {cfg.loader.image_size} pixels"
        )
        print(f"{where}; disk of the total: twice the results, for DVC's copies, and the largest checkpoints\n")
        print(table(rows, arguments.gpu))
    for line in warnings(cfg, data, stages, rows):
        print(f"warning: {line}", file=sys.stderr)
    sys.stdout.flush()  # a full disk is reported by `main`


if __name__ == "__main__":
    sys.exit(main())
