"""`compile: true`: torch.compile changes the speed of a training, but not its results, checkpoints or resumption."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import OPTIM, STEPS, Crash, Toy, assert_close, assert_same, run
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from peco.training import checkpoint

COMPILED = replace(OPTIM, compile=True)


def _has_compiler() -> bool:
    try:
        return shutil.which(get_cpp_compiler()) is not None
    except InvalidCxxCompiler:
        return False


pytestmark = pytest.mark.skipif(
    not _has_compiler(), reason="torch.compile on the CPU needs a C++ compiler, such as g++"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compile cache for these tests only; fail if nothing was compiled."""
    folder = tmp_path_factory.getbasetemp() / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    yield
    torch.compiler.reset()
    assert any(folder.rglob("*.so")), "nothing was compiled"


class Dying(Toy):
    """Ends outside of compiled code, as a killed process does."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def after_step(self, step: int, total: int) -> None:
        super().after_step(step, total)
        if step == self.at:
            raise Crash


def losses(result: dict[str, Any]) -> list[float]:
    rows = result["files"]["out/plots/loss.tsv"].decode().splitlines()[1:]
    return [float(row.split("\t")[1]) for row in rows]


def test_losses_and_weights_are_those_of_eager_training_to_rounding(tmp_path: Path) -> None:
    eager = run(Toy(dropout=0), tmp_path / "eager")
    compiled = run(Toy(dropout=0), tmp_path / "compiled", COMPILED)
    assert len(losses(compiled)) == STEPS
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)
    assert_close(eager["task"], compiled["task"])


def test_checkpoints_name_tensors_as_the_task_does(tmp_path: Path) -> None:
    """Eager and compiled trainings, and models loaded without a compiler, share one format."""
    run(Toy(), tmp_path, COMPILED)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state is not None
    assert state["task"].keys() == Toy().state_dict().keys()
    assert not any("_orig_mod" in name for part in ("task", "ema") for name in state[part])


def test_a_killed_training_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(Toy(), tmp_path / "straight", COMPILED)
    monkeypatch.setenv("PECO_CHECKPOINT_STEPS", "3")
    with pytest.raises(Crash):
        run(Dying(8), tmp_path / "killed", COMPILED)
    assert_same(straight, run(Toy(), tmp_path / "killed", COMPILED))
