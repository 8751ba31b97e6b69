"""Fréchet distance between two sets of features.

Legend: N samples, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peco.core.errors import PecoError


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the normal distributions fitted to two sets of features, in float64.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) with means m and covariances S (Dowson and Landau, 1982), the formula of the
    FID (Heusel et al., arXiv 1706.08500). It equals the FID only with Inception's features and many thousands of images. Other
    features have another scale, and fewer samples give higher values, so compare values of one network and one number of images.

    Args:
        a_ND, b_ND: float; the numbers of samples may differ.

    Returns:
        at least 0, in squared units of the features; 0 up to rounding for equal sets.

    Raises:
        PecoError: a set has fewer than 2 samples and so no covariance.
    """
    for x_ND in (a_ND, b_ND):
        if len(x_ND) < 2:
            raise PecoError(f"Fréchet distance: a covariance of {len(x_ND)} sample(s); give at least 2 images")
    mean_a, cov_a = _moments(a_ND)
    mean_b, cov_b = _moments(b_ND)
    # S_a S_b has the eigenvalues of the symmetric R S_b R with R = S_a^(1/2), so two symmetric decompositions are enough.
    root_DD = _root(cov_a)
    shared = torch.linalg.eigvalsh(root_DD @ cov_b @ root_DD).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared
    return max(float(distance), 0.0)


def _moments(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    x_ND = x_ND.double()
    mean_D = x_ND.mean(dim=0)
    centered_ND = x_ND - mean_D
    return mean_D, centered_ND.T @ centered_ND / (len(x_ND) - 1)


def _root(cov_DD: Tensor) -> Tensor:
    values_D, vectors_DD = torch.linalg.eigh(cov_DD)
    root_DD: Tensor = (vectors_DD * values_D.clamp_min(0).sqrt()) @ vectors_DD.T
    return root_DD
