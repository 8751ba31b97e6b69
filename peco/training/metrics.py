"""Curves and scores of a training, as files for DVC.

They are functions of the training alone (no times, rates, hosts or paths), so that equal trainings publish equal bytes; everything
else goes to Prometheus and to the terminal. Trackers (PECO_TRACKING) get copies of the curves.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peco.core.errors import Interrupted, PecoError
from peco.core.numbers import rounded
from peco.core.publishing import staging, write_json
from peco.training.distributed import Dist
from peco.training.prometheus import Exporter
from peco.training.tracking import FAILED, FINISHED, KILLED, Tracking


class MetricLog:
    """Scalars over the steps of one training.

    Every value is kept in memory (a few thousand numbers at most) and is part of the checkpoint. On resume the files are written
    again from there, which cuts them back to the checkpoint's step. All ranks log the same values and rank 0 writes them; local
    rank 0 also exports them to Prometheus.

    Args:
        name: of the training: label of the Prometheus metrics.
        curves: folder for the files.
        dist: this process; a single one by default.
    """

    def __init__(self, name: str, curves: Path, dist: Dist | None = None) -> None:
        self._dist = dist or Dist()
        self._curves = curves
        self._rows: list[tuple[int, str, float]] = []  # step, name, value
        self._files_current = False
        self.exporter = Exporter(name, self._dist)
        self._tracking = Tracking(curves.parent)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each named curve, after `step` steps. A `/` in a name makes a folder of curves."""
        values = rounded(dict(values))
        rows = [(step, name, value) for name, value in values.items()]
        if self._dist.rank == 0:
            self._update_files()
            self._append(rows)
            self._tracking.add(rows)
        self._rows += rows
        self.exporter.set(values)

    @property
    def latest(self) -> dict[str, float]:
        """The last value of every curve."""
        return {name: value for _, name, value in self._rows}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what had been logged at a checkpoint."""
        self._rows = [(step, name, value) for step, name, value in state["rows"]]
        self._files_current = False
        self.exporter.set(self.latest)

    def publish(self, metrics_json: Path, plots_dir: Path, summary: Mapping[str, float]) -> None:
        """Write the stage's scores and copy its curves (`NAME.tsv`), replacing what was there. Only rank 0 does anything.

        Args:
            metrics_json: file for `summary`, keys sorted, values to 6 significant digits.
            plots_dir: folder for the curves.
            summary: name to score.

        Raises:
            PecoError: a score is not a finite number.
        """
        for name, value in summary.items():
            if not math.isfinite(value):
                raise PecoError(
                    f"{metrics_json}: {name} is {value}; expected a finite number, see the curves in {self._curves}"
                )
        if self._dist.rank != 0:
            return
        self._update_files()
        with staging(plots_dir) as folder:
            for curve in sorted(self._curves.rglob("*.tsv")):
                target = folder / curve.relative_to(self._curves)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(curve, target)
        write_json(metrics_json, rounded(dict(summary)))

    def close(self, error: BaseException | None = None) -> None:
        """Stop serving Prometheus, and end the runs of trackers. `error` ended the training."""
        self.exporter.close()
        self._tracking.close(FINISHED if error is None else KILLED if isinstance(error, Interrupted) else FAILED)

    def _update_files(self) -> None:
        """Write all files again at the first use: those of an earlier run may reach beyond the checkpoint."""
        if not self._files_current:
            self._files_current = True
            shutil.rmtree(self._curves, ignore_errors=True)
            self._curves.mkdir(parents=True)
            self._append(self._rows)
            self._tracking.start(self._rows)

    def _append(self, rows: Sequence[tuple[int, str, float]]) -> None:
        """Append to the files, in the layout that DVC's plots read."""
        for step, name, value in rows:
            path = self._curves / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            header = "" if path.exists() else f"step\t{path.stem}\n"
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(f"{header}{step}\t{value}\n")
