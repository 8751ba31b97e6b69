"""Linear probe: multinomial logistic regression on frozen features, and simple image features as baselines.

Legend: N samples, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from peco.core import config
from peco.core.device import CPU
from peco.core.progress import ProgressLines
from peco.probes.holdout import holdout_split

ROWS_AT_ONCE = 16384
# Block and L2 strength are chosen by fits of at most about this many rows; the final fit takes all rows.
CHOICE_ROWS = 10_000
GRADIENT_TOLERANCE = 1e-5  # largest entry of the gradient of the mean loss


@dataclass(frozen=True)
class LinearResult:
    """Result of `probe_linear`; accuracies from 0 to 1."""

    accuracy: float  # on val
    block: str  # chosen on the holdout
    l2: float  # chosen on the holdout
    holdout_accuracy: float
    tried: dict[str, dict[float, float]]  # holdout accuracy by block and strength
    converged: bool  # True if the final fit reached its minimum


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of standardised features, all in float64."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    converged: bool  # True if the gradient is at most GRADIENT_TOLERANCE

    def predict(self, features_ND: Tensor) -> Tensor:
        """Predict the classes, int64 (N,), on the CPU."""
        parts = [
            ((rows.to(self.mean.device).double() - self.mean) * self.scale @ self.weight + self.bias)
            .argmax(dim=1)
            .cpu()
            for rows in torch.split(features_ND, ROWS_AT_ONCE)
        ]
        return torch.cat(parts)

    def accuracy(self, features_ND: Tensor, labels_N: Tensor) -> float:
        """Share of correct predictions, 0 to 1."""
        return (self.predict(features_ND) == labels_N).double().mean().item()


def probe_linear(
    train: tuple[Mapping[str, Tensor], Tensor],
    val: tuple[Mapping[str, Tensor], Tensor],
    linear: config.Linear,
    holdout: float,
    device: torch.device = CPU,
    label: str = "linear probe",
) -> LinearResult:
    """Choose block and L2 strength on the holdout of train, fit again on all of train, score val.

    The fits for the choice, one for each block and strength, use at most about `CHOICE_ROWS` rows, evenly spaced.

    Args:
        train, val: features by block, float (N, D), and labels, int64 (N,), from `features.extract`.
        linear: strengths to try, limit of iterations.
        holdout: share of train to choose on.
        device: device of the fits; features go there a slice at a time.
        label: begins the progress lines.

    Returns:
        the score and the choice; of equal accuracies the first block and the greatest strength are chosen.

    Raises:
        PecoError: train has fewer than 2 samples.
    """
    (train_features, train_labels), (val_features, val_labels) = train, val
    fit_rows, held = (torch.from_numpy(index) for index in holdout_split(train_labels.numpy(), holdout))
    fit_rows = fit_rows[:: -(-len(fit_rows) // CHOICE_ROWS)]
    classes = int(max(train_labels.max(), val_labels.max())) + 1
    strengths = sorted(linear.l2, reverse=True)
    lines, fits = ProgressLines(label, "fits"), len(train_features) * len(strengths) + 1

    def progress(evaluation: int) -> None:
        lines(sum(map(len, tried.values())), fits, f"evaluation {evaluation} of the loss")

    tried: dict[str, dict[float, float]] = {}
    for block, features in train_features.items():
        tried[block] = {}
        start: Classifier | None = None
        for l2 in strengths:  # from strong to weak, each from the solution before: fewer iterations
            start = fit(
                features[fit_rows], train_labels[fit_rows], classes, l2, linear.max_iter, start, device, progress
            )
            tried[block][l2] = start.accuracy(features[held], train_labels[held])
    block, l2 = max(((b, s) for b in tried for s in strengths), key=lambda choice: tried[choice[0]][choice[1]])
    final = fit(train_features[block], train_labels, classes, l2, linear.max_iter, device=device, progress=progress)
    return LinearResult(
        accuracy=final.accuracy(val_features[block], val_labels),
        block=block,
        l2=l2,
        holdout_accuracy=tried[block][l2],
        tried=tried,
        converged=final.converged,
    )


def fit(
    features_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    l2: float,
    max_iter: int,
    start: Classifier | None = None,
    device: torch.device = CPU,
    progress: Callable[[int], None] = lambda evaluation: None,
) -> Classifier:
    """Minimise mean cross entropy + l2 / 2 * |weights|^2 over standardised features by L-BFGS in float64; the bias is free.

    Args:
        features_ND: float; standardised by their own mean and deviation, constant columns count as 0.
        labels_N: int64 in [0, classes).
        classes: C.
        l2: strength.
        max_iter: limit of iterations; 25 % more evaluations of the loss are allowed.
        start: initial weights and bias, instead of zero.
        device: device of the computation.
        progress: called with the number of evaluations of the loss.

    Returns:
        the classifier; the same for the same input and number of threads.
    """
    mean_D = features_ND.mean(dim=0, dtype=torch.float64).to(device)
    squares_D = sum(
        (((rows.to(device).double() - mean_D) ** 2).sum(dim=0) for rows in torch.split(features_ND, ROWS_AT_ONCE)),
        torch.zeros_like(mean_D),
    )
    std_D = (squares_D / len(features_ND)).sqrt()
    scale_D = torch.where(std_D > 1e-8 * (1 + mean_D.abs()), 1 / std_D.clamp_min(1e-300), 0.0)

    # One tensor holds weights and, as its last row, the bias.
    theta = torch.zeros(features_ND.shape[1] + 1, classes, dtype=torch.float64, device=device)
    if start is not None:
        theta[:-1], theta[-1] = start.weight, start.bias
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=max_iter, tolerance_grad=GRADIENT_TOLERANCE, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    evaluations = count(1)

    def closure() -> Tensor:
        # The gradient in closed form, a slice of rows at a time: float64 copies of all features of a large set wouldn't fit.
        loss, gradient = theta.new_zeros(()), torch.zeros_like(theta)
        for rows, labels in zip(
            torch.split(features_ND, ROWS_AT_ONCE), torch.split(labels_N, ROWS_AT_ONCE), strict=True
        ):
            rows, labels = rows.to(device), labels.to(device)
            x_nD = (rows.double() - mean_D) * scale_D
            log_p_nC = (x_nD @ theta[:-1] + theta[-1]).log_softmax(dim=1)
            loss -= log_p_nC.gather(1, labels[:, None]).sum()
            error_nC = log_p_nC.exp_()
            error_nC[torch.arange(len(labels), device=device), labels] -= 1
            gradient[:-1] += x_nD.T @ error_nC
            gradient[-1] += error_nC.sum(dim=0)
        progress(next(evaluations))
        gradient /= len(features_ND)
        gradient[:-1] += l2 * theta[:-1]
        theta.grad = gradient
        return loss / len(features_ND) + l2 / 2 * theta[:-1].square().sum()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    closure()  # for the gradient at the solution
    assert theta.grad is not None
    converged = theta.grad.abs().max().item() <= GRADIENT_TOLERANCE
    return Classifier(mean_D, scale_D, theta[:-1], theta[-1], converged)


def color_histogram(images: np.ndarray, bins: int = 8) -> Tensor:
    """Joint RGB histogram of each image: a baseline with colours but without shape.

    Args:
        images: uint8 (N, H, W, 3).
        bins: per channel.

    Returns:
        float32 (N, bins^3), each row with sum 1.
    """
    levels = images.astype(np.int64) * bins // 256
    cells = (levels[..., 0] * bins + levels[..., 1]) * bins + levels[..., 2]
    counts = np.stack([np.bincount(cell.ravel(), minlength=bins**3) for cell in cells])
    return torch.from_numpy((counts / cells[0].size).astype(np.float32))


def raw_pixels(images: np.ndarray, side: int = 16) -> Tensor:
    """Pixels of each image, averaged down to `side` x `side`: a baseline with the colours and their positions.

    Args:
        images: uint8 (N, H, W, 3).
        side: in pixels; smaller images stay as they are.

    Returns:
        float32 (N, 3 * side^2) in [0, 1].
    """
    pooled = [
        torch.nn.functional.adaptive_avg_pool2d(
            torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255,
            (min(side, part.shape[1]), min(side, part.shape[2])),
        )
        for part in np.array_split(images, max(1, len(images) // 256))
    ]
    return torch.cat(pooled).flatten(1)
