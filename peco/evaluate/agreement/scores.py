"""Distances of images by pixels, tokens and a network, and how well they agree with people on which of two views is closer.

This measures the opening question of PeCo (arXiv 2111.12710, figure 1). A method is a distance of two images. On generated
triplets it is right if the moved view is closer than the damaged one; on 2AFC items its score is the share of people who agree
with it (Zhang et al., arXiv 1801.03924). A tie counts half.

Legend: N images, C channels, H W pixels, h w positions, D width of a code, P pairs (of images; kinds of triplet), R references.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from peco.core.progress import tracked
from peco.evaluate.agreement.triplets import PAIRS, Triplets, TwoAfc
from peco.perceptual.distance import PerceptualDistance
from peco.tokenizer.image_metrics import ssim
from peco.tokenizer.model import PerceptualTokenizer

# Distances of at most this relative difference tie: the pixel errors of a generated triplet are equal up to rounding.
TIE = 1e-4
RESAMPLES = 2000
Z = 1.959964  # quantile of the standard normal distribution for a 95 % interval
BATCH = 32  # 2AFC items


class Method(Protocol):
    """A function that computes one or more distances, by name."""

    def __call__(self, x_NCHW: Tensor, pairs_P2: Tensor) -> dict[str, Tensor]:
        """Distances (P,) of pairs of images.

        Args:
            x_NCHW: float64 in [0, 1]; each image is processed once, no matter how many pairs it is in.
            pairs_P2: int64, indices of the images.
        """


def pixel_distances(x_NCHW: Tensor, pairs_P2: Tensor) -> dict[str, Tensor]:
    """`pixels`: mean squared error; `ssim`: 1 - structural similarity. A `Method`."""
    a_PCHW, b_PCHW = x_NCHW[pairs_P2[:, 0]], x_NCHW[pairs_P2[:, 1]]
    return {"pixels": (a_PCHW - b_PCHW).square().mean(dim=(1, 2, 3)), "ssim": 1 - ssim(a_PCHW, b_PCHW)}


class TokenDistances:
    """`tokens_hamming`: share of tokens that differ; `tokens_embedded`: squared distance of their codes. A `Method`."""

    def __init__(self, tokenizer: PerceptualTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, x_NCHW: Tensor, pairs_P2: Tensor) -> dict[str, Tensor]:
        tokens_Nhw = self.tokenizer.tokenize(x_NCHW.float())
        codes_NDhw = self.tokenizer.quantizer.lookup(tokens_Nhw)
        a_P, b_P = pairs_P2.unbind(dim=1)
        return {
            "tokens_hamming": (tokens_Nhw[a_P] != tokens_Nhw[b_P]).double().mean(dim=(1, 2)),
            "tokens_embedded": (codes_NDhw[a_P] - codes_NDhw[b_P]).double().square().sum(dim=1).mean(dim=(1, 2)),
        }


class NetworkDistances(PerceptualDistance):
    """The perceptual term of the tokenizer's loss, image by image; `between` is a `Method`."""

    @torch.no_grad()
    def between(self, x_NCHW: Tensor, pairs_P2: Tensor) -> dict[str, Tensor]:
        """`perceptual`: the distance of the network's features."""
        total_P = torch.zeros(len(pairs_P2))
        for features_NChw in self.net(x_NCHW.float()):
            differences = [
                self._difference(features_NChw[a, None], features_NChw[b, None]) for a, b in pairs_P2.tolist()
            ]
            total_P += torch.stack(differences).cpu()
        return {"perceptual": total_P}


