"""How hard is `scenes`? Accuracy of four baselines on its ten-class task, as a markdown table.

    python -m benchmarks.scenes_baselines --train 4000 --val 1000 --seeds 2

The first two should stay near chance (10 %), or the class would leak through colour or position. The third
shows what an untrained network gives away for free, and the last two that the labels can be learnt.

* colour histogram: 8 x 8 x 8 RGB bins (square-rooted frequencies), logistic regression;
* raw pixels: 32 x 32 RGB, logistic regression;
* random ViT: mean of the tokens of an untrained ViT, logistic regression;
* small CNN, small ViT: trained from scratch with flips and shifts by up to 4 pixels.

For each logistic regression the weight decay with the best validation accuracy is reported, so these
baselines are slightly flattered. A seed sets the images, the weights and the order of the examples alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peco.data.scenes import CLASSES, render

SIZE = 64
Data = tuple[Tensor, Tensor, Tensor, Tensor]  # as `load` returns it


def load(seed: int, train: int, val: int) -> Data:
    """Training images (train, 3, 64, 64) uint8 with labels (train,) int64, then the same for validation."""
    scenes = [render(seed, index, SIZE) for index in range(train + val)]
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([s.label for s in scenes])
    return images[:train], labels[:train], images[train:], labels[train:]


def unit(images: Tensor) -> Tensor:
    """uint8 images -> float32 of about zero mean and unit deviation."""
    return (images.float() - 127.5) / 64.0


def histogram(images: Tensor) -> Tensor:
    """Square-rooted frequencies (B, 512) of 8 x 8 x 8 RGB bins."""
    bins = (images.long() >> 5).flatten(2)
    flat = (bins[:, 0] * 8 + bins[:, 1]) * 8 + bins[:, 2]
    counts = torch.zeros(len(images), 512).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    return (counts / flat.shape[1]).sqrt()


def raw(images: Tensor) -> Tensor:
    """Pixels (B, 3072) of the images averaged to 32 x 32."""
    return F.avg_pool2d(unit(images), 2).flatten(1)


class SmallViT(nn.Module):
    """Pre-norm vision transformer: 8 x 8 patches, 128 dimensions, 4 blocks, mean of tokens."""

    def __init__(self, dim: int = 128, depth: int = 4, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (SIZE // patch) ** 2, dim))
        layer = nn.TransformerEncoderLayer(
            dim, dim // 32, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, len(CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """Float images (B, 3, 64, 64) -> (B, dim)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.place
        pooled: Tensor = self.blocks(tokens).mean(dim=1)
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def small_cnn() -> nn.Module:
    """Four strided convolutions (32 to 192 channels) and a linear layer on the 4 x 4 grid that remains."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 192)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(192 * 16, len(CLASSES)))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percentage of rows whose largest logit is at the label."""
    return 100.0 * float((logits.argmax(dim=1) == labels).float().mean())


def fit(x: Tensor, y: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Weight (D, 10) and bias (10,) of a logistic regression, by L-BFGS."""
    weight = torch.zeros(x.shape[1], len(CLASSES), requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def logistic(x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> float:
    """Best validation accuracy of logistic regressions on standardised features over three weight decays."""
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-3
    x, x_val = (x - mean) / std, (x_val - mean) / std
    fits = (fit(x, y, decay) for decay in (1e-3, 1e-2, 1e-1))
    return max(accuracy(x_val @ weight + bias, y_val) for weight, bias in fits)


def augment(images: Tensor) -> Tensor:
    """Flip half of the images left to right and shift each batch by up to 4 pixels (edges repeat)."""
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    dx, dy = torch.randint(0, 9, (2,)).tolist()
    return F.pad(images, (4, 4, 4, 4), mode="replicate")[:, :, dy : dy + SIZE, dx : dx + SIZE]


def supervised(model: nn.Module, data: Data, passes: int, rate: float, bf16: bool) -> float:
    """Validation accuracy after training `passes` times over the data, AdamW with a one-cycle rate."""
    x, y, x_val, y_val = data
    batch = 64
    steps = passes * (len(x) // batch)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    model.train()
    for _ in range(passes):
        for pick in torch.randperm(len(x))[: len(x) // batch * batch].view(-1, batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(augment(unit(x[pick])))
            loss = F.cross_entropy(logits.float(), y[pick], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return accuracy(torch.cat([model(unit(part)) for part in torch.split(x_val, 250)]), y_val)


def linear(features: Callable[[Tensor], Tensor], data: Data) -> float:
    """Logistic regression on fixed features."""
    x, y, x_val, y_val = data
    return logistic(features(x), y, features(x_val), y_val)


def random_vit(data: Data) -> float:
    """Linear probe on an untrained ViT."""
    model = SmallViT().eval()

    def embed(images: Tensor) -> Tensor:
        return torch.cat([model.features(unit(part)) for part in torch.split(images, 250)])

    with torch.no_grad():
        x, x_val = embed(data[0]), embed(data[2])
    return logistic(x, data[1], x_val, data[3])


def main() -> None:
    """Measure all baselines and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--val", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 (faster on recent CPUs)")
    parser.add_argument("--only", nargs="*", help="first words of the baselines to run (all if left out)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    baselines: dict[str, Callable[[Data], float]] = {
        "colour histogram, logistic regression": lambda d: linear(histogram, d),
        "raw 32 x 32 pixels, logistic regression": lambda d: linear(raw, d),
        "random ViT, linear probe": random_vit,
        "small CNN, supervised": lambda d: supervised(small_cnn(), d, args.passes, 2e-3, args.bf16),
        "ViT, supervised": lambda d: supervised(SmallViT(), d, args.passes, 1e-3, args.bf16),
    }
    if args.only:
        baselines = {n: f for n, f in baselines.items() if any(n.startswith(word) for word in args.only)}
    results: dict[str, list[float]] = {name: [] for name in baselines}
    seconds: dict[str, float] = dict.fromkeys(baselines, 0.0)
    for seed in range(args.seeds):
        data = load(seed, args.train, args.val)
        for name, baseline in baselines.items():
            torch.manual_seed(seed)
            start = time.perf_counter()
            results[name].append(baseline(data))
            seconds[name] += (time.perf_counter() - start) / args.seeds
    print(f"\n{args.train} training and {args.val} validation images, {args.seeds} seeds\n")
    print("| baseline | accuracy, % | each seed | seconds |\n|---|---|---|---|")
    for name, values in results.items():
        each = ", ".join(f"{v:.1f}" for v in values)
        print(f"| {name} | {np.mean(values):.1f} | {each} | {seconds[name]:.0f} |")


if __name__ == "__main__":
    main()
