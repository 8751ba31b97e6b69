"""The scalars of a training for TensorBoard and MLflow, where PECO_TRACKING names them.

They are copies to look at: no stage reads them, no result holds them, and a server that is away doesn't stop a training.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from peco.core import workfiles
from peco.core.environment import TRACKING, trackers
from peco.core.parsing import reason

Row = tuple[int, str, float]  # step, name, value
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"

# A server that is away costs a training at most some seconds, once. MLflow's own limits are minutes.
_MLFLOW_BATCH = 1000  # points of a request, at most
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Tracker(Protocol):
    """A place that curves are copied to."""

    def add(self, rows: Sequence[Row]) -> None:
        """Add points."""

    def close(self, status: str) -> None:
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
        self._names = trackers()
        self._open: dict[str, Tracker] = {}

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

    def close(self, status: str = FINISHED) -> None:
        """End the runs with a status of MLflow: FINISHED, FAILED, or KILLED for a training that was stopped."""
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.close(status))
        self._open.clear()

    def _try(self, name: str, action: Any) -> None:
        """Do it, or print why it can't be done and leave this tracker out from then on."""
        try:
            action()
        except Exception as error:  # theirs share no base class, and none may end a training
            self._open.pop(name, None)
            print(
                f"warning: {TRACKING.name}: {name} gets no more curves ({reason(error)[:200]})",
                file=sys.stderr,
                flush=True,
            )


def _run_name(work: Path) -> str:
    """Path of the training's folder below the work folder, `pretrain-<key>`."""
    root = workfiles.root().absolute()
    return str(work.absolute().relative_to(root)) if work.absolute().is_relative_to(root) else work.name


class _TensorBoard:
    """Event files in `$PECO_WORK/tensorboard`. A training that resumes writes them again, without points after its checkpoint."""

    def __init__(self, work: Path, rows: Sequence[Row]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        folder = workfiles.root() / "tensorboard" / _run_name(work)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        # Not by torch's SummaryWriter: it writes in a thread, which prints a traceback on a full disk.
        self._file = open(folder / f"events.out.tfevents.{int(time.time())}", "wb", buffering=0)  # noqa: SIM115
        self._records: Any = RecordWriter(self._file)
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self.add(rows)

    def add(self, rows: Sequence[Row]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        for step, name, value in rows:
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            self._records.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())

    def close(self, status: str) -> None:
        self._file.close()


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
            self._add_missing(rows)
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "peco"
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self._run = self._client.create_run(number, run_name=_run_name(work)).info.run_id
        kept.write_text(self._run, encoding="utf-8")
        self.add(rows)

    def add(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for first in range(0, len(rows), _MLFLOW_BATCH):
            some = rows[first : first + _MLFLOW_BATCH]
            self._client.log_batch(self._run, [Metric(name, value, now, step) for step, name, value in some])

    def _add_missing(self, rows: Sequence[Row]) -> None:
        """Add the points after the last one that each curve has: the server may have been away."""
        names = self._client.get_run(self._run).data.metrics
        last = {name: max(m.step for m in self._client.get_metric_history(self._run, name)) for name in names}
        self.add([row for row in rows if row[0] > last.get(row[1], -1)])

    def close(self, status: str) -> None:
        self._client.set_terminated(self._run, status)
