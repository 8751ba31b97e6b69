"""The one training loop.

A stage describes networks and loss as a `Task`; `train` runs it to the end, on one process or many, and resumes from the checkpoint
of an interrupted run. Stopped at any step and run again with the same number of processes, a training on the CPU ends in the same
bits as one that was never stopped: batches are functions of the step, all random numbers of (seed, step, rank), and everything else
is in the checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peco.core.config import Optim
from peco.core.device import computes_bf16, plain_attention
from peco.core.errors import Interrupted, PecoError
from peco.core.stopping import StopSignals
from peco.training import checkpoint
from peco.training.distributed import Dist, parallel
from peco.training.metrics import MetricLog
from peco.training.optim import Ema, lr_at, param_groups
from peco.training.progress import Progress

Batch = dict[str, Tensor]
T = TypeVar("T")
MAX_CURVE_POINTS = 200
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Task(nn.Module):
    """A training task: networks, loss and further work in a step.

    Everything that a later step depends on must be a parameter or a persistent buffer, and buffers must be equal on all ranks after
    `after_step` (statistics summed over the ranks): on resume all ranks get those of rank 0. Every trainable parameter must take
    part in every loss; frozen ones have `requires_grad` False.
    """

    def forward(self, batch: Batch, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            batch: this rank's samples, or a chunk of them; tensors with leading dimension B on the task's device.
            step: optimizer step, from 0.
            total: optimizer steps of the whole training.

        Returns:
            The mean loss over the batch (0-dim), and further detached 0-dim scalars to log by name, the same names every time.
            `loss`, `lr` and `grad_norm` are taken by the loop.
        """
        raise NotImplementedError

    def after_step(self, step: int, total: int) -> None:
        """Run after each optimizer step, on all ranks."""

    def epoch_metrics(self) -> dict[str, float]:
        """Return and reset the metrics collected since the last call: at the end of each epoch, on all ranks, equal on all."""
        return {}

    def param_groups(self, optim: Optim) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; `lr_scale` in a group multiplies its learning rate."""
        return param_groups(self, optim)


class Frozen(Generic[T]):
    """Holds a module that a task uses but does not train, so that it is not in the task's state dict and parameters."""

    def __init__(self, value: T) -> None:
        self.value = value


class Loader(Protocol):
    """Source of training batches, such as `peco.data.loader.TrainLoader`."""

    @property
    def samples(self) -> int:
        """Number of samples in an epoch."""

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Iterate over this rank's part of the batches of the steps [start_step, stop_step), on its device."""


def train(task: Task, loader: Loader, *, name: str, optim: Optim, seed: int, dist: Dist, work: Path) -> MetricLog:
    """Train `task` in place, from the checkpoint in `work` if there is one.

    A checkpoint is written when `CheckpointSchedule` has one due, on SIGTERM or SIGINT, and after the last step. With `optim.ema`
    the task has the averaged parameters at the end.

    Args:
        task: is moved to `dist.device` and set to training mode.
        loader: the data.
        name: of the training, in messages and metrics.
        optim: recipe; `batch_size` is that of all ranks together.
        seed: of the random numbers drawn in a step.
        dist: this process.
        work: folder of checkpoint and curves, shared by all ranks.

    Returns:
        The log of loss, gradient norm, learning rate and the task's scalars (means over windows of steps) and of the epoch metrics.
        The caller publishes and closes it.

    Raises:
        PecoError: the batch doesn't divide, the checkpoint is of another model, the disk is full, or the training diverged.
        Interrupted: a stop signal came; the checkpoint is written.
    """
    if optim.batch_size % (dist.world * optim.accumulate):
        raise PecoError(
            f"optim.batch_size: {optim.batch_size} is not allowed; expected a multiple of "
            f"{dist.world} processes x {optim.accumulate} accumulated parts (optim.accumulate)"
        )
    if optim.precision == "bf16" and dist.rank == 0 and not computes_bf16(dist.device):
        print(f"{name}  warning: no bf16 arithmetic here, many times slower than optim.precision fp32", flush=True)
    work.mkdir(parents=True, exist_ok=True)
    logs = MetricLog(name, work / "curves", dist)
    try:
        run = _Training(task, name, loader.samples, optim, seed, dist, work / "checkpoint.pt", logs)
        run.resume()
        with StopSignals(signals=STOP_SIGNALS, even_ignored=STOP_SIGNALS) as stop:
            run.loop(loader, stop)
            if stop.first is not None:  # it came after the flags of the last step were shared
                raise Interrupted(f"{name}: stopped after the last step; run it again to resume")
    except BaseException as error:
        logs.close(error)
        raise
    if run.ema:
        task.load_state_dict(run.ema.averaged(task))
    return logs


