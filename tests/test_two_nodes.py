"""A real training stage with one process, two processes, two nodes: the same training; and with a killed process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from prepared import launch, prepare, processes, running, wait_for

STEPS = 30
ONE, TWO_PROCESSES, TWO_NODES = (
    {"PECO_NODES": nodes, "PECO_NPROC": processes} for nodes, processes in (("1", "1"), ("1", "2"), ("2", "1"))
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("two") / "prepared", steps=STEPS)


def run(prepared: Path, name: str, env: dict[str, str]) -> Path:
    folder = Path(shutil.copytree(prepared, prepared.parent / name))
    status, _, err = launch(folder, **env)
    assert (status, err) == (0, "")
    return folder


@pytest.fixture(scope="module")
def one(prepared: Path) -> Path:
    return run(prepared, "1x1", ONE)


@pytest.fixture(scope="module")
def two_processes(prepared: Path) -> Path:
    return run(prepared, "1x2", TWO_PROCESSES)


@pytest.fixture(scope="module")
def two_nodes(prepared: Path) -> Path:
    return run(prepared, "2x1", TWO_NODES)


def curve(folder: Path, name: str) -> list[float]:
    rows = (folder / f"metrics/plots/tokenizer/{name}.tsv").read_text().splitlines()[1:]
    return [float(row.split("\t")[1]) for row in rows]


def results(folder: Path) -> dict[str, bytes]:
    """All published files of the stage."""
    parts = [folder / "artifacts/tokenizer", folder / "metrics"]
    return {str(p.relative_to(folder)): p.read_bytes() for part in parts for p in part.rglob("*") if p.is_file()}


def test_two_processes_and_two_nodes_train_as_one_process(one: Path, two_processes: Path, two_nodes: Path) -> None:
    """Equal batches give equal losses up to the order of sums, which matters more once it moves a vector to another code."""
    for folder in (two_processes, two_nodes):
        assert curve(folder, "lr") == curve(one, "lr")
        for name in ("loss", "grad_norm"):
            assert curve(folder, name)[:5] == pytest.approx(curve(one, name)[:5], rel=1e-4)
        assert curve(folder, "loss") == pytest.approx(curve(one, "loss"), rel=0.02)
        assert len(curve(folder, "loss")) == STEPS
        scores = [json.loads((path / "metrics/tokenizer.json").read_text()) for path in (folder, one)]
        assert scores[0] == pytest.approx(scores[1], rel=0.02)


def test_two_processes_give_the_same_bytes_on_one_node_and_on_two(two_processes: Path, two_nodes: Path) -> None:
    assert results(two_processes) == results(two_nodes)
    assert len(results(two_nodes)) > 5


def test_a_killed_rank_ends_the_job_which_resumes_to_the_same_bytes(prepared: Path, two_processes: Path) -> None:
    folder = Path(shutil.copytree(prepared, prepared.parent / "killed"))
    with running(folder, PECO_CHECKPOINT_STEPS="1", **TWO_PROCESSES) as process:
        wait_for(lambda: any((folder / ".work").glob("tokenizer-*/checkpoint.pt")), process)
        for rank in processes(folder, RANK="1"):
            os.kill(rank, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2  # as after a lack of memory, the most common cause of such an end
    assert err.splitlines()[-1].startswith("error: tokenizer: its process 1 was ended by SIGKILL (out of memory?)")
    assert processes(folder) == []
    assert not (folder / "artifacts/tokenizer").exists()

    status, out, err = launch(folder, **TWO_PROCESSES)
    assert (status, err) == (0, "")
    assert "resumes from step" in out
    assert results(folder) == results(two_processes)


def test_a_rank_that_fails_ends_the_job_with_its_error_alone(prepared: Path) -> None:
    """One damaged image, which one of the ranks reads sooner or later."""
    folder = Path(shutil.copytree(prepared, prepared.parent / "failed"))
    shard = folder / "artifacts/shards/train-00000.tar"
    data = bytearray(shard.read_bytes())
    head = data.index(b"\x89PNG")
    data[head : head + 64] = bytes(64)
    shard.write_bytes(data)
    status, out, err = launch(folder, **TWO_PROCESSES)
    assert status == 2
    assert re.fullmatch(
        r"error: tokenizer: \S+/train-00000\.tar: sample \S+: not an image of a known format; .*\n", err
    )
    assert "Traceback" not in out
    assert processes(folder) == []
    assert not (folder / "artifacts/tokenizer").exists()
