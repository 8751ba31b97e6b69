"""The scalars of a training for TensorBoard and MLflow, where PECO_TRACKING names them.

They are copies to look at: no stage reads them, no result holds them, and a server that is away doesn't stop a training.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from peco.core import workfiles
from peco.core.environment import TRACKING
from peco.core.errors import PecoError

Row = tuple[int, str, float]  # step, name, value

MLFLOW_URI = "MLFLOW_TRACKING_URI"
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}  # of each tracker
# A server that is away costs a training at most some seconds, once. MLflow's own limits are minutes.
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Tracker(Protocol):
    """A place that curves are copied to."""

    def add(self, rows: Sequence[Row]) -> None:
        """Add points."""

    def close(self) -> None:
        """Write what is left."""


class Tracking:
    """The trackers that PECO_TRACKING names, opened at the first points.

    Args:
        work: folder of the training's checkpoint, whose path below the work folder names the run.

    Raises:
        PecoError: an unknown tracker, a missing package or address.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._names = [name.strip() for name in TRACKING.text().split(",") if name.strip()]
        self._open: dict[str, Tracker] = {}
        for name in self._names:
            _require(name)

    def start(self, rows: Sequence[Row]) -> None:
        """Open the trackers. `rows` are the points of a training that resumes, up to its checkpoint."""
        self.close()
        kinds: Mapping[str, Any] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}
        for name in self._names:
            self._try(name, lambda name=name: self._open.update({name: kinds[name](self._work, rows)}))

    def add(self, rows: Sequence[Row]) -> None:
        """Add points to all that are open."""
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.add(rows))

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open.clear()

    def _try(self, name: str, action: Any) -> None:
        """Do it, or print why it can't be done and leave this tracker out from then on."""
        try:
            action()
        except Exception as error:  # theirs share no base class, and none may end a training
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"warning: {TRACKING.name}: {name} gets no more curves ({reason})", file=sys.stderr, flush=True)


def _require(name: str) -> None:
    if name not in _PACKAGES:
        raise PecoError(f"{TRACKING.name}: {name!r} is not allowed; expected tensorboard, mlflow, or both with a comma")
    if importlib.util.find_spec(_PACKAGES[name]) is None:
        raise PecoError(
            f"{TRACKING.name}: {name} is not installed; `pip install 'peco[tracking]'`, or unset the variable"
        )
    if name == "mlflow" and not os.environ.get(MLFLOW_URI):
        raise PecoError(f"{TRACKING.name}: mlflow needs {MLFLOW_URI}, the address of its server; set it")


def _run_name(work: Path) -> str:
    """Path of the training's folder below the work folder, `pretrain-<key>`."""
    root = workfiles.root().absolute()
    return str(work.absolute().relative_to(root)) if work.absolute().is_relative_to(root) else work.name


class _TensorBoard:
    """Event files in `$PECO_WORK/tensorboard`. A training that resumes writes them again, without points after its checkpoint."""

    def __init__(self, work: Path, rows: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = workfiles.root() / "tensorboard" / _run_name(work)
        shutil.rmtree(folder, ignore_errors=True)
        self._writer: Any = SummaryWriter(str(folder))
        self.add(rows)

    def add(self, rows: Sequence[Row]) -> None:
        for step, name, value in rows:
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run of the experiment MLFLOW_EXPERIMENT_NAME, or `peco`. A training that resumes keeps its run."""

    def __init__(self, work: Path, rows: Sequence[Row]) -> None:
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._client = mlflow.MlflowClient()
        kept = work / "mlflow_run"
        if kept.is_file() and rows:
            self._run = kept.read_text(encoding="utf-8")
            self._client.set_terminated(self._run, "RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "peco"
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self._run = self._client.create_run(number, run_name=_run_name(work)).info.run_id
        kept.write_text(self._run, encoding="utf-8")

    def add(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for step, name, value in rows])

    def close(self) -> None:
        self._client.set_terminated(self._run)
