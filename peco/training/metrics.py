"""What a training tells: curves and scores for DVC, live values for Prometheus, a line of progress for whoever watches.

Curves and scores are functions of the training alone (no times, rates, hosts or paths), so that equal trainings publish equal
bytes; everything else goes to Prometheus and to the terminal.
"""

from __future__ import annotations

import csv
import errno
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from peco.errors import PecoError
from peco.training.distributed import Dist

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


_PROMETHEUS_NAMES = {"lr": "learning_rate", "grad_norm": "gradient_norm"}
_HELP = {
    "peco_samples_per_second": "Samples trained on per second, over all processes",
    "peco_step_seconds": "Wall time of one optimizer step",
    "peco_data_wait_seconds": "Part of a step's wall time spent waiting for data",
    "peco_steps_done": "Optimizer steps done",
    "peco_steps_planned": "Optimizer steps of the whole training",
    "peco_restarts": "Times the training went on from a checkpoint",
    "peco_checkpoint_age_seconds": "Time since the last checkpoint, or since the start",
    "peco_nonfinite_steps": "Steps whose loss or gradient norm was not finite; the first ends the training",
    "peco_loss": "Mean loss over the batch of all processes",
    "peco_gradient_norm": "Norm of the gradient before clipping",
    "peco_learning_rate": "Learning rate of the last layers",
    "peco_usage": "Share of the codes used in the last epoch",
    "peco_perplexity": "Exponential of the entropy of the codes used in the last epoch",
}
LAST_SCRAPE_SECONDS = 35.0  # a little longer than Prometheus usually waits between two scrapes


class Exporter:
    """Gauges `peco_*` with the label `stage`, served over HTTP by local rank 0 on PECO_METRICS_PORT; off where that is unset or 0.

    Raises:
        PecoError: PECO_METRICS_PORT is not a port number, or no port from there on is free.
    """

    def __init__(self, stage: str, dist: Dist) -> None:
        self._stage = stage
        self._gauges: dict[str, Any] = {}
        self._saved = time.monotonic()
        self._scraped = threading.Event()
        self._server: Any = None
        port = os.environ.get("PECO_METRICS_PORT", "0")
        if not port.isdecimal() or int(port) > 65535:
            raise PecoError(
                f"PECO_METRICS_PORT: {port!r} is not allowed; expected a port from 1 to 65535, or 0 for none"
            )
        if int(port) and dist.local_rank == 0:
            self._registry = CollectorRegistry()
            self._server = self._serve(int(port))
            self._gauge("peco_checkpoint_age_seconds").set_function(self._age)
            print(f"{stage}  metrics on port {self.port}", flush=True)

    def _serve(self, first: int) -> Any:
        for port in range(first, min(first + 100, 65536)):
            try:
                server, _ = start_http_server(port, registry=self._registry)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise PecoError(f"PECO_METRICS_PORT: port {port} can't be served: {error.strerror}") from None
                continue
            self.port = port
            if port != first:
                print(f"metrics port {first} is in use, serving on {port}", file=sys.stderr, flush=True)
            return server
        raise PecoError(f"PECO_METRICS_PORT: no port from {first} on is free; set another one, or 0 for none")

    def set(self, values: Mapping[str, float]) -> None:
        """Set gauges by their short name: `loss` is exported as `peco_loss`."""
        if self._server is not None:
            for name, value in values.items():
                self._gauge("peco_" + re.sub(r"\W", "_", _PROMETHEUS_NAMES.get(name, name))).set(value)

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self._saved = time.monotonic()

    def failing(self, values: Mapping[str, float]) -> None:
        """Set the values of a training that is about to fail; where somebody scrapes, let them be read first."""
        if self._server is not None and self._scraped.is_set():
            self.set(values)
            self._scraped.clear()
            if self._scraped.wait(LAST_SCRAPE_SECONDS):
                time.sleep(0.5)  # the answer is on its way

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _age(self) -> float:
        """Called in each scrape, before the other gauges are read."""
        self._scraped.set()
        return time.monotonic() - self._saved

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            text = _HELP.get(name, f"Training value {name.removeprefix('peco_')}")
            self._gauges[name] = Gauge(name, text, ["stage"], registry=self._registry).labels(stage=self._stage)
        return self._gauges[name]


class Progress:
    """One line about where a training stands; also keeps the exporter's rates.

    On a terminal (stderr) the line is rewritten in place. With PECO_PROGRESS=bar, each update is a line on stdout that
    begins with a carriage return, for a launcher that rewrites it itself. Otherwise plain lines on stdout, one in ten
    seconds at most, and the last.

    Args:
        name: first word of the line.
        start: steps already done.
        total: steps in all.
        samples_per_step: global batch size.
        exporter: gets the rates.
        visible: whether this process writes the line (rank 0 does).
    """

    def __init__(
        self, name: str, start: int, total: int, samples_per_step: int, exporter: Exporter, visible: bool
    ) -> None:
        self._name, self._start, self._total, self._samples = name, start, total, samples_per_step
        self._exporter, self._visible = exporter, visible
        bar = os.environ.get("PECO_PROGRESS") == "bar"
        terminal = not bar and sys.stderr.isatty()
        self._stream: TextIO = sys.stderr if terminal else sys.stdout
        self._format = "\r{}\n" if bar else "\r{}\x1b[K" if terminal else "{}\n"
        self._end = "\n" if terminal else ""
        self._interval = 0.5 if bar or terminal else 10.0
        self._began = self._shown = self._measured = time.monotonic()
        self._measured_step = start
        self._rate = 0.0
        self._wait = 0.0
        self._done = start

    def update(self, done: int, values: Mapping[str, float], wait: float) -> None:
        """`done` steps are done; `values` of the last one (`loss`, `lr`), and the seconds it waited for data."""
        self._done = done
        self._wait += wait
        now = time.monotonic()
        if now - self._measured >= 0.5 or done == self._total:
            self._measure(done, values, now)
        if self._visible and (now - self._shown >= self._interval or done == self._total):
            self._shown = now
            eta = (now - self._began) / (done - self._start) * (self._total - done)
            self._print(
                f"{self._name}  step {done}/{self._total}  loss {values['loss']:.3g}  lr {_short(values['lr'])}  "
                f"{self._rate:.3g} img/s  eta {_clock(eta)}"
            )

    def close(self) -> None:
        """End the line that is rewritten in place."""
        if self._visible and self._end and self._done > self._start:
            self._stream.write(self._end)
            self._stream.flush()

    def _measure(self, done: int, values: Mapping[str, float], now: float) -> None:
        steps, seconds = done - self._measured_step, max(now - self._measured, 1e-9)
        self._rate = steps * self._samples / seconds
        self._exporter.set(values)
        self._exporter.set(
            {
                "samples_per_second": self._rate,
                "step_seconds": seconds / steps,
                "data_wait_seconds": self._wait / steps,
                "steps_done": done,
                "steps_planned": self._total,
            }
        )
        self._measured, self._measured_step, self._wait = now, done, 0.0

    def _print(self, line: str) -> None:
        self._stream.write(self._format.format(line))
        self._stream.flush()


def _short(value: float) -> str:
    """1.2e-3, not 0.0012 nor 1.2e-03."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
