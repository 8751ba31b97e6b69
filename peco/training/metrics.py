"""What a training tells: curves and scores for DVC, live values for Prometheus, a line of progress for whoever watches.

Curves and scores are functions of the training alone (no times, rates, hosts or paths), so that equal trainings publish equal
bytes; everything else goes to Prometheus and to the terminal.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from peco.core.numbers import rounded
from peco.core.publishing import write_json
from peco.training.distributed import Dist
from peco.training.prometheus import Exporter

Row = tuple[int, str, float]  # step, name, value


class MetricLog:
    """Scalars over the steps of one stage.

    Every value is kept in memory (a few thousand numbers at most) and goes into the working checkpoint; from there the files are
    written anew on resume, which cuts them back to the checkpoint's step. They lie under `work/curves`. All ranks
    log the same values, rank 0 writes; local rank 0 exports them to Prometheus too.

    Args:
        stage: label of the Prometheus metrics.
        work: the stage's work folder.
        dist: this process; a single one by default.
    """

    def __init__(self, stage: str, work: Path, dist: Dist | None = None) -> None:
        self._dist = dist or Dist()
        self._curves = work / "curves"
        self._rows: list[Row] = []
        self._written = False
        self.exporter = Exporter(stage, self._dist)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each named curve, after `step` steps. A `/` in a name makes a folder of curves."""
        values = rounded(dict(values))
        rows = [(step, name, value) for name, value in values.items()]
        if self._dist.rank == 0:
            self._file()
            self._append(rows)
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
        self._written = False
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
        self._file()
        shutil.rmtree(plots_dir, ignore_errors=True)
        shutil.copytree(self._curves, plots_dir, copy_function=shutil.copyfile)
        write_json(metrics_json, rounded(summary))

    def close(self) -> None:
        """Stop serving Prometheus."""
        self.exporter.close()

    def _file(self) -> None:
        """Write the curves again from what is known, at the first use."""
        if not self._written:
            self._written = True
            shutil.rmtree(self._curves, ignore_errors=True)
            self._curves.mkdir(parents=True)
            self._append(self._rows)

    def _append(self, rows: Sequence[Row]) -> None:
        """Append to the curves' files, in the layout that DVC's plots read."""
        for step, name, value in rows:
            path = self._curves / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            header = "" if path.exists() else f"step\t{path.stem}\n"
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(f"{header}{step}\t{value}\n")
