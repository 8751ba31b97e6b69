"""The processes of a training job, and the collectives that models receive as callables.

A job of one process needs no process group: every collective is then the identity. Collectives wait for all ranks, so each rank has
to make the same calls in the same order.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peco.core.device import select_device
from peco.core.ranks import ranks

# Rank 0 may do long work alone (writing a model, scoring it) while the others wait.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Dist:
    """This process among those of the job.

    Attributes:
        rank: number of this process, 0 to world - 1.
        world: number of processes.
        local_rank: number of this process on its machine.
        device: device of its tensors; collectives take and return tensors on it.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def init(cls) -> Dist:
        """Join the job that torchrun describes (`peco.core.ranks`); one process without torchrun.

        Uses `cuda:local_rank` and nccl if CUDA is available and PECO_DEVICE is not `cpu`, else the CPU and gloo.

        Raises:
            PecoError: there are fewer GPUs than processes on this machine, or PECO_DEVICE names a device that isn't there.
        """
        place = ranks()
        device = select_device(place.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if place.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        return cls(place.rank, place.world, place.local_rank, device)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, same shape and dtype; no gradient."""
        total = tensor.detach()
        if self.world > 1:
            total = total.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
        return total

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Tensors of all ranks, which must have one shape, concatenated along dimension 0 in rank order; no gradient."""
        local = tensor.detach()
        if self.world == 1:
            return local
        parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    def mean_with_grad(self, tensor: Tensor) -> Tensor:
        """Mean over the ranks, differentiable.

        Each rank gets the gradient of the sum of all ranks' losses with respect to its own `tensor`. DistributedDataParallel
        averages parameter gradients over the ranks, which makes them the gradient of the mean loss.
        """
        if self.world == 1:
            return tensor
        return cast(Tensor, _Mean.apply(tensor, self))

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on every rank; no gradient. All ranks pass the same shape and dtype."""
        received = tensor.detach()
        if self.world > 1:
            received = received.clone(memory_format=torch.contiguous_format)
            dist.broadcast(received, src=0)
        return received

    def share(self, data: bytes) -> bytes:
        """Rank 0's bytes on every rank; all ranks pass the same number of bytes."""
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return bytes(self.broadcast(tensor.to(self.device)).tolist())

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.world > 1:
            dist.barrier(device_ids=[self.local_rank] if self.device.type == "cuda" else None)

    def close(self) -> None:
        """Leave the job."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Dist) -> Tensor:
        ctx.group = group
        return group.all_reduce_sum(tensor) / group.world

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Every rank's output depends on this rank's input with the factor 1 / world.
        return ctx.group.all_reduce_sum(grads[0]) / ctx.group.world, None


def parallel(module: nn.Module, group: Dist) -> nn.Module:
    """DistributedDataParallel around `module`, which lives on the group's device.

    Parameters and buffers start as rank 0's. From then on gradients are averaged; the module keeps its buffers equal itself.
    """
    cuda = group.device.type == "cuda"
    for buffer in module.buffers():
        buffer.copy_(group.broadcast(buffer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the new name of broadcast_buffers came after torch 2.9
        model = DistributedDataParallel(
            module,
            device_ids=[group.device] if cuda else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    if not cuda:
        model.register_comm_hook(group, lambda group, bucket: _mean_in_rank_order(group, bucket.buffer()))
    return model


def _mean_in_rank_order(group: Dist, grads: Tensor) -> torch.futures.Future[Tensor]:
    """Mean of a bucket of gradients, each element added up in the order of ranks: DDP's communication hook for the CPU.

    DDP rebuilds its buckets after the first step of a process, and the order in which gloo adds depends on an element's place in
    its bucket: with three ranks or more, a resumed training would differ in the last bits.
    """
    parts = [torch.empty_like(grads) for _ in range(group.world)]
    dist.all_gather(parts, grads)
    for part in parts[1:]:
        parts[0] += part
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(parts[0] / group.world)
    return future
