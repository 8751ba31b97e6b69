"""A folder in which a real training stage can be launched at once: small shards and a perceptual network, no repository."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from image_sets import encoded
from numpy.typing import NDArray
from PIL import Image

from peco.core.params import parse_params
from peco.runtime import paths
from peco.sources.base import Ignored, RawSample
from peco.sources.shard_writer import write_shards
from peco.stages import perceptual_net
from pipelines.workflow.compose import compose_params, write

ROOT = Path(__file__).parents[1]
COUNTS = {"train": 48, "val": 16}
BATCH = 16


class Drawn:
    """Source of images that a function draws, of two classes in turn.

    Args:
        classes: their names.
        counts: number of images of each split.
        draw: pixels, (H, W, 3), from a random generator and the class.
    """

    total: int | None = None

    def __init__(
        self,
        classes: tuple[str, str],
        counts: Mapping[str, int],
        draw: Callable[[np.random.Generator, int], NDArray[np.uint8]],
    ) -> None:
        self.classes, self.counts, self.draw = classes, counts, draw
        self.ignored, self.notes = Ignored(), list[str]()

    def samples(self) -> Iterator[RawSample]:
        for number, (split, count) in enumerate(self.counts.items()):
            for i in range(count):
                pixels = self.draw(np.random.default_rng([number, i]), i % 2)
                yield RawSample(split, f"{split}/{i}.png", encoded(Image.fromarray(pixels)), i % 2)


def gradient(rng: np.random.Generator, label: int) -> NDArray[np.uint8]:
    """Colours that run across or down, noise over them."""
    ramp = np.linspace(0, 1, 40)[:, None, None] * rng.uniform(50, 200, 3) + rng.uniform(0, 40, (40, 40, 3))
    return (ramp.swapaxes(0, 1) if label else ramp).astype(np.uint8)


def prepare(folder: Path, *overrides: str, steps: int = 12) -> Path:
    """Make the folder: parameters (`smoke`, `steps` steps of the tokenizer, `overrides`), shards, a perceptual network."""
    values = compose_params("smoke", [f"tokenizer.optim.epochs={steps * BATCH / COUNTS['train']}", *overrides])
    cfg = parse_params(values)
    folder.mkdir(parents=True, exist_ok=True)
    write(values, folder / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", folder)
    dataset = dataclasses.replace(cfg.dataset, samples_per_shard=20)
    write_shards(
        Drawn(("across", "down"), COUNTS, gradient), folder / paths.SHARDS, dataset, work=folder / "work", workers=1
    )
    torch.manual_seed(0)
    net = perceptual_net.build_vit(cfg.perceptual_net.vit, cfg.loader.image_size, "avg")
    here = Path.cwd()
    os.chdir(folder)
    try:
        perceptual_net.publish(
            net, perceptual_net.vit_args(cfg.perceptual_net.vit, cfg.loader.image_size, "avg"), "none", {}
        )
    finally:
        os.chdir(here)
    return folder


@contextlib.contextmanager
def running(folder: Path, stage: str = "tokenizer", **env: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m pipelines.launch STAGE` in this folder, without the caller's own settings; ended at the latest with the block."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PECO_", "TORCHX_", "OMP_", "MKL_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.launch", stage],
        cwd=folder,
        env={**own, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()  # takes the stage along
            process.communicate()


def launch(folder: Path, stage: str = "tokenizer", **env: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of the stage."""
    with running(folder, stage, **env) as process:
        out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def stop(process: subprocess.Popen[str]) -> str:
    """Have the stage save its work and end; returns its stdout."""
    process.terminate()
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM
    return out


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until it holds, while the process runs."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError("ended or hung before it got there: " + "".join(process.communicate()))
        time.sleep(0.02)


def processes(folder: Path, **env: str) -> list[int]:
    """Ids of the living processes that work in this folder and have these variables in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = set((entry / "environ").read_bytes().split(b"\0"))
            alive = "\nState:\tZ" not in (entry / "status").read_text()
            ours = alive and (entry / "cwd").resolve() == folder.resolve()
            if ours and {f"{key}={value}".encode() for key, value in env.items()} <= variables:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
