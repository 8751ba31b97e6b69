"""A step of pre-training waits for the device once: for the values that the loop reads together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from peco.core.params import parse_params
from peco.mim.model import MaskedImageModel, build_backbone
from peco.stages.pretrain import PixelTask, TokenTask
from peco.training.distributed import Dist
from peco.training.loop import Task, train
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("smoke", []))
SIZE, GRID, MASKED = CFG.loader.image_size, CFG.tokenizer.grid, CFG.pretrain.masking.count
CODES = CFG.tokenizer.quantizer.codes
BATCH = 4
# Operations whose result decides what the host does next, or how large another tensor is.
WAITS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "bincount",
}


class CountWaits(TorchDispatchMode):
    """Counts the operations for which a GPU's host would have to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index_put_impl")) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name in WAITS or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Batches:
    """Images, masked patches and tokens at random."""

    samples = 8 * BATCH

    def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, Tensor]]:
        for _ in range(start_step, stop_step):
            masked_BM = torch.rand(BATCH, GRID**2).argsort(1)[:, :MASKED]
            yield {
                "image": torch.rand(BATCH, 3, SIZE, SIZE),
                "masked": masked_BM,
                "tokens": torch.randint(CODES, (BATCH, GRID**2)),
            }


def waits(task: Task, steps: int, work: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Waits of a training of so many steps."""
    optim = dataclasses.replace(CFG.pretrain.optim, batch_size=BATCH, epochs=steps / 8, warmup_epochs=0.0)
    count = CountWaits()
    read = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        count.found["tolist"] += 1
        return read(tensor)

    with monkeypatch.context() as patch, count:
        patch.setattr(Tensor, "tolist", tolist)
        train(task, Batches(), name="test", optim=optim, seed=0, dist=Dist(), work=work).close()
    return count.found


@pytest.mark.parametrize("target", ["tokens", "pixels"])
def test_a_step_of_pre_training_waits_once(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def task() -> Task:
        backbone, _, _ = build_backbone(CFG.pretrain.vit, SIZE, CFG.pretrain.layer_scale, 0.1)
        if target == "pixels":
            patch = CFG.pretrain.vit.patch_size
            return PixelTask(MaskedImageModel(backbone, 3 * patch**2), patch)
        return TokenTask(MaskedImageModel(backbone, CODES), None)

    # What a training does once cancels out in the difference.
    more, fewer = (waits(task(), steps, tmp_path / str(steps), monkeypatch) for steps in (7, 4))
    more.subtract(fewer)
    assert {name: number for name, number in more.items() if number} == {"tolist": 3}


def test_waits_are_seen() -> None:
    with CountWaits() as count:
        x = torch.rand(4)
        x[x > 0.5].sum().item()
        x[x > 0.5] = 1.0
    assert count.found == {"index": 1, "index_put_": 1, "_local_scalar_dense": 1}
