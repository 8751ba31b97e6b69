"""Curves of a training in TensorBoard and MLflow, by their own libraries."""

from __future__ import annotations

import importlib.util
import math
import resource
from pathlib import Path
from typing import Any

import pytest

from peco.core.environment import trackers
from peco.core.errors import Interrupted, PecoError
from peco.training.metrics import MetricLog
from pipelines import repro

mlflow = pytest.importorskip("mlflow", reason="needs the extra tracking")
pytest.importorskip("tensorboard", reason="needs the extra tracking")

Curve = list[tuple[int, float]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training, and the environment of both trackers."""
    monkeypatch.setenv("PECO_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("PECO_TRACKING", "tensorboard, mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "work/finetune-0a1b/finetune_random"
    folder.mkdir(parents=True)
    return folder


def in_tensorboard(work: Path) -> dict[str, Curve]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = work.parents[1] / "tensorboard/finetune-0a1b/finetune_random"
    found: Any = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def in_mlflow(title: str = "peco") -> list[tuple[str, str, dict[str, Curve]]]:
    """Name, status and curves of each run."""
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name(title).experiment_id])
    return [
        (
            run.info.run_name,
            run.info.status,
            {
                name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
        )
        for run in runs
    ]


def test_both_get_the_curves_of_a_training(work: Path) -> None:
    logs = MetricLog("finetune_random", work / "curves")
    logs.log(10, {"loss": 2.5, "lr": 0.5})
    logs.log(20, {"loss": 1.25, "lr": 0.25})
    logs.close()
    expected = {"loss": [(10, 2.5), (20, 1.25)], "lr": [(10, 0.5), (20, 0.25)]}
    assert in_tensorboard(work) == expected
    assert in_mlflow() == [("finetune-0a1b/finetune_random", "FINISHED", expected)]


def test_a_training_that_resumes_goes_on_in_its_run_from_the_checkpoint(work: Path) -> None:
    first = MetricLog("finetune_random", work / "curves")
    first.log(10, {"loss": 3.0})
    state = first.state_dict()
    first.log(20, {"loss": 99.0})  # after the checkpoint
    first.close()
    second = MetricLog("finetune_random", work / "curves")
    second.load_state_dict(state)
    second.log(20, {"loss": 2.0})
    second.close()
    assert in_tensorboard(work) == {"loss": [(10, 3.0), (20, 2.0)]}
    ((_, status, curves),) = in_mlflow()
    assert status == "FINISHED" and curves["loss"][0] == (10, 3.0) and curves["loss"][-1] == (20, 2.0)


def test_a_run_that_mlflow_sees_late_has_its_whole_curve(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PECO_TRACKING")
    first = MetricLog("finetune_random", work / "curves")
    first.log(10, {"loss": 3.0})
    monkeypatch.setenv("PECO_TRACKING", "mlflow")
    second = MetricLog("finetune_random", work / "curves")
    second.load_state_dict(first.state_dict())
    second.log(20, {"loss": 2.0})
    second.close()
    assert in_mlflow()[0][2] == {"loss": [(10, 3.0), (20, 2.0)]}


@pytest.mark.parametrize(("error", "status"), [(Interrupted("stopped"), "KILLED"), (PecoError("diverged"), "FAILED")])
def test_a_training_that_was_not_finished_is_not_called_so(work: Path, error: PecoError, status: str) -> None:
    logs = MetricLog("finetune_random", work / "curves")
    logs.log(10, {"loss": 3.0})
    logs.close(error)
    assert in_mlflow()[0][1] == status


def test_mlflow_has_the_experiment_of_its_own_variable(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "birds")
    logs = MetricLog("finetune_random", work / "curves")
    logs.log(1, {"loss": math.pi})
    logs.close()
    assert len(in_mlflow("birds")) == 1


def test_a_server_that_is_away_does_not_stop_the_training(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logs = MetricLog("finetune_random", work / "curves")
    for step in (1, 2, 3):
        logs.log(step, {"loss": 1.0})
    logs.close()
    assert capsys.readouterr().err.count("warning: PECO_TRACKING: mlflow gets no more curves (") == 1
    assert in_tensorboard(work) == {"loss": [(1, 1.0), (2, 1.0), (3, 1.0)]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "tensorbord",
            r"PECO_TRACKING: 'tensorbord' is not allowed; expected tensorboard, mlflow, or both with a comma",
        ),
        ("mlflow", r"PECO_TRACKING: mlflow needs MLFLOW_TRACKING_URI, the address of its server; set it"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_training(
    work: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("PECO_TRACKING", value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(PecoError, match=message):
        MetricLog("finetune_random", work / "curves")


def test_a_database_of_mlflow_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_TRACKING", "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    known = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sqlalchemy" else known(name))
    with pytest.raises(PecoError, match=r"MLFLOW_TRACKING_URI: a database needs more .*: `pip install mlflow`"):
        trackers()


def test_a_wrong_setting_is_refused_before_the_first_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PECO_TRACKING", "wandb")
    assert repro.main([]) == 2
    error = "error: PECO_TRACKING: 'wandb' is not allowed; expected tensorboard, mlflow, or both with a comma\n"
    assert capsys.readouterr().err == error


def test_what_jobs_of_a_cluster_have_need_not_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_TRACKING", "tensorboard,mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert trackers(here=False) == ["tensorboard", "mlflow"]
    with pytest.raises(PecoError, match="PECO_TRACKING: tensorboard is not installed"):
        trackers()


def test_a_full_disk_of_tensorboard_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files of at most 2000 bytes stand for a disk that becomes full."""
    monkeypatch.setenv("PECO_TRACKING", "tensorboard")
    logs = MetricLog("finetune_random", work / "curves")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        for step in range(100):
            logs.log(step, {"loss": 1.0})
        logs.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capfd.readouterr().err == "warning: PECO_TRACKING: tensorboard gets no more curves (File too large)\n"
    assert len((work / "curves/loss.tsv").read_text().splitlines()) == 101


def test_nothing_is_written_unless_asked_for(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PECO_TRACKING")
    logs = MetricLog("finetune_random", work / "curves")
    logs.log(1, {"loss": 1.0})
    logs.close()
    assert not (work.parents[1] / "tensorboard").exists() and not list(work.glob("mlflow*"))
