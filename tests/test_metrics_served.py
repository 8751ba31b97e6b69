"""Metrics that a running training serves to Prometheus: names, types, meanings; resumes and failures."""

from __future__ import annotations

import math
import re
import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from prepared import ROOT, prepare, running, stop, wait_for
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from test_training import Stopping, train_toy
from torch import Tensor

from peco.core.errors import PecoError
from peco.training import metrics, prometheus
from peco.training.metrics import MetricLog
from peco.training.prometheus import Exporter

EVERY_TRAINING = {
    "samples_per_second", "step_seconds", "data_wait_seconds", "steps_done", "steps_planned", "nonfinite_steps",
    "checkpoint_age_seconds", "restarts", "loss", "learning_rate", "gradient_norm",
}  # fmt: skip
TOKENIZER = {"usage", "perplexity", "pixel", "perceptual", "commitment"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, Metric]:
    """Metrics by name; empty if nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    except OSError:
        return {}


def value(port: int, name: str) -> float:
    """Value of a metric with one sample; NaN if it is missing."""
    found = scrape(port).get(f"peco_{name}")
    return found.samples[0].value if found else math.nan


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("served") / "prepared", steps=100_000)


def test_a_stage_serves_every_metric(prepared: Path, tmp_path: Path) -> None:
    folder, port = Path(shutil.copytree(prepared, tmp_path / "stage")), free_port()
    with running(folder, PECO_METRICS_PORT=str(port)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"tokenizer  metrics on port {port}\n"
        wait_for(lambda: value(port, "usage") > 0 and value(port, "loss") > 0, process)
        served = scrape(port)
        assert set(served) == {f"peco_{name}" for name in EVERY_TRAINING | TOKENIZER}
        for family in served.values():
            assert family.type == "gauge" and family.documentation
            [sample] = family.samples
            assert sample.labels == {"stage": "tokenizer"}
        assert value(port, "steps_planned") == 100_000 > value(port, "steps_done") > 0
        assert value(port, "restarts") == value(port, "nonfinite_steps") == 0
        assert 0 <= value(port, "data_wait_seconds") <= value(port, "step_seconds")

        steps, age = value(port, "steps_done"), value(port, "checkpoint_age_seconds")
        wait_for(lambda: value(port, "steps_done") > steps, process)
        assert value(port, "checkpoint_age_seconds") > age
        stop(process)
    assert scrape(port) == {}

    with running(folder, PECO_METRICS_PORT=str(port), PECO_CHECKPOINT_SECONDS="0.1") as process:
        wait_for(lambda: value(port, "restarts") == 1, process)
        # Values from before the stop are served at once, and kept until the next end of an epoch.
        assert value(port, "steps_done") > steps and value(port, "usage") > 0
        wait_for(lambda: value(port, "step_seconds") > 0, process)
        assert value(port, "checkpoint_age_seconds") < 5


def test_the_documentation_names_all_metrics() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    assert not [name for name in EVERY_TRAINING | TOKENIZER | {"accuracy"} if f"`peco_{name}`" not in page]


def test_one_process_of_a_node_serves_the_metrics(prepared: Path, tmp_path: Path) -> None:
    folder, port = Path(shutil.copytree(prepared, tmp_path / "stage")), free_port()
    with running(folder, PECO_METRICS_PORT=str(port), PECO_NPROC="2") as process:
        wait_for(lambda: value(port, "loss") > 0, process)
        assert scrape(port + 1) == {}
        assert re.findall(r"metrics on port \d+", stop(process)) == [f"metrics on port {port}"]


def test_nothing_is_served_without_a_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = MetricLog("toy", tmp_path)
    logs.log(1, {"loss": 1.0})
    logs.close()
    assert capsys.readouterr().out == ""


class Diverging(Stopping):
    """Calls a function before its loss is no longer finite."""

    def __init__(self, action: Callable[[], None] = lambda: None) -> None:
        super().__init__(3, action)

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = super().forward(batch, step, total)
        return (loss * math.nan if step == 4 else loss), scalars


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Port of the trainings of this process."""
    port = free_port()
    monkeypatch.setenv("PECO_METRICS_PORT", str(port))
    return port


def diverge(task: Diverging, work: Path) -> None:
    with pytest.raises(PecoError, match="not finite at step 5"):
        train_toy(task, work)


def test_a_divergence_is_scraped_before_the_training_ends(port: int, tmp_path: Path) -> None:
    """Prometheus scrapes every 15 seconds or so; it would never see the values of a training that ends at once."""
    seen: list[list[float]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            if found := scrape(port):
                seen.append([found[f"peco_{name}"].samples[0].value for name in ("nonfinite_steps", "loss")])

    def start() -> None:
        assert value(port, "checkpoint_age_seconds") >= 0
        watcher.start()

    watcher = threading.Thread(target=watch)
    diverge(Diverging(start), tmp_path)
    ended.set()
    watcher.join()
    steps, loss = seen[-1]
    assert steps == 1 and math.isnan(loss)


def test_a_divergence_that_nothing_scrapes_ends_at_once(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Recorded(Exporter):
        def failing(self, values: Mapping[str, float]) -> None:
            monkeypatch.setattr(self._scraped, "wait", waits.append)
            super().failing(values)

    monkeypatch.setattr(metrics, "Exporter", Recorded)
    diverge(Diverging(), tmp_path)
    assert waits == []


def test_a_failed_training_frees_its_port(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "LAST_SCRAPE_SECONDS", 0.0)
    served: list[bool] = []
    diverge(Diverging(lambda: served.append(bool(scrape(port)))), tmp_path)
    assert served == [True]
    assert scrape(port) == {}
