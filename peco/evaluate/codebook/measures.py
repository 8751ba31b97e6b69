"""Measures of a codebook: features of tokens for linear probes, and the information of codes about classes.

All of them take tokens, so they apply to any codebook. `PatchCodebook`, k-means of raw patches, is the baseline.

Legend: B N images, C = 3 channels, H W pixels, h w token grid, K codes, D width of a code, M patches, Y classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peco.core.progress import tracked
from peco.tokenizer.quantizer import nearest

GRID_SIDE = 4  # cells along a side of `grid_features`
# A code is class-specific if it has more information than any code in any of these shufflings of the labels. By chance the
# whole codebook has such a code with a probability of 1 %.
SHUFFLES = 99
KMEANS_ITERATIONS = 20


# Features of tokens, for linear probes


def histogram_features(tokens_Nhw: Tensor, codes: int) -> Tensor:
    """Share of each code in each image, float32 (N, K): a bag of words."""
    tokens_NL = tokens_Nhw.flatten(1)
    counts_NK = torch.zeros(len(tokens_NL), codes, device=tokens_NL.device)
    return counts_NK.scatter_add_(1, tokens_NL, torch.ones_like(tokens_NL, dtype=torch.float32)) / tokens_NL.shape[1]


def mean_features(tokens_Nhw: Tensor, vectors_KD: Tensor) -> Tensor:
    """Mean code vector of each image, float32 (N, D)."""
    return histogram_features(tokens_Nhw, len(vectors_KD)) @ vectors_KD.float()


def grid_features(tokens_Nhw: Tensor, vectors_KD: Tensor) -> Tensor:
    """Code vectors of each image by position, float32 (N, D cells).

    They are averaged down to `GRID_SIDE` x `GRID_SIDE` cells; a smaller grid stays as it is.
    """
    _, h, w = tokens_Nhw.shape
    side = (min(h, GRID_SIDE), min(w, GRID_SIDE))
    parts = [
        F.adaptive_avg_pool2d(vectors_KD.float()[part_Bhw].permute(0, 3, 1, 2), side).flatten(1)
        for part_Bhw in torch.split(tokens_Nhw, 256)
    ]
    return torch.cat(parts)


# Class-specific codes


@dataclass(frozen=True)
class ClassInformation:
    """Information that the presence of a code in an image gives about the class of the image; float64 unless noted."""

    bits_K: Tensor  # mutual information minus its mean over shuffled labels: 0 on average for an independent code
    class_specific_K: Tensor  # bool: more information than any code in any shuffling of the labels
    images_K: Tensor  # int64: number of images with the code
    share_KY: Tensor  # share of each class among the images with the code; 0 if there are none
    share_Y: Tensor  # share of each class among all images

    @property
    def ranked(self) -> list[int]:
        """The class-specific codes, the most informative first."""
        order = torch.argsort(self.bits_K, descending=True, stable=True)
        return [code for code in order.tolist() if self.class_specific_K[code]]


def class_information(tokens_Nhw: Tensor, labels_N: Tensor, *, codes: int, classes: int, seed: int) -> ClassInformation:
    """Mutual information of the presence of each code and the class, with a permutation test against chance.

    The bound is the maximum over all codes and shufflings, so it holds for the codebook as a whole (Westfall and Young, 1993): if
    codes and classes are independent, one of `SHUFFLES` + 1 codebooks has a class-specific code.

    Args:
        tokens_Nhw: int64.
        labels_N: int64 in [0, classes).
        codes, classes: K and Y.
        seed: seed of the shufflings.
    """
    presence_NK = (histogram_features(tokens_Nhw, codes) > 0).float()
    count_Y = torch.bincount(labels_N, minlength=classes).double()
    rng = np.random.default_rng(seed)

    def measure(labels_N: Tensor) -> tuple[Tensor, Tensor]:
        # Sums of ones are exact in float32, whatever their order.
        present_KY = (presence_NK.T @ F.one_hot(labels_N, classes).float()).double()
        return present_KY, _information(present_KY, count_Y)

    present_KY, bits_K = measure(labels_N)
    mean_K, bound = torch.zeros_like(bits_K), 0.0
    for _ in tracked(range(SHUFFLES), "codebook: information about classes", SHUFFLES, "shuffles"):
        order_N = torch.from_numpy(rng.permutation(len(labels_N))).to(labels_N.device)
        _, chance_K = measure(labels_N[order_N])
        mean_K += chance_K / SHUFFLES
        bound = max(bound, float(chance_K.max()))
    images_K = present_KY.sum(dim=1)
    return ClassInformation(
        bits_K=bits_K - mean_K,
        class_specific_K=bits_K > bound + 1e-9,  # equal counts in another order differ by rounding
        images_K=images_K.long(),
        share_KY=present_KY / images_K.clamp_min(1)[:, None],
        share_Y=count_Y / len(labels_N),
    )


def _information(present_KY: Tensor, count_Y: Tensor) -> Tensor:
    """Mutual information in bits, float64 (K,), of class and presence: H(presence) + H(class) - H(presence, class).

    Args:
        present_KY: number of images with each code, by class.
        count_Y: number of images by class.
    """
    total = count_Y.sum()
    joint_K2Y = torch.stack([present_KY, count_Y - present_KY], dim=1) / total
    presence_K, both_K = _entropy(joint_K2Y.sum(dim=2)), _entropy(joint_K2Y.flatten(1))
    class_ = _entropy(count_Y / total)
    return (presence_K + class_ - both_K) / math.log(2)


def _entropy(p: Tensor) -> Tensor:
    """Entropy of the distributions along the last axis, in nats."""
    entropy: Tensor = torch.special.entr(p).sum(dim=-1)
    return entropy


# The baseline codebook


@dataclass(frozen=True)
class PatchCodebook:
    """Codes that are patches of pixels: k-means centres. Images are float BCHW in [0, 1].

    Args:
        vectors_KD: the centres, D = 3 factor^2.
        factor: side of a patch in pixels.
    """

    vectors_KD: Tensor
    factor: int

    def tokenize(self, x_BCHW: Tensor) -> Tensor:
        """Nearest code of each patch, int64 (B, h, w)."""
        B, _, H, W = x_BCHW.shape
        tokens_M = nearest(patches_of(x_BCHW, self.factor), self.vectors_KD)
        return tokens_M.view(B, H // self.factor, W // self.factor)

    def decode(self, tokens_Bhw: Tensor) -> Tensor:
        """Put the codes side by side, BCHW."""
        return F.pixel_shuffle(self.vectors_KD[tokens_Bhw].permute(0, 3, 1, 2), self.factor)


def fit_patches(patches_MD: Tensor, codes: int, factor: int, seed: int) -> PatchCodebook:
    """Fit a codebook by k-means (Lloyd's algorithm) from random patches; a code that loses all its patches keeps its vector.

    Args:
        patches_MD: float, from `patches_of`. With fewer patches than `codes`, some codes are equal and stay unused.
        codes: K.
        factor: side of a patch in pixels.
        seed: seed of the initial codes.
    """
    picks = np.resize(np.random.default_rng(seed).permutation(len(patches_MD)), codes)
    vectors_KD = patches_MD[torch.from_numpy(picks).to(patches_MD.device)]
    for _ in tracked(range(KMEANS_ITERATIONS), "codebook: k-means of patches", KMEANS_ITERATIONS, "iterations"):
        tokens_M = nearest(patches_MD, vectors_KD)
        counts_K1 = torch.bincount(tokens_M, minlength=codes)[:, None]
        sums_KD = torch.zeros_like(vectors_KD).index_add_(0, tokens_M, patches_MD)
        vectors_KD = torch.where(counts_K1 > 0, sums_KD / counts_K1.clamp_min(1), vectors_KD)
    return PatchCodebook(vectors_KD, factor)


def patches_of(x_BCHW: Tensor, factor: int) -> Tensor:
    """Patches of images, row by row, (B h w, 3 factor^2), with the values of a patch in the order of `pixel_shuffle`."""
    return F.pixel_unshuffle(x_BCHW, factor).permute(0, 2, 3, 1).flatten(0, 2)
