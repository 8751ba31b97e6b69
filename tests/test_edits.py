"""Edits of what a stage reads while it runs, or while the `dvc` command that started it runs: its result is not recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peco.core.errors import PecoError
from pipelines.workflow.edits import State, require_unedited
from pipelines.workflow.graph import load_graph

ROOT = Path(__file__).parents[1]
DVC_YAML = """
stages:
  train:
    cmd: python -m pipelines.launch train
    deps: [code, data/photos]
    params: [seed, model]
    outs: [model.bin]
    meta: {resources: train}
  other:
    cmd: python -m pipelines.launch other
    params: [report]
"""
PARAMS = "seed: 1\nmodel:\n  lr: 0.1\n  depth: 2\nreport:\n  images: 4\nresources:\n  train: {cpu: 1}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path, text in {
        "dvc.yaml": DVC_YAML,
        "params.yaml": PARAMS,
        "code/model.py": "x = 1\n",
        "data/photos/1.jpg": "jpeg",
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    return tmp_path


def replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def add(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("new")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda: replace("params.yaml", "lr: 0.1", "lr: 0.05"), "model.lr in params.yaml (0.1 -> 0.05)"),
        (lambda: replace("params.yaml", "seed: 1\n", ""), "seed in params.yaml (1 -> None)"),
        (lambda: replace("params.yaml", "depth: 2", "depth: 2\n  width: 8"), "model.width in params.yaml (None -> 8)"),
        (lambda: replace("code/model.py", "1", "22"), "code/model.py"),
        (lambda: os.utime("code/model.py", ns=(1, 1)), "code/model.py"),
        (lambda: add("code/new.py"), "code/new.py"),
        (lambda: add("data/photos/2.jpg"), "data/photos/2.jpg"),
        (lambda: Path("data/photos/1.jpg").unlink(), "data/photos/1.jpg"),
        (lambda: replace("dvc.yaml", "outs: [model.bin]", "outs: [other.bin]"), "the stage train in dvc.yaml"),
        (lambda: replace("dvc.yaml", "  train:\n", "  renamed:\n"), "the stage train in dvc.yaml"),
    ],
)
def test_an_edit_of_what_the_stage_reads_is_an_error_that_names_it(
    project: Path, edit: Callable[[], None], named: str
) -> None:
    before = State.read(load_graph()["train"])
    require_unedited(before)
    edit()
    with pytest.raises(PecoError) as error:
        require_unedited(before)
    assert str(error.value) == (
        f"train: {named} was edited while the stage ran, so its result is not recorded. Its work is kept: undo the edit and run "
        "again to finish it, or run again to compute with the edit"
    )


@pytest.mark.parametrize(
    "edit",
    [
        lambda: replace("params.yaml", "images: 4", "images: 5"),
        lambda: replace("params.yaml", "cpu: 1", "cpu: 2"),
        lambda: replace("dvc.yaml", "resources: train", "resources: train, gpus: 1"),
        lambda: replace("dvc.yaml", "params: [report]", "params: [seed]"),
        lambda: add("code/__pycache__/model.pyc"),
        lambda: add("code/.model.py.swp"),
        lambda: add("model.bin"),
        lambda: add("unrelated.py"),
    ],
)
def test_other_edits_are_none_of_its_business(project: Path, edit: Callable[[], None]) -> None:
    before = State.read(load_graph()["train"])
    edit()
    require_unedited(before)


def test_many_edits_are_counted(project: Path) -> None:
    before = State.read(load_graph()["train"])
    for number in range(9):
        add(f"data/photos/new{number}.jpg")
    with pytest.raises(PecoError, match=r"new0.jpg, .*new1.jpg, .*new2.jpg \(and 6 more\) was edited"):
        require_unedited(before)


# Stands for a launcher, and for a `dvc` command that starts one, edits params.yaml, and starts that of another stage.
LAUNCHER = """
import sys
from peco.core.errors import PecoError
from pipelines.workflow.edits import require_parameters_of_this_run
from pipelines.workflow.graph import load_graph
try:
    require_parameters_of_this_run(load_graph()[sys.argv[1]])
except PecoError as error:
    print(error)
"""
COMMAND = """
import pathlib, subprocess, sys
def launch(stage):
    subprocess.run(f"{sys.executable} launcher.py {stage}; true", shell=True, check=True)  # as DVC does
launch("other")
path = pathlib.Path("params.yaml")
path.write_text(path.read_text().replace(sys.argv[1], sys.argv[2]))
launch("train")
"""


@pytest.mark.parametrize(
    ("old", "new", "settings", "named"),
    [
        ("seed: 1", "seed: 22", "", "train: seed in params.yaml (1 -> 22) was edited after this run began"),
        ("images: 4", "images: 5", "", ""),  # no parameter of this stage
        ("seed: 1", "seed: 1", "seed=1.0", ""),
        # Another command wrote its value before the first stage began.
        ("seed: 1", "seed: 1", "seed=21", "train: seed in params.yaml (21 -> 1) was edited after this run began"),
    ],
)
def test_a_later_stage_of_one_dvc_command_refuses_other_parameters_than_its_first_stage_found(
    project: Path, old: str, new: str, settings: str, named: str
) -> None:
    Path("launcher.py").write_text(LAUNCHER)
    Path("dvc").write_text(COMMAND)
    for _ in range(2):  # each command has parameters of its own
        Path("params.yaml").write_text(PARAMS)
        done = subprocess.run(
            [sys.executable, "dvc", old, new, "-S", settings],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PECO_WORK": ""},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip().startswith(named) and bool(done.stdout.strip()) == bool(named)
        assert ("dvc exp run --queue" in done.stdout) == bool(named)
    assert len(list(Path(".work/runs").iterdir())) == 1  # that of the first has gone with its process