class _Training:
    """State of a training: the content of its checkpoint, and the step that changes it."""

    def __init__(
        self, task: Task, name: str, samples: int, optim: Optim, seed: int, dist: Dist, path: Path, logs: MetricLog
    ) -> None:
        self.task, self.name, self.samples, self.optim, self.seed = task, name, samples, optim, seed
        self.dist, self.path, self.logs = dist, path, logs
        self.total = optim.steps(samples)
        self.warmup = round(optim.warmup_epochs * samples / optim.batch_size)
        self.window = -(-self.total // MAX_CURVE_POINTS)
        self.schedule = checkpoint.CheckpointSchedule()
        task.to(dist.device).train()
        if dist.device.type == "cpu":
            plain_attention(task)
        self.optimizer = torch.optim.AdamW(
            task.param_groups(optim), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema = Ema(task, optim.ema) if optim.ema is not None else None
        self.step = 0
        self.restarts = 0
        self.sums: dict[str, float] = {}  # of the values in the current window of steps

    def resume(self) -> None:
        """Load the checkpoint, if there is one."""
        state = checkpoint.load(self.path) if self.dist.rank == 0 else None
        step = int(self.dist.broadcast(torch.tensor(state["step"] if state else 0, device=self.dist.device)))
        if step and state is None:
            state = checkpoint.load(self.path)
            if state is None or state["step"] != step:
                raise PecoError(
                    f"{self.path}: rank {self.dist.rank} doesn't see rank 0's checkpoint; all nodes must share the work folder"
                )
        if state is None:
            return
        checkpoint.load_into(self.task, state["task"], self.path)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.logs.load_state_dict(state["logs"])
        self.step, self.sums, self.restarts = step, state["sums"], state["restarts"] + 1
        if self.dist.rank == 0:
            print(f"{self.name}  resumes from step {step}/{self.total}", flush=True)

    def save(self) -> None:
        began = time.monotonic()
        if self.dist.rank == 0:
            state = {
                "step": self.step,
                "task": self.task.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "logs": self.logs.state_dict(),
                "sums": self.sums,
                "restarts": self.restarts,
            }
            checkpoint.save(self.path, state)
        self.schedule.saved(time.monotonic() - began)
        self.logs.exporter.saved()

    def loop(self, loader: Loader, stop: StopSignals) -> None:
        dist, total = self.dist, self.total
        model = self._model()
        progress = Progress(
            self.name, self.step, total, self.optim.batch_size, self.logs.exporter, visible=dist.rank == 0
        )
        self.logs.exporter.set(
            {"restarts": self.restarts, "steps_done": self.step, "steps_planned": total, "nonfinite_steps": 0}
        )
        batches = loader.batches(self.step, total)
        try:
            while self.step < total:
                began = time.monotonic()
                batch = next(batches)
                wait = time.monotonic() - began
                values, stopping, due = self._step(model, batch, stop)
                self._log(values)
                progress.update(self.step, values, wait)
                if due or stopping or self.step == total:
                    self.save()
                if stopping:
                    dist.barrier()  # a launcher may end all ranks as soon as one leaves: not before rank 0 has saved
                    raise Interrupted(f"{self.name}: stopped at step {self.step} of {total}; run it again to resume")
        finally:
            progress.close()

    def _model(self) -> nn.Module:
        if self.optim.compile:
            self.task.compile()
        if self.dist.world == 1 or self.step == self.total:
            return self.task
        return parallel(self.task, self.dist)

    def _step(self, model: nn.Module, batch: Batch, stop: StopSignals) -> tuple[dict[str, float], bool, bool]:
        """Do one optimizer step. Returns its values, and two flags: a rank has a stop signal, a checkpoint is due."""
        step, total, optim = self.step, self.total, self.optim
        seed_generators(self.seed, step, self.dist.rank)
        names, local = self._gradients(model, batch)
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        # One collective and one wait for the device a step: flags and values together, the same on every rank afterwards.
        due = self.dist.rank == 0 and self.schedule.due(step + 1)  # rank 0 alone measures the time to save
        flags = torch.tensor([stop.first is not None, due], dtype=torch.float64).to(self.dist.device)
        shared = self.dist.all_reduce_sum(torch.cat([flags, norm.double()[None], local])).tolist()
        lr = lr_at(step, total, self.warmup, optim.lr, optim.min_lr)
        means = (total_value / self.dist.world for total_value in shared[2:])
        values = {"lr": lr, **dict(zip(["grad_norm", "loss", *names], means, strict=True))}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self.logs.exporter.failing({**values, "nonfinite_steps": 1})
            # Rank 0 may wait for a scrape, and a launcher may end all ranks as soon as one leaves.
            self.dist.barrier()
            raise PecoError(self._diverged(values))
        if optim.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.params, optim.clip_grad, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(step)
        self.task.after_step(step, total)
        self.step += 1
        return values, shared[0] > 0, shared[1] > 0

    def _gradients(self, model: nn.Module, batch: Batch) -> tuple[list[str], Tensor]:
        """Compute the gradients of the mean loss over the local batch.

        Returns:
            Names of the scalars; loss and scalars as one float64 tensor.
        """
        parts = self.optim.accumulate
        chunks = [
            dict(zip(batch, values, strict=True))
            for values in zip(*(v.chunk(parts) for v in batch.values()), strict=True)
        ]
        sums: list[Tensor] = []
        names: list[str] = []
        for number, chunk in enumerate(chunks, start=1):
            silent = isinstance(model, DistributedDataParallel) and number < parts
            with model.no_sync() if silent else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(self.dist.device.type, torch.bfloat16, enabled=self.optim.precision == "bf16"):
                    loss, scalars = model(chunk, self.step, self.total)
                (loss / parts).backward()
            names = list(scalars)
            sums.append(torch.stack([value.detach().double() for value in (loss, *scalars.values())]))
        return names, torch.stack(sums).mean(0)

    def _diverged(self, values: dict[str, float]) -> str:
        """Error message of a training that is no longer finite."""
        precision = " or use optim.precision fp32" if self.optim.precision == "bf16" else ""
        return (
            f"{self.name}: not finite at step {self.step + 1} of {self.total} (loss {values['loss']:g}, gradient norm "
            f"{values['grad_norm']:g}): lower optim.lr ({self.optim.lr:g}){precision}; the last good checkpoint is kept"
        )

    def _log(self, values: dict[str, float]) -> None:
        """Log the means of each window of steps (windows don't depend on where a run stopped), and the metrics of each epoch."""
        done, last = self.step, self.step == self.total
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if done % self.window == 0 or last:
            steps = done % self.window or self.window
            self.logs.log(done, {name: value / steps for name, value in self.sums.items()})
            self.sums = {}
        position = done * self.optim.batch_size
        if last or position // self.samples > (position - self.optim.batch_size) // self.samples:
            self.logs.log(done, self.task.epoch_metrics())


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Seed the global generators of torch, numpy and Python (timm's mixup draws from numpy's) for one step of one rank."""
    word = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    torch.default_generator.manual_seed(word)  # torch.manual_seed costs a millisecond if CUDA isn't in use
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(word)
    np.random.seed(word)
    random.seed(word)
