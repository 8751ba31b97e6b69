"""Steps of pre-training on one and on more processes of a machine, as a markdown table.

    python -m benchmarks.scaling [--preset tiny] [--processes 1 2] [--rounds 5]

Each process has one thread and a batch of its own of equal size, so that N processes would ideally make N times as many images per
second. They exchange gradients as in the training loop (DistributedDataParallel, gloo). All numbers of processes run in turn in
each round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.interleaved import training_step
from benchmarks.mim_step import Batch
from peco.core.device import plain_attention
from peco.core.params import parse_params
from peco.mim.model import MaskedImageModel, build_backbone
from peco.stages.pretrain import TokenTask
from peco.training.distributed import Dist, parallel
from pipelines.workflow.compose import compose_params

IMAGES = 32  # in a step of a process
STEPS, WARM_UP = 20, 3


def train(preset: str) -> None:
    """Train in this process of torchrun; rank 0 prints the seconds of `STEPS` steps."""
    torch.set_num_threads(1)
    cfg = parse_params(compose_params(preset, []))
    dist = Dist.init()
    torch.manual_seed(0)
    backbone, _, _ = build_backbone(cfg.pretrain.vit, cfg.loader.image_size, cfg.pretrain.layer_scale, 0.0)
    model = MaskedImageModel(backbone, cfg.tokenizer.quantizer.codes)
    plain_attention(model)
    task = TokenTask(model, None)
    trained = parallel(task, dist) if dist.world > 1 else task
    made = Batch(cfg, IMAGES)
    batch = {"image": made.x_BCHW, "masked": made.masked_BM, "tokens": made.tokens_BL}
    step = training_step(trained, lambda: trained(batch, 0, 1)[0])
    for _ in range(WARM_UP):
        step()
    dist.barrier()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    dist.barrier()
    if dist.rank == 0:
        print(time.perf_counter() - began)
    dist.close()


def seconds(world: int, preset: str) -> float:
    """Seconds of `STEPS` steps of so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [*torchrun, "-m", "benchmarks.scaling", "--preset", preset]
    env = {**os.environ, "PECO_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument(
        "--processes", nargs="+", type=int, default=[1, 2], metavar="N", help="the first is compared with"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return train(arguments.preset)
    found: dict[int, list[float]] = {world: [] for world in arguments.processes}
    for _ in range(arguments.rounds):
        for world in found:
            found[world].append(world * IMAGES * STEPS / seconds(world, arguments.preset))
    first, *_ = found.values()
    print("| processes | images/s | times as many |\n| --- | --- | --- |")
    for world, rates in found.items():
        ratios = [rate / base for rate, base in zip(rates, first, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {world} | {statistics.median(rates):.0f} | {spread} |")


if __name__ == "__main__":
    main()
