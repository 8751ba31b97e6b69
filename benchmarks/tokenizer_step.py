"""A training step of the tokenizer and the making of tokens, next to matrix products of as many FLOPs, as markdown tables.

    python -m benchmarks.tokenizer_step [--presets tiny imagenet_vit_b] [--rounds 9]

Both are those of the stages `tokenizer` and `tokens`, with a perceptual network of the preset's architecture at random weights, on
images at random, in fp32 with as many threads as torch has. No library has a tokenizer of the same layers to compare with, so the
products, which can hardly be faster, show how near the machine's limit they are. The last table has the share of each operation of
a step.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.interleaved import measure, operations, products, table, training_step
from peco.core import config
from peco.core.params import parse_params
from peco.perceptual.distance import PerceptualDistance
from peco.perceptual.features import FeatureNet
from peco.plan.measure import count
from peco.plan.networks import networks
from peco.stages.perceptual_net import build_vit
from peco.stages.tokenizer import CodebookTask, build_task
from peco.tokenizer.model import PerceptualTokenizer
from pipelines.workflow.compose import compose_params

IMAGES = {"tiny": 32}  # in a step; 4 for the others


def make_task(cfg: config.Config) -> CodebookTask:
    """The task of the stage `tokenizer`."""
    net, size = cfg.perceptual_net, cfg.loader.image_size
    features = FeatureNet(build_vit(net.vit, size, net.moco.pool), net.blocks)
    distance = PerceptualDistance(features, cfg.tokenizer.perceptual.normalize)
    tokenizer = PerceptualTokenizer(cfg.tokenizer.autoencoder, cfg.tokenizer.quantizer)
    return build_task(cfg.tokenizer, tokenizer, distance)


def compare(preset: str, rounds: int) -> str:
    """The tables of a preset."""
    cfg = parse_params(compose_params(preset, []))
    images, side, counted = IMAGES.get(preset, 4), cfg.tokenizer.image_size, networks(cfg)
    torch.manual_seed(0)
    x_BCHW, task = torch.rand(images, 3, side, side), make_task(cfg)
    step = training_step(task, lambda: task({"image": x_BCHW}, 0, 1)[0])
    programs = {
        "training step": step,
        "its matrix products": products(images * count(counted["tokenizer"]).flops),
        "tokens": lambda: task.tokenizer.tokenize(x_BCHW),
        "their matrix products": products(images * count(counted["tokenize"]).flops),
    }
    title = f"Preset {preset}, {images} images, {torch.get_num_threads()} threads"
    times = table(measure(programs, rounds), "training step", images, "images/s")
    return "\n\n".join([title, times, operations(step)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=["tiny", "imagenet_vit_b"], metavar="PRESET")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    for preset in arguments.presets:
        print(f"\n{compare(preset, arguments.rounds)}", flush=True)


if __name__ == "__main__":
    main()
