"""The cost of a network: FLOPs and memory by counting, seconds by running it.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from peco.core import config
from peco.core.errors import PecoError
from peco.data import views
from peco.data.images import open_picture
from peco.plan.networks import Network

COUNTED = 2  # images
ENOUGH_SECONDS = 0.4  # of repetitions
BATCH_FLOPS = 4e11  # of a measured batch, at most, unless an image has more
PROCESS_BYTES = 0.6e9  # Python, torch and the other packages
STATE_COPIES = 4  # weights, gradients and AdamW's two moments, all float32
# Peak of dense matrix products in FLOP/s: bf16 with float32 sums, and float32, from the makers' data sheets.
GPUS: Mapping[str, Mapping[str, float]] = {
    "A10": {"bf16": 125e12, "fp32": 31.2e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "L4": {"bf16": 121e12, "fp32": 30.3e12},
    "L40S": {"bf16": 362e12, "fp32": 91.6e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "B200": {"bf16": 2250e12, "fp32": 75e12},
}
UTILIZATION = 0.5  # of the peak, which a well-fed training of a vision transformer reaches


@dataclass(frozen=True)
class Cost:
    """Cost of an image.

    Attributes:
        flops: of its forward pass, and of its backward pass if the network is trained; an addition and a multiplication are two.
        activations: bytes that are kept for the backward pass.
        parameters: of the network.
        trained: of these, those that are trained.
    """

    flops: float
    activations: float
    parameters: int
    trained: int


def count(network: Network) -> Cost:
    """Count on the device `meta`: nothing is computed, and no memory is used."""
    with torch.device("meta"):
        step = network.build().train(network.trains)
    (flops, fewer), (_, more) = (_count(step, network, images) for images in (COUNTED, 2 * COUNTED))
    trained = sum(p.numel() for p in step.parameters() if p.requires_grad)
    # The difference leaves out what doesn't grow with the images, such as weights.
    return Cost(flops / COUNTED, (more - fewer) / COUNTED, sum(p.numel() for p in step.parameters()), trained)


def _count(step: nn.Module, network: Network, images: int) -> tuple[float, float]:
    """FLOPs of a batch, and bytes that are kept for its backward pass."""
    kept: dict[int, Tensor] = {}  # held, so that no id is used again

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor)] = tensor
        return tensor

    x_BCHW = torch.empty(images, 3, network.size, network.size, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(network.trains), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        value = step(x_BCHW)
        if network.trains:
            value.backward()
    return counter.get_total_flops(), sum(t.numel() * t.element_size() for t in kept.values())


def memory(cost: Cost, batch: int, *, trains: bool) -> float:
    """Bytes of a process that computes batches of this size."""
    if not trains:
        return PROCESS_BYTES + 4 * cost.parameters
    return PROCESS_BYTES + 4 * (cost.parameters + (STATE_COPIES - 1) * cost.trained) + batch * cost.activations


def seconds_per_image(network: Network, cost: Cost, batch: int, device: torch.device) -> float:
    """Run batches on this machine, in float32, and take the fastest one.

    Args:
        network: is built with random weights.
        cost: its cost.
        batch: images of a step, on one process; smaller ones are run where a step takes long.
        device: to run on.

    Raises:
        PecoError: the memory of this machine is too small for one image.
    """
    need, free = memory(cost, 1, trains=network.trains), os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cpu" and need > free:
        raise PecoError(
            f"memory: a training of this preset needs {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free; "
            "`make plan GPU=H100` counts without computing"
        )
    size = max(1, min(batch, int(BATCH_FLOPS / max(cost.flops, 1))))
    with torch.random.fork_rng(), torch.device(device):
        step = network.build().train(network.trains)
        x_BCHW = torch.rand(size, 3, network.size, network.size)
        optimizer = (
            torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], fused=True) if network.trains else None
        )
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < ENOUGH_SECONDS:
        start = time.perf_counter()
        with torch.set_grad_enabled(network.trains):
            value = step(x_BCHW)
        if optimizer is not None:
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        float(value.detach())  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return best / size


def seconds_of_view(encoded: tuple[bytes, ...], distribution: config.ViewDistribution | None, size: int) -> float:
    """Time to decode an image and make a view of it, the centre without a distribution; 0 without images."""
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for data in encoded:
        with contextlib.suppress(PecoError):  # the stage `shards` counts it
            image = open_picture(data)
            if distribution is None:
                view = views.center(image.width, image.height)
            else:
                view = views.draw(rng, distribution, image.width, image.height)
            views.apply(image, view, size)
    return (time.perf_counter() - began) / max(1, len(encoded))
