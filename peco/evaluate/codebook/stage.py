"""Stage `evaluate@codebook`: the tokenizer's codebook compared with as many k-means codes of raw patches on the same grid.

Both codebooks get the same measures; the scores of the second have the prefix `patches_`. Codes are counted and reconstructions
scored on the first `evaluate.codebook.images` of val (of train, if there is no val); k-means and probes use as many of train.

Legend: B N images, C = 3 channels, H W pixels, h w token grid, K codes, D width, M patches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peco.core import artifacts, config, device, numbers
from peco.core.publishing import staging
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet, open_evaluation_split, open_shards
from peco.evaluate.codebook import measures as codebook
from peco.evaluate.codebook.frechet import frechet_distance
from peco.evaluate.common import require_task, write_details
from peco.perceptual.features import FeatureNet
from peco.probes.labeled import labeled_splits
from peco.probes.linear import probe_linear
from peco.runtime import paths
from peco.runtime.stage import Skipped, StageRun, run_stage
from peco.tokenizer import image_metrics, storage
from peco.tokenizer.image_metrics import psnr
from peco.tokenizer.quantizer import usage_and_perplexity

PARAMS = ("seed", "evaluate.holdout", "evaluate.tasks.codebook", "evaluate.codebook")
PICTURES = paths.PICTURES / "codebook"
EVAL_BATCH = 64
PATCHES_PER_CODE = 32  # number of patches for k-means
GALLERY, PATCHES = 8, 10  # number of codes shown of each kind, and of patches of each code
CLASSES_NAMED = 3  # classes listed of a class-specific code
TILE = 48  # minimum side in pixels of a patch with its surroundings
VEIL = 0.6  # opacity of the white over the surroundings


@dataclass(frozen=True)
class Book:
    """A codebook to measure, and the prefix of its metrics."""

    prefix: str
    tokenize: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    vectors_KD: Tensor  # on the CPU


@dataclass(frozen=True)
class Images:
    """The first `count` images of a split in the tokenizer's evaluation view, on a device."""

    split: ShardSet
    count: int
    size: int
    workers: int
    device: torch.device

    @property
    def labels(self) -> Tensor:
        """int64 (N,), -1 for an image without a label."""
        return torch.from_numpy(self.split.labels[: self.count])

    def batches(self) -> Iterator[Tensor]:
        """Read all images as float BCHW in [0, 1]."""
        transform = CenterView(self.size)
        for batch in eval_batches(
            self.split,
            transform,
            batch_size=EVAL_BATCH,
            stop=self.count,
            workers=self.workers,
            label=f"codebook: {self.split.split}",
        ):
            yield batch["image"].to(self.device)

    def pixels(self, index: int) -> np.ndarray:
        """Read one image as uint8 (H, W, 3)."""
        (sample,) = self.split.read(index, index + 1)
        image: np.ndarray = CenterView(self.size)(sample, 0)["image"]()
        return image


@torch.no_grad()
def main(run: StageRun) -> None:
    require_task(run, "codebook")
    cfg, seed, compute_device = run.config.evaluate, run.config.seed, device.select_device()
    tokenizer = storage.load(paths.TOKENIZER).to(compute_device)
    codes = tokenizer.quantizer.codes
    size = storage.image_size(paths.TOKENIZER)
    train, val = (
        Images(split, min(cfg.codebook.images, len(split)), size, run.workers, compute_device)
        for split in train_and_scored()
    )
    patches = codebook.fit_patches(sample_patches(train, tokenizer.factor, codes, seed), codes, tokenizer.factor, seed)
    books = (
        Book("", tokenizer.tokenize, tokenizer.decode, tokenizer.quantizer.codebook_KD.cpu()),
        Book("patches_", patches.tokenize, patches.decode, patches.vectors_KD.cpu()),
    )
    metrics: dict[str, Any] = {"codes": codes, "images": val.count, "split": val.split.split}
    tokens = tokenize(books, val)
    metrics |= usage_scores(books, tokens) | reconstruction_scores(books, tokens, val)
    metrics |= class_scores(books, tokens, val, seed)
    try:
        labeled_splits()
        probe = config.Linear(l2=cfg.codebook.l2, max_iter=cfg.codebook.max_iter)
        metrics |= linear_scores(
            books, (train, tokenize(books, train)), (val, tokens), probe, cfg.holdout, compute_device
        )
    except Skipped as reason:
        metrics["linear_skipped"] = str(reason)
    details: dict[str, Any] = {kind: metrics.pop(kind) for kind in ("frequent", "telling") if kind in metrics}
    with staging(PICTURES) as folder:
        for kind, entries in details.items():
            for rank, entry in enumerate(entries, start=1):
                picture = gallery(tokens[0], entry["code"], val, tokenizer.factor)
                Image.fromarray(picture).save(folder / f"{kind}-{rank}.png", compress_level=9)
        write_details(folder, details)
    run.metrics(metrics)


