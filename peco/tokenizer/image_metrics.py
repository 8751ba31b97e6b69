"""PSNR and SSIM of a reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor

from peco.core.errors import PecoError


def psnr(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of images in [0, 1], in dB (B,); at most 100."""
    mse_B = (x_BCHW - y_BCHW).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return -10 * mse_B.log10()


_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5  # pixels; an 11 x 11 window


def ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Structural similarity of each pair of images in [0, 1], float64 (B,).

    As defined by Wang et al. (IEEE TIP 13(4), 2004): Gaussian window of 11 x 11 pixels with sigma 1.5, K1 0.01, K2 0.03, population
    covariances, mean over channels and over the positions at which the whole window is inside.

    Raises:
        PecoError: the images are smaller than the window.
    """
    if min(x_BCHW.shape[-2:]) <= 2 * _SSIM_RADIUS:
        raise PecoError(
            f"SSIM: images of {x_BCHW.shape[-2]}x{x_BCHW.shape[-1]} pixels; give at least {2 * _SSIM_RADIUS + 1} per side"
        )
    # Blurs as products with banded matrices: on a CPU far faster than convolutions in float64.
    band_hH, band_wW = (_window_band(side, x_BCHW.device) for side in x_BCHW.shape[-2:])

    def blur(z_BCHW: Tensor) -> Tensor:
        return band_hH @ z_BCHW @ band_wW.T

    x, y = x_BCHW.double(), y_BCHW.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (similarity / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))).mean(dim=(1, 2, 3))


def _window_band(side: int, device: torch.device) -> Tensor:
    """Float64 (side - 10, side): each row weights the pixels of one position of the window."""
    offsets = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=torch.float64, device=device)
    window = torch.exp(-offsets.square() / (2 * _SSIM_SIGMA**2))
    rows = side - 2 * _SSIM_RADIUS
    columns = torch.arange(rows, device=device)[:, None] + torch.arange(len(window), device=device)
    band = torch.zeros(rows, side, dtype=torch.float64, device=device)
    return band.scatter_(1, columns, (window / window.sum()).expand(rows, -1))
