"""Compute devices: `cuda` if there is a GPU and PECO_DEVICE is not `cpu`, else the CPU."""

from __future__ import annotations

import torch
from torch import nn

from peco.core.environment import DEVICE
from peco.core.errors import PecoError

CPU = torch.device("cpu")


def uses_cuda() -> bool:
    """True if this process computes on a GPU.

    Raises:
        PecoError: PECO_DEVICE is neither `cpu` nor `cuda`.
    """
    name = DEVICE.text() or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise PecoError(f"PECO_DEVICE: {name!r} is not allowed; expected cpu or cuda")
    return name == "cuda"


def computes_bf16(device: torch.device) -> bool:
    """False for a GPU or CPU without fast products of bf16 numbers, where bf16 is many times slower than fp32.

    A CPU counts by its vectors (AVX-512, SVE), since torch multiplies bf16 with these even where there is no instruction for it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))


def select_device(local_rank: int = 0) -> torch.device:
    """The device of process `local_rank` of this machine.

    Raises:
        PecoError: there are fewer GPUs than processes, or PECO_DEVICE names a device that isn't there.
    """
    if not uses_cuda():
        return CPU
    if local_rank >= torch.cuda.device_count():
        raise PecoError(
            f"process {local_rank} of this machine has no GPU ({torch.cuda.device_count()} found): "
            "start at most one process per GPU, or set PECO_DEVICE=cpu"
        )
    return torch.device("cuda", local_rank)


def plain_attention(model: nn.Module) -> None:
    """Let layers with a relative position bias attend by plain matrix products from now on, for training on the CPU.

    PyTorch's fused attention has no gradient of the bias there. What it does instead takes longer: it looks for rows that are
    masked as a whole.
    """
    for layer in model.modules():
        if getattr(layer, "relative_position_bias_table", None) is not None and hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # type: ignore[assignment]