def train_and_scored() -> tuple[ShardSet, ShardSet]:
    """Open train and the split that is scored: val, or train if there is no val."""
    train = open_shards(paths.SHARDS, "train")
    return train, open_evaluation_split(paths.SHARDS)


def sample_patches(images: Images, factor: int, codes: int, seed: int) -> Tensor:
    """Draw random patches for k-means, the same number from each image, float (M, 3 factor^2)."""
    positions = (images.size // factor) ** 2
    each = min(positions, -(-codes * PATCHES_PER_CODE // images.count))
    rng = np.random.default_rng(seed)
    found = []
    for x_BCHW in images.batches():
        chosen = [image * positions + rng.permutation(positions)[:each] for image in range(len(x_BCHW))]
        found.append(codebook.patches_of(x_BCHW, factor)[torch.from_numpy(np.concatenate(chosen)).to(x_BCHW.device)])
    return torch.cat(found)


def tokenize(books: Sequence[Book], images: Images) -> list[Tensor]:
    """Tokenize the images with each codebook: int64 (N, h, w), on the CPU."""
    parts = [[book.tokenize(x_BCHW).cpu() for book in books] for x_BCHW in images.batches()]
    return [torch.cat(of_book) for of_book in zip(*parts, strict=True)]


def usage_scores(books: Sequence[Book], tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Usage and perplexity of the codes, and the most used ones."""
    metrics: dict[str, Any] = {}
    for book, tokens_Nhw in zip(books, tokens, strict=True):
        histogram_K = torch.bincount(tokens_Nhw.flatten(), minlength=len(book.vectors_KD))
        usage, perplexity = usage_and_perplexity(histogram_K)
        metrics |= {f"{book.prefix}usage": usage, f"{book.prefix}perplexity": perplexity}
        if not book.prefix:
            order = torch.argsort(histogram_K, descending=True, stable=True)[:GALLERY].tolist()
            share_K = histogram_K.double() / histogram_K.sum()
            most_used = [{"code": k, "share": float(share_K[k])} for k in order if histogram_K[k]]
            metrics["frequent"] = [numbers.rounded(entry) for entry in most_used]
    return metrics


def reconstruction_scores(books: Sequence[Book], tokens: Sequence[Tensor], images: Images) -> dict[str, Any]:
    """Scores of the reconstructions: PSNR in dB and SSIM, means over images, and the Fréchet distance.

    The features for the Fréchet distance are those of the perceptual network's last block, averaged over positions.
    """
    net = artifacts.load_timm(paths.PERCEPTUAL_NET)
    features = FeatureNet(net, [len(cast(Any, net).feature_info)]).to(images.device)
    scores: dict[str, list[Tensor]] = defaultdict(list)
    for x_BCHW, *parts in zip(images.batches(), *(torch.split(t, EVAL_BATCH) for t in tokens), strict=True):
        scores["original"].append(features(x_BCHW)[-1].mean(dim=(2, 3)).cpu())
        for book, tokens_Bhw in zip(books, parts, strict=True):
            y_BCHW = book.decode(tokens_Bhw.to(images.device))
            scores[f"{book.prefix}psnr"].append(psnr(x_BCHW, y_BCHW).cpu())
            scores[f"{book.prefix}ssim"].append(image_metrics.ssim(x_BCHW, y_BCHW).cpu())
            scores[f"{book.prefix}frechet"].append(features(y_BCHW)[-1].mean(dim=(2, 3)).cpu())
    joined = {name: torch.cat(found) for name, found in scores.items()}
    original_ND = joined.pop("original")
    distances = {name: joined.pop(name) for name in list(joined) if name.endswith("frechet")}
    found: dict[str, Any] = {name: float(values.double().mean()) for name, values in joined.items()}
    if len(original_ND) < 2:
        return found | {"frechet_skipped": "one image has no covariance"}
    return found | {name: frechet_distance(original_ND, values) for name, values in distances.items()}


def class_scores(books: Sequence[Book], tokens: Sequence[Tensor], images: Images, seed: int) -> dict[str, Any]:
    """Number of class-specific codes, mean information in bits of the codes that occur, and the most informative codes."""
    rows = (images.labels >= 0).nonzero().flatten()
    labels_N = images.labels[rows].to(images.device)
    if len(torch.bincount(labels_N).nonzero()) < 2:
        return {"classes_skipped": f"fewer than two classes in the {images.count} images of {images.split.split}"}
    names = images.split.classes
    metrics: dict[str, Any] = {}
    for book, tokens_Nhw in zip(books, tokens, strict=True):
        labeled_Nhw = tokens_Nhw[rows].to(images.device)
        found = codebook.class_information(
            labeled_Nhw, labels_N, codes=len(book.vectors_KD), classes=len(names), seed=seed
        )
        metrics[f"{book.prefix}telling_codes"] = int(found.class_specific_K.sum())
        metrics[f"{book.prefix}class_bits"] = float(found.bits_K[found.images_K > 0].mean())
        if not book.prefix:
            metrics["telling"] = [describe_code(found, code, names) for code in found.ranked[:GALLERY]]
    return metrics


def describe_code(found: codebook.ClassInformation, code: int, names: Sequence[str]) -> dict[str, Any]:
    """Describe a class-specific code: its information, the number of images with it, the classes over-represented among them."""
    order = torch.argsort(found.share_KY[code] - found.share_Y, descending=True, stable=True)[:CLASSES_NAMED]
    classes = {
        names[y]: {"share": float(found.share_KY[code, y]), "of_all": float(found.share_Y[y])}
        for y in order.tolist()
        if found.share_KY[code, y] > found.share_Y[y]
    }
    bits, images = float(found.bits_K[code]), int(found.images_K[code])
    entry: dict[str, Any] = numbers.rounded({"code": code, "bits": bits, "images": images, "classes": classes})
    return entry


def linear_scores(
    books: Sequence[Book],
    train: tuple[Images, Sequence[Tensor]],
    val: tuple[Images, Sequence[Tensor]],
    probe: config.Linear,
    holdout: float,
    compute_device: torch.device,
) -> dict[str, float]:
    """Accuracy on val of linear probes of token histograms, mean code vectors, and code vectors by position."""
    metrics: dict[str, float] = {}
    for number, book in enumerate(books):
        (train_features, train_labels), (val_features, val_labels) = (
            (token_features(tokens[number], book.vectors_KD), images.labels) for images, tokens in (train, val)
        )
        for name in train_features:
            result = probe_linear(
                ({name: train_features[name]}, train_labels),
                ({name: val_features[name]}, val_labels),
                probe,
                holdout,
                compute_device,
                f"codebook: {book.prefix}{name}",
            )
            metrics |= {f"{book.prefix}{name}_accuracy": result.accuracy, f"{book.prefix}{name}_l2": result.l2}
    return metrics


def token_features(tokens_Nhw: Tensor, vectors_KD: Tensor) -> dict[str, Tensor]:
    """Features for the linear probes by name, float32 (N, …)."""
    return {
        "token_histogram": codebook.histogram_features(tokens_Nhw, len(vectors_KD)),
        "token_mean": codebook.mean_features(tokens_Nhw, vectors_KD),
        "token_grid": codebook.grid_features(tokens_Nhw, vectors_KD),
    }


def gallery(tokens_Nhw: Tensor, code: int, images: Images, factor: int) -> np.ndarray:
    """Draw patches of this code in a row, each in the middle of its faded surroundings, uint8 (H, W, 3)."""
    places = (tokens_Nhw == code).nonzero()
    tiles = []
    for image, i, j in places[numbers.evenly_spaced(len(places), PATCHES)].tolist():
        padded = np.pad(images.pixels(image), ((factor, factor), (factor, factor), (0, 0)), mode="edge")
        around = padded[i * factor : (i + 3) * factor, j * factor : (j + 3) * factor]
        tile = np.round(around * (1 - VEIL) + 255 * VEIL).astype(np.uint8)
        tile[factor:-factor, factor:-factor] = around[factor:-factor, factor:-factor]
        enlarge = -(-TILE // len(tile))
        tiles.append(tile.repeat(enlarge, axis=0).repeat(enlarge, axis=1))
    return np.hstack(tiles)


if __name__ == "__main__":
    run_stage("evaluate@codebook", PARAMS, main)
