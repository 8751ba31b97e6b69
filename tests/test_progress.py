"""Progress lines: one now and then of long work, none of short work, none of the other processes of a job."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from peco.core import config, progress
from peco.core.progress import ProgressLines, tracked, waiting
from peco.probes.knn import probe_knn
from peco.probes.linear import probe_linear

LABELS = torch.arange(24) % 2
FEATURES = {name: torch.randn(24, 3, generator=torch.Generator().manual_seed(seed)) for seed, name in enumerate("12")}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock by seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_a_line_every_ten_seconds(clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    for batch in tracked([[0] * 8] * 5, "features of val", 36, size=len):
        clock(6)
        assert len(batch) == 8
    assert capsys.readouterr().out == "features of val  16/36 images\nfeatures of val  32/36 images\n"
    lines = ProgressLines("linear probe", "fits")
    clock(11)
    lines(3, 13, "evaluation 20 of the loss")
    lines(4)
    assert capsys.readouterr().out == "linear probe  3/13 fits  evaluation 20 of the loss\n"


def test_a_count_never_passes_its_total(clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in tracked(range(2), "scoring", 5, size=lambda _: 4):
        clock(11)
    assert capsys.readouterr().out == "scoring  4/5 images\nscoring  5/5 images\n"


def test_only_rank_0_prints(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for _ in tracked(range(2), "scoring"):
        clock(11)
    with waiting("reading"):
        pass
    assert capsys.readouterr().out == ""


def test_a_block_that_cannot_count_shows_how_long_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, before = threading.Event(), threading.enumerate()
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    monkeypatch.setattr(progress, "print", lambda line, flush: (print(line), printed.set()), raising=False)
    with waiting("photos: listing the files"):
        assert printed.wait(30)
    assert capsys.readouterr().out.startswith("photos: listing the files  0 s\n")
    with waiting("photos: listing the files"):
        pass
    assert set(threading.enumerate()) <= set(before)


def test_probes_show_their_fits_and_searches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0)
    data = (FEATURES, LABELS)
    probe_linear(data, data, config.Linear(l2=(0.1, 0.01), max_iter=3), 0.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "linear probe  0/5 fits  evaluation 1 of the loss"
    assert {line.split("  ")[1] for line in lines} == {f"{n}/5 fits" for n in range(5)}
    probe_knn(data, data, config.Knn(neighbors=(1,), temperature=0.1), 0.25)
    assert capsys.readouterr().out.splitlines() == [
        f"kNN  {n}/3 searches  query 0/{6 if n < 2 else 24}" for n in range(3)
    ]
