"""The limits of the ImageNet presets on a GPU: FLOPs of an image, images per second, and what must feed them, as markdown tables.

    python -m benchmarks.roofline [--gpu H100] [--loader-rate 500] [--image-bytes 110000] [--price 2.5] [PRESET …]

FLOPs are counted by torch on the device `meta` (`peco/plan/measure.py`; tests/test_plan.py compares them with a formula). Images
per second are those at half of the GPU's peak in the stage's precision. Nothing is measured here but counted: the loader's images
per second of a core come from `benchmarks.loader`, the bytes of an image from ImageNet's train set (138 GB, 1.28 million images).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from peco.core.params import parse_params
from peco.plan import measure
from peco.plan.networks import networks
from peco.plan.work import Data, works
from pipelines.workflow.compose import compose_params

PRESETS = ("imagenet_vit_b", "imagenet_vit_l", "imagenet_vit_h")
TRAIN, VAL = 1_281_167, 50_000
TRAININGS = {
    "perceptual_net": "moco", "tokenizer": "tokenizer", "tokens": "tokenize", "pretrain": "mim", "evaluate@finetune": "classifier",
}  # fmt: skip


def rows(preset: str, gpu: str, loader_rate: float, image_bytes: float, price: float) -> list[str]:
    """A row for each stage that trains or makes tokens, and one for all."""
    cfg = parse_params(compose_params(preset, []))
    data = Data(TRAIN, VAL, image_bytes, True, False, ())
    stages = {entry.stage: entry for entry in works(cfg, data, {})}
    known = networks(cfg)
    found, hours = [], 0.0
    for stage, name in TRAININGS.items():
        network, cost = known[name], measure.count(known[name])
        peak = measure.GPUS[gpu][network.precision] * measure.UTILIZATION
        rate = peak / cost.flops
        images = sum(part.images for part in stages[stage].parts if part.network == name)
        needed = images / rate / 3600
        hours += needed
        # A stored view is made once and the tokens of all views of an image come from one decoding.
        decoded = rate / (max(1, cfg.tokens.views) if stage == "tokens" else 1)
        found.append(
            f"| {preset} | {stage} | {network.size} | {network.precision} | {cost.flops / 1e9:,.1f} | {rate:,.0f} | "
            f"{decoded / loader_rate:.1f} | {decoded * image_bytes / 1e6:,.0f} | {images / 1e6:,.0f} | {needed:,.0f} | "
            f"{needed * price:,.0f} |"
        )
    found.append(f"| {preset} | all | | | | | | | | {hours:,.0f} | {hours * price:,.0f} |")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("presets", nargs="*", default=PRESETS, metavar="PRESET", help="default: the ImageNet ones")
    parser.add_argument("--gpu", choices=sorted(measure.GPUS), default="H100", help="default: %(default)s")
    parser.add_argument(
        "--loader-rate", type=float, default=500, metavar="N", help="images/s of a core (default: %(default)s)"
    )
    parser.add_argument("--image-bytes", type=float, default=110e3, metavar="N", help="default: %(default)s")
    parser.add_argument("--price", type=float, default=2.5, metavar="USD", help="of a GPU hour (default: %(default)s)")
    arguments = parser.parse_args(argv)
    print(
        "| preset | stage | pixels | precision | GFLOPs an image | images/s | loader cores | MB/s read | million images | "
        "GPU hours | USD |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for preset in arguments.presets:
        found = rows(preset, arguments.gpu, arguments.loader_rate, arguments.image_bytes, arguments.price)
        print("\n".join(found), flush=True)


if __name__ == "__main__":
    main()
