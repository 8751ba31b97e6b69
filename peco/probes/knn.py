"""Weighted nearest-neighbour classification of frozen features (Wu et al., arXiv 1805.01978; DINO, arXiv 2104.14294).

Legend: N samples searched, M queries, D width, k neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from peco.core import config
from peco.core.device import CPU
from peco.core.progress import ProgressLines
from peco.probes.holdout import holdout_split

QUERIES_AT_ONCE = 256
# Block and number of neighbours are chosen on at most about this many samples of the holdout.
CHOICE_QUERIES = 10_000


@dataclass(frozen=True)
class KnnResult:
    """Result of `probe_knn`; accuracies from 0 to 1."""

    accuracy: float  # on val
    block: str  # chosen on the holdout
    neighbors: int  # chosen on the holdout
    holdout_accuracy: float
    tried: dict[str, dict[int, float]]  # holdout accuracy by block and number of neighbours


def probe_knn(
    train: tuple[Mapping[str, Tensor], Tensor],
    val: tuple[Mapping[str, Tensor], Tensor],
    knn: config.Knn,
    holdout: float,
    device: torch.device = CPU,
) -> KnnResult:
    """Choose block and number of neighbours on the holdout of train, then score val with all of train as neighbours.

    The choice is made on at most about `CHOICE_QUERIES` samples of the holdout, evenly spaced.

    Args:
        train, val: features by block, float (N, D), and labels, int64 (N,), from `features.extract`.
        knn: numbers of neighbours to try, temperature.
        holdout: share of train to choose on.
        device: device of the search; it needs room for twice the features of one block.

    Returns:
        the score and the choice; of equal accuracies the first one is chosen.

    Raises:
        PecoError: train has fewer than 2 samples.
    """
    (train_features, train_labels), (val_features, val_labels) = train, val
    fit, held = (torch.from_numpy(index) for index in holdout_split(train_labels.numpy(), holdout))
    held = held[:: -(-len(held) // CHOICE_QUERIES)]

    lines, done = ProgressLines("kNN", "searches"), count()

    def accuracies(index_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, truth_M: Tensor) -> dict[int, float]:
        number = next(done)
        index_ND, labels_N, queries_MD = (part.to(device) for part in (index_ND, labels_N, queries_MD))
        predictions = classify(
            index_ND,
            labels_N,
            queries_MD,
            knn.neighbors,
            knn.temperature,
            lambda query: lines(number, len(train_features) + 1, f"query {query}/{len(queries_MD)}"),
        )
        return {k: (predicted_M.cpu() == truth_M).double().mean().item() for k, predicted_M in predictions.items()}

    tried = {
        block: accuracies(features[fit], train_labels[fit], features[held], train_labels[held])
        for block, features in train_features.items()
    }
    block, k = max(((b, k) for b in tried for k in knn.neighbors), key=lambda choice: tried[choice[0]][choice[1]])
    scored = accuracies(train_features[block], train_labels, val_features[block], val_labels)
    return KnnResult(accuracy=scored[k], block=block, neighbors=k, holdout_accuracy=tried[block][k], tried=tried)


def classify(
    features_ND: Tensor,
    labels_N: Tensor,
    queries_MD: Tensor,
    neighbors: tuple[int, ...],
    temperature: float,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, Tensor]:
    """Classify each query by a vote of its nearest neighbours in cosine similarity s, each with weight exp(s / temperature).

    Args:
        features_ND, queries_MD: float; the length of a vector doesn't matter.
        labels_N: int64, not negative.
        neighbors: numbers of neighbours; more than N count as N.
        temperature: divisor of the similarities.
        progress: called with the number of queries done.

    Returns:
        int64 (M,) by number of neighbours, on the device of the features.
    """
    classes = int(labels_N.max()) + 1
    index_ND = F.normalize(features_ND, dim=1)
    k_max = min(max(neighbors), len(index_ND))
    found: dict[int, list[Tensor]] = {k: [] for k in neighbors}
    for number, queries_mD in enumerate(torch.split(queries_MD, QUERIES_AT_ONCE)):
        progress(number * QUERIES_AT_ONCE)
        similarity_mk, nearest_mk = (F.normalize(queries_mD, dim=1) @ index_ND.T).topk(k_max, dim=1)
        # Relative to the nearest, so that no weight overflows; in float64, so that the order of summation doesn't matter.
        weight_mk = ((similarity_mk - similarity_mk[:, :1]).double() / temperature).exp()
        voted_mk = labels_N[nearest_mk]
        for k in neighbors:
            votes_mC = weight_mk.new_zeros(len(queries_mD), classes).scatter_add_(1, voted_mk[:, :k], weight_mk[:, :k])
            found[k].append(votes_mC.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in found.items()}
