"""What a training tells: curves and scores for DVC, live values for Prometheus, a line of progress for whoever watches.

Curves and scores are functions of the training alone (no times, rates, hosts or paths), so that equal trainings publish equal
bytes; everything else goes to Prometheus and to the terminal.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from peco.training.distributed import Dist
from peco.training.prometheus import Exporter

Row = tuple[int, str, float]  # step, name, value


def rounded(value: float) -> float:
    """`value` to 6 significant digits."""
    return float(f"{value:.6g}")


class MetricLog:
    """Scalars over the steps of one stage.

    Every value is kept in memory (a few thousand numbers at most) and goes into the working checkpoint; from there the files are
    written anew on resume, which cuts them back to the checkpoint's step. They lie under `work/live` in dvclive's layout. All ranks
    log the same values, rank 0 writes; local rank 0 exports them to Prometheus too.

    Args:
        stage: label of the Prometheus metrics.
        work: the stage's work folder.
        dist: this process; a single one by default.
    """

    def __init__(self, stage: str, work: Path, dist: Dist | None = None) -> None:
        self._dist = dist or Dist()
        self._folder = work / "live"
        self._rows: list[Row] = []
        self._write: Callable[[int, Mapping[str, float]], None] | None = None
        self.exporter = Exporter(stage, self._dist)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each named curve, after `step` steps. A `/` in a name makes a folder of curves."""
        values = {name: rounded(value) for name, value in values.items()}
        if self._dist.rank == 0:
            self._writer()(step, values)
        self._rows += [(step, name, value) for name, value in values.items()]
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
        self._write = None
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
                    f"{metrics_json}: {name} is {value}; expected a finite number, see the curves in {self._folder}"
                )
        if self._dist.rank != 0:
            return
        self._writer()
        curves = self._folder / "plots" / "metrics"
        curves.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(plots_dir, ignore_errors=True)
        shutil.copytree(curves, plots_dir, copy_function=shutil.copyfile)
        metrics_json.parent.mkdir(parents=True, exist_ok=True)
        part = metrics_json.with_name(metrics_json.name + ".part")
        scores = {name: rounded(value) for name, value in sorted(summary.items())}
        part.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        os.replace(part, metrics_json)

    def close(self) -> None:
        """Stop serving Prometheus."""
        self.exporter.close()

    def _writer(self) -> Callable[[int, Mapping[str, float]], None]:
        """The function that appends to the files; made at the first use, when it writes anew what is already known."""
        if self._write is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            # A machine that only trains may lack DVC.
            make = _dvclive_writer if importlib.util.find_spec("dvclive") else _plain_writer
            self._write = make(self._folder)
            for step, rows in groupby(self._rows, key=lambda row: row[0]):
                self._write(step, {name: value for _, name, value in rows})
        return self._write


def _dvclive_writer(folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    from dvclive import Live

    class Files(Live):  # type: ignore[misc]
        def _init_dvc(self) -> None:
            """Leave the repository alone: dvclive would run `dvc init` where DVC is missing, and fail before a first commit."""

    live = Files(str(folder), report=None, save_dvc_exp=False, dvcyaml=None, monitor_system=False)

    def write(step: int, values: Mapping[str, float]) -> None:
        live.step = step
        for name, value in values.items():
            live.log_metric(name, value)
        live.make_summary()  # next_step() and end() do that and more: signal files, Studio, Git

    return write


def _plain_writer(folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    """The same curves as dvclive writes."""

    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            path = folder / "plots" / "metrics" / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            with open(path, "a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t", lineterminator="\n")
                if new:
                    writer.writerow(["step", path.stem])
                writer.writerow([step, value])

    return write
