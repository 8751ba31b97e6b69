"""Vector quantizer with an exponential-moving-average codebook (van den Oord et al., arXiv 1711.00937, appendix A.1).

Order of operations in a training step: `forward` (once a micro-batch) assigns by the current codebook and adds up statistics;
`update`, after the optimizer step, moves the codebook. All persistent state is global, i.e. equal on all ranks, so that one rank's
`state_dict` taken after `update` resumes the run exactly.

Codebook, distances and statistics are float32 also under autocast: in half precision codes merge and die.

Legend: B batch, D code width, h w token grid, N = B h w vectors, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peco.core import config
from peco.core.collectives import Collective, identity

_SMOOTHING = 1e-5  # Laplace smoothing of the counts
_CHUNK = 2**26  # entries of the distance matrix in memory at a time (256 MiB)
_INIT, _RESTART = 0, 1  # purposes of random draws


class QuantizerOutput(NamedTuple):
    """Result of `VectorQuantizer.forward`."""

    z_q_BDhw: Tensor  # float32 codes; the gradient passes straight through to the encoder output
    tokens_Bhw: Tensor  # int64, 0 <= token < K
    commitment: Tensor  # scalar: mean squared difference of encoder output and (constant) code


class VectorQuantizer(nn.Module):
    """Codebook learned by moving averages, with k-means start and restart of dead codes.

    Args:
        cfg: number, width and update rules of the codes. With `l2_normalize` encoder outputs and codes are unit vectors (cosine
            similarity, arXiv 2110.04627).
        all_reduce: sum of a tensor over ranks.
        broadcast: rank 0's tensor.
        gather: tensors of all ranks concatenated in rank order along the first axis; results do not depend on the number of ranks
            if that is also the order within the global batch.
        seed: of the k-means start and of restarts.
    """

    codebook_KD: Tensor
    ema_counts_K: Tensor
    ema_sums_KD: Tensor
    idle_steps_K: Tensor
    histogram_K: Tensor
    initialized: Tensor
    updates: Tensor

    def __init__(
        self,
        cfg: config.Quantizer,
        *,
        all_reduce: Collective = identity,
        broadcast: Collective = identity,
        gather: Collective = identity,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.codes, self.dim = cfg.codes, cfg.dim
        self.decay, self.l2_normalize = cfg.decay, cfg.l2_normalize
        self.restart_after, self.kmeans_iters = cfg.restart_after, cfg.kmeans_iters
        self.seed = seed
        self.all_reduce, self.broadcast, self.gather = all_reduce, broadcast, gather

        # A placeholder: the first training batch replaces it.
        codebook_KD = self._project(torch.randn(cfg.codes, cfg.dim))
        self.register_buffer("codebook_KD", codebook_KD)
        self.register_buffer("ema_counts_K", torch.ones(cfg.codes))
        self.register_buffer("ema_sums_KD", codebook_KD.clone())
        self.register_buffer("idle_steps_K", torch.zeros(cfg.codes, dtype=torch.int64))
        self.register_buffer("histogram_K", torch.zeros(cfg.codes, dtype=torch.int64))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("updates", torch.tensor(0))

        self._started = False  # on the host, since reading `initialized` waits for the device
        # This rank's part of the step. Not buffers, since those are in the state and equal on all ranks.
        self._counts_K: Tensor | None = None
        self._sums_KD: Tensor | None = None
        self._vectors: list[Tensor] = []

    def forward(self, z_BDhw: Tensor) -> QuantizerOutput:
        """Quantize; in training mode also initialise the codebook (first call) and collect statistics for `update`."""
        B, D, h, w = z_BDhw.shape
        with torch.autocast(z_BDhw.device.type, enabled=False):
            z_ND = self._flatten(z_BDhw)
            if self.training and not self._started:
                if not self.initialized:
                    self._start(z_ND.detach())
                self._started = True
            tokens_N = nearest(z_ND.detach(), self.codebook_KD)
            code_ND = self.codebook_KD[tokens_N]
            commitment = F.mse_loss(z_ND, code_ND)
            z_q_ND = z_ND + (code_ND - z_ND).detach()
            if self.training:
                self._collect(z_ND.detach(), tokens_N)
        return QuantizerOutput(z_q_ND.view(B, h, w, D).permute(0, 3, 1, 2), tokens_N.view(B, h, w), commitment)

    @torch.no_grad()
    def encode(self, z_BDhw: Tensor) -> Tensor:
        """Tokens (int64, Bhw) of encoder outputs; changes no state."""
        B, _, h, w = z_BDhw.shape
        with torch.autocast(z_BDhw.device.type, enabled=False):
            return nearest(self._flatten(z_BDhw), self.codebook_KD).view(B, h, w)

    def lookup(self, tokens_Bhw: Tensor) -> Tensor:
        """Codes (float32, BDhw) of tokens."""
        return F.embedding(tokens_Bhw, self.codebook_KD).permute(0, 3, 1, 2)

    @torch.no_grad()
    def update(self) -> None:
        """Update the codebook by the statistics of all ranks since the last call; a collective operation."""
        if self._counts_K is None or self._sums_KD is None:
            return
        counts_K = self.all_reduce(self._counts_K)
        sums_KD = self.all_reduce(self._sums_KD)
        self.histogram_K += counts_K
        self.ema_counts_K.lerp_(counts_K.float(), 1 - self.decay)
        self.ema_sums_KD.lerp_(sums_KD, 1 - self.decay)
        total = self.ema_counts_K.sum()
        smoothed_K = (self.ema_counts_K + _SMOOTHING) / (total + self.codes * _SMOOTHING) * total
        self.codebook_KD.copy_(self._project(self.ema_sums_KD / smoothed_K[:, None]))

        self.idle_steps_K += 1
        self.idle_steps_K[counts_K > 0] = 0
        if self.restart_after:
            self._restart()
        self.updates += 1
        self._counts_K, self._sums_KD, self._vectors = None, None, []

    @torch.no_grad()
    def epoch_usage(self) -> tuple[float, float]:
        """Share of codes used and perplexity exp(entropy) of all ranks' tokens since the last call; starts a new count."""
        usage = usage_and_perplexity(self.histogram_K)
        self.histogram_K.zero_()
        return usage

    def _flatten(self, z_BDhw: Tensor) -> Tensor:
        return self._project(z_BDhw.permute(0, 2, 3, 1).reshape(-1, self.dim).float())

    def _project(self, x_ND: Tensor) -> Tensor:
        return F.normalize(x_ND, dim=1) if self.l2_normalize else x_ND

    def _collect(self, z_ND: Tensor, tokens_N: Tensor) -> None:
        if self._counts_K is None or self._sums_KD is None:
            self._counts_K, self._sums_KD = torch.zeros_like(self.histogram_K), torch.zeros_like(self.ema_sums_KD)
        self._counts_K.index_add_(0, tokens_N, torch.ones_like(tokens_N))  # bincount waits for the device
        self._sums_KD.index_add_(0, tokens_N, z_ND)
        if self.restart_after:
            self._vectors.append(z_ND)

    @torch.no_grad()
    def _start(self, z_ND: Tensor) -> None:
        """Initialise by k-means over the vectors of all ranks. Every rank computes it; rank 0's result is used."""
        z_ND = self.gather(z_ND)
        rng = np.random.default_rng([self.seed, 0, _INIT])
        # With fewer vectors than codes some codes are equal; all but one of them stay unused until they are restarted.
        picks = np.resize(rng.permutation(len(z_ND)), self.codes)
        codebook_KD = z_ND[torch.from_numpy(picks).to(z_ND.device)]
        for _ in range(self.kmeans_iters):
            counts_K, sums_KD = self._cluster(z_ND, codebook_KD)
            means_KD = self._project(sums_KD / counts_K.clamp(min=1)[:, None])
            codebook_KD = torch.where(counts_K[:, None] > 0, means_KD, codebook_KD)
        counts_K, _ = self._cluster(z_ND, codebook_KD)
        self.codebook_KD.copy_(self.broadcast(codebook_KD))
        self.ema_counts_K.copy_(self.broadcast(counts_K.clamp(min=1)))
        self.ema_sums_KD.copy_(self.codebook_KD * self.ema_counts_K[:, None])
        self.initialized.fill_(True)

    def _cluster(self, z_ND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
        tokens_N = nearest(z_ND, codebook_KD)
        counts_K = torch.bincount(tokens_N, minlength=self.codes).float()
        return counts_K, torch.zeros_like(codebook_KD).index_add_(0, tokens_N, z_ND)

    def _restart(self) -> None:
        """Set codes that were unused for `restart_after` steps to random encoder outputs of this step."""
        dead = (self.idle_steps_K >= self.restart_after).nonzero().flatten()
        if len(dead) == 0:
            return  # on all ranks or on none, since the state is global
        z_ND = self.gather(torch.cat(self._vectors))
        rng = np.random.default_rng([self.seed, int(self.updates), _RESTART])
        picks = rng.permutation(len(z_ND))[: len(dead)]
        dead = dead[: len(picks)]
        code_nD = self.broadcast(z_ND[torch.from_numpy(picks).to(z_ND.device)])
        self.codebook_KD[dead] = code_nD
        self.ema_counts_K[dead] = 1.0
        self.ema_sums_KD[dead] = code_nD
        self.idle_steps_K[dead] = 0


def usage_and_perplexity(histogram_K: Tensor | np.ndarray) -> tuple[float, float]:
    """Share of the codes that occur, and perplexity exp(entropy) of their distribution, from counts; 0 for both if all are 0."""
    counts_K = torch.as_tensor(histogram_K).double()
    p_K = counts_K / counts_K.sum().clamp_min(1)
    return float((counts_K > 0).double().mean()), float(torch.special.entr(p_K).sum().exp()) if counts_K.any() else 0.0


def nearest(x_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index (int64) of the code at the least Euclidean distance; the lowest index of a tie."""
    square_K = codebook_KD.square().sum(1)
    rows = max(1, _CHUNK // len(codebook_KD))
    # |x - c|^2 without |x|^2, which is the same for all codes
    parts = [torch.addmm(square_K, x_nD, codebook_KD.T, alpha=-2).argmin(1) for x_nD in torch.split(x_ND, rows)]
    return torch.cat(parts)
