"""Accuracy of four baselines on the ten classes of `scenes`, as a markdown table.

    python -m benchmarks.scenes_baselines --train 4000 --val 1000 --seeds 2

The first two should stay near chance (10 %): otherwise colour or position would reveal the class. The third is the accuracy of an
untrained network, and the last shows that the labels can be learned.

* colour histogram: 8 x 8 x 8 RGB bins, linear probe;
* raw pixels: 16 x 16 RGB, linear probe;
* random backbone: the `tiny` preset's BEiT at random initialisation, linear probe of its best block;
* small CNN: trained from scratch with flips and shifts of up to 4 pixels.

Images and probes are those of the workflow: train has the scenes from 0 on, val those from `VAL_START` on, and block and L2
strength are chosen on a holdout of train (`peco.probes.linear`). A seed determines the images, the weights and the order of the
examples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peco.core.params import parse_params
from peco.mim.model import build_backbone
from peco.probes import linear
from peco.probes.features import extract
from peco.scenes.scenes import CLASSES, render
from peco.sources.open import VAL_START
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("tiny", []))
SIZE = CFG.loader.image_size
BATCH = 64
PEAK_LR = 2e-3
SHIFT = 4  # pixels


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, 3) and labels int64 (N,)."""

    images: np.ndarray
    labels: Tensor

    def unit(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images as float32 (B, 3, H, W) in [0, 1]."""
        return torch.from_numpy(self.images[start:stop]).permute(0, 3, 1, 2).float() / 255


def load(seed: int, first: int, count: int) -> Split:
    """Render the scenes [first, first + count) of a seed."""
    scenes = [render(seed, index, SIZE) for index in range(first, first + count)]
    return Split(np.stack([s.image for s in scenes]), torch.tensor([s.label for s in scenes]))


def probe(features: Callable[[Split], dict[str, Tensor]], train: Split, val: Split) -> float:
    """Accuracy of the workflow's linear probe."""
    train_features, val_features = ((features(split), split.labels) for split in (train, val))
    return linear.probe_linear(train_features, val_features, CFG.evaluate.linear, CFG.evaluate.holdout).accuracy


def random_backbone(train: Split, val: Split) -> float:
    """Linear probe of an untrained backbone."""
    model, _, _ = build_backbone(CFG.pretrain.vit, SIZE, CFG.pretrain.layer_scale, drop_path=0.0)

    def features(split: Split) -> dict[str, Tensor]:
        starts = range(0, len(split.images), BATCH)
        batches = ({"image": split.unit(s, s + BATCH), "label": split.labels[s : s + BATCH]} for s in starts)
        return extract(model, batches)[0]

    return probe(features, train, val)


def small_cnn() -> nn.Module:
    """Four strided convolutions (32 to 192 channels) and a linear layer on the remaining grid."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 192)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(192 * (SIZE // 16) ** 2, len(CLASSES)))


def augment(x_BCHW: Tensor) -> Tensor:
    """Flip half of the images left to right and shift each batch by up to `SHIFT` pixels (edges repeat)."""
    flip = torch.rand(len(x_BCHW)) < 0.5
    x_BCHW = torch.where(flip[:, None, None, None], x_BCHW.flip(3), x_BCHW)
    dx, dy = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    return F.pad(x_BCHW, (SHIFT,) * 4, mode="replicate")[:, :, dy : dy + SIZE, dx : dx + SIZE]


def supervised(train: Split, val: Split, passes: int) -> float:
    """Accuracy of the small CNN after `passes` over train with AdamW and a one-cycle learning rate."""
    model = small_cnn()
    steps = passes * (len(train.images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.15)
    x_NCHW = 4 * train.unit() - 2  # of about zero mean and unit deviation
    for _ in range(passes):
        for rows in torch.randperm(len(x_NCHW))[: len(x_NCHW) // BATCH * BATCH].view(-1, BATCH):
            loss = F.cross_entropy(model(augment(x_NCHW[rows])), train.labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(dim=1) for part in torch.split(4 * val.unit() - 2, BATCH)])
    return float((predicted == val.labels).float().mean())


def main() -> None:
    """Measure all baselines and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", type=int, default=CFG.dataset.scenes.train, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=CFG.dataset.scenes.val, help="validation images (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0 on (%(default)s)")
    parser.add_argument("--passes", type=int, default=30, help="passes of the CNN over train (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    baselines: dict[str, Callable[[Split, Split], float]] = {
        "colour histogram, linear probe": lambda t, v: probe(lambda s: {"all": linear.color_histogram(s.images)}, t, v),
        "raw 16 x 16 pixels, linear probe": lambda t, v: probe(lambda s: {"all": linear.raw_pixels(s.images)}, t, v),
        "random backbone, linear probe": random_backbone,
        "small CNN, supervised": lambda t, v: supervised(t, v, args.passes),
    }
    accuracies: dict[str, list[float]] = {name: [] for name in baselines}
    seconds: dict[str, float] = dict.fromkeys(baselines, 0.0)
    for seed in range(args.seeds):
        train, val = load(seed, 0, args.train), load(seed, VAL_START, args.val)
        for name, baseline in baselines.items():
            torch.manual_seed(seed)
            start = time.perf_counter()
            accuracies[name].append(100 * baseline(train, val))
            seconds[name] += (time.perf_counter() - start) / args.seeds
    print(f"\n{args.train} training and {args.val} validation images, {args.seeds} seeds\n")
    print("| baseline | accuracy, % | each seed | seconds |\n|---|---|---|---|")
    for name, values in accuracies.items():
        each = ", ".join(f"{v:.1f}" for v in values)
        print(f"| {name} | {np.mean(values):.1f} | {each} | {seconds[name]:.0f} |")


if __name__ == "__main__":
    main()