def distances(
    methods: Iterable[Method], images: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], device: torch.device
) -> dict[str, np.ndarray]:
    """Distances, float64 (P,), of pairs of images by all methods."""
    x_NCHW = torch.from_numpy(np.stack(images)).to(device)
    pairs_P2 = torch.tensor(pairs, device=device)
    found: dict[str, Tensor] = {}
    for method in methods:
        found |= method(x_NCHW, pairs_P2)
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def preferred_pair(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
    """1 if the first distance is shorter, 0 if the second one is, 0.5 for a tie."""
    tie = np.abs(first_P - second_P) <= TIE * np.maximum(np.abs(first_P), np.abs(second_P))
    return np.where(tie, 0.5, (first_P < second_P).astype(float))


def answers(triplets: Triplets, methods: Iterable[Method], device: torch.device) -> dict[str, np.ndarray]:
    """Answers of each method to the triplets of an image: for each of `PAIRS` 1 (right), 0 (wrong), 0.5 (tie) or NaN (missing)."""
    names = [*triplets.moved, *triplets.damaged]
    images = [triplets.reference, *triplets.moved.values(), *triplets.damaged.values()]
    found = distances(methods, images, [(0, number + 1) for number in range(len(names))], device)
    rows = {}
    for method, values in found.items():
        row = np.full(len(PAIRS), np.nan)
        for place, pair in enumerate(PAIRS):
            if pair in triplets.damaged:
                moved = names.index(pair.partition("_")[0])
                row[place] = preferred_pair(values[moved, None], values[names.index(pair), None])[0]
        rows[method] = row
    return rows


@dataclass(frozen=True)
class TwoAfcScores:
    """Scores of the items with votes, (P,) by method, and the category of each item."""

    scores: dict[str, np.ndarray]
    categories: tuple[str, ...]


def score_two_afc(items: TwoAfc, size: int, methods: Sequence[Method], device: torch.device) -> TwoAfcScores:
    """Share of people who agree with each method on each item with votes, at `size` pixels a side.

    Raises:
        PecoError: an image can't be read.
    """
    judged = [index for index, item in enumerate(items.items) if item.judge is not None]
    parts: dict[str, list[np.ndarray]] = {}
    starts = range(0, len(judged), BATCH)
    for start in tracked(starts, "agreement: judged triplets", len(judged), "triplets", lambda _: BATCH):
        some = judged[start : start + BATCH]
        images = [image for index in some for image in items.images(index, size)]
        pairs = [(3 * number, 3 * number + view) for number in range(len(some)) for view in (1, 2)]
        votes_P = np.array([items.items[index].judge for index in some], dtype=float)
        for name, values in distances(methods, images, pairs, device).items():
            parts.setdefault(name, []).append(two_afc(values[::2], values[1::2], votes_P))
    return TwoAfcScores(
        {name: np.concatenate(values) for name, values in parts.items()},
        tuple(items.items[index].category for index in judged),
    )


def two_afc(p0_P: np.ndarray, p1_P: np.ndarray, votes_P: np.ndarray) -> np.ndarray:
    """Score of BAPPS: the share of people who chose the view with the shorter distance; 0.5 if the distances are equal.

    Args:
        p0_P, p1_P: distances of the two views to their reference.
        votes_P: share of people who chose p1.
    """
    return np.where(p0_P == p1_P, 0.5, np.where(p0_P < p1_P, 1 - votes_P, votes_P))


# Scores


def mean_interval(scores_RP: np.ndarray) -> dict[str, float]:
    """Mean of all scores (NaN: no score) and its 95 % interval by bootstrap over rows; a row holds the scores of one reference.

    Returns:
        `accuracy`, `low`, `high`; empty without scores.
    """
    counts_R = np.isfinite(scores_RP).sum(axis=1)
    sums_R, counts_R = np.nansum(scores_RP, axis=1)[counts_R > 0], counts_R[counts_R > 0]
    R = len(counts_R)
    if R == 0:
        return {}
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn_R = rng.integers(R, size=R)
        means.append(sums_R[drawn_R].sum() / counts_R[drawn_R].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return {"accuracy": float(sums_R.sum() / counts_R.sum()), "low": float(low), "high": float(high)}


def share_interval(scores_R: np.ndarray) -> dict[str, float]:
    """Mean of independent scores in [0, 1] (NaN: no score) and Wilson's 95 % interval, which is also valid near 0 and 1.

    Returns:
        `accuracy`, `low`, `high`; empty without scores.
    """
    scores_R = scores_R[np.isfinite(scores_R)]
    n = len(scores_R)
    if n == 0:
        return {}
    p = float(scores_R.mean())
    center, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return {"accuracy": p, "low": max(0.0, (center - half) / scale), "high": min(1.0, (center + half) / scale)}


def summarize(scores: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Compute the metrics of generated triplets.

    Args:
        scores: `answers` to the triplets of R images, stacked, (R, P) by method.

    Returns:
        `references`, `triplets`, `dropped` (triplets that could not be matched); for each method `<method>_accuracy` with `_low`
        and `_high` (95 %) and the share `<method>_ties`; and `pairs`, with the same for each of `PAIRS`.
    """
    some = next(iter(scores.values()))
    there_RP = np.isfinite(some)
    pairs: dict[str, dict[str, float]] = {}
    for place, pair in enumerate(PAIRS):
        count = int(there_RP[:, place].sum())
        pairs[pair] = {"triplets": count, "dropped": len(some) - count}
        for method, rows in scores.items():
            pairs[pair] |= _named(method, share_interval(rows[:, place]))
    result: dict[str, object] = {"references": len(some), "triplets": int(there_RP.sum())}
    result["dropped"] = int((~there_RP).sum())
    for method, rows in scores.items():
        result |= _named(method, mean_interval(rows))
        if there_RP.any():
            result[f"{method}_ties"] = float((rows[there_RP] == 0.5).mean())
    return result | {"pairs": pairs}


def summarize_two_afc(items: TwoAfc, found: TwoAfcScores) -> dict[str, object]:
    """Compute the metrics of 2AFC items.

    Returns:
        `items`, `judged`; for each method `<method>_score` with `_low` and `_high` (95 %); `categories`, with the same for each.
    """
    categories = np.array(found.categories)
    result: dict[str, object] = {"items": len(items), "judged": len(categories)}
    nested: dict[str, dict[str, float]] = {}
    for name, count in sorted(items.categories.items()):
        nested[name] = {"items": count, "judged": int((categories == name).sum())}
        for method, scores in found.scores.items():
            nested[name] |= _named(method, mean_interval(scores[categories == name][:, None]), "score")
    for method, scores in found.scores.items():
        result |= _named(method, mean_interval(scores[:, None]), "score")
    return result | {"categories": nested}


def _named(method: str, interval: Mapping[str, float], mean: str = "accuracy") -> dict[str, float]:
    return {f"{method}_{mean if key == 'accuracy' else key}": value for key, value in interval.items()}
