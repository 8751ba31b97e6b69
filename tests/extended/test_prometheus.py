"""Prometheus on a running stage; promtool on the served metrics and on the alerts of `k8s/`."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prepared import ROOT, prepare, running, wait_for
from test_metrics_served import free_port, scrape

MISSING = [tool for tool in ("prometheus", "promtool") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (Debian's package `prometheus`)")


def rule_groups() -> list[dict[str, Any]]:
    """The groups of every PrometheusRule below k8s/."""
    objects = [
        entry
        for path in sorted((ROOT / "k8s").rglob("*.yaml"))
        for entry in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if isinstance(entry, dict)
    ]
    return [group for entry in objects if entry.get("kind") == "PrometheusRule" for group in entry["spec"]["groups"]]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rule file for Prometheus."""
    path = tmp_path_factory.mktemp("rules") / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": rule_groups()}), encoding="utf-8")
    return path


def promtool(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# A running stage


@dataclass(frozen=True)
class Watched:
    """Ports of a stage that trains, and of a Prometheus that scrapes it every second."""

    stage: int
    prometheus: int

    def query(self, path: str, **parameters: str) -> Any:
        """`data` of Prometheus's response; None before it responds."""
        address = f"http://127.0.0.1:{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def value(self, expression: str) -> float:
        """Value of an expression with one result; 0 before it has one."""
        found = (self.query("query", query=expression) or {}).get("result")
        return float(found[0]["value"][1]) if found else 0.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, rules: Path) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    ports = Watched(free_port(), free_port())
    target = {"job_name": "peco", "static_configs": [{"targets": [f"127.0.0.1:{ports.stage}"]}]}
    settings = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": settings, "rule_files": [str(rules)], "scrape_configs": [target]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{ports.prometheus}",
    ]
    stage = prepare(folder / "stage", steps=1_000_000)
    with running(stage, PECO_METRICS_PORT=str(ports.stage)) as process:
        wait_for(lambda: "peco_loss" in scrape(ports.stage), process)
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: ports.value("peco_steps_done") > 0, process)
            yield ports
        finally:
            server.terminate()
            server.wait(timeout=30)


def test_prometheus_reads_a_running_stage(watched: Watched) -> None:
    assert watched.value("up") == 1
    names = set(watched.query("label/__name__/values"))
    assert {f"peco_{name}" for name in ("loss", "samples_per_second", "usage", "checkpoint_age_seconds")} <= names
    steps, deadline = watched.value('peco_steps_done{stage="tokenizer"}'), time.monotonic() + 60
    while watched.value('peco_steps_done{stage="tokenizer"}') == steps:
        assert time.monotonic() < deadline, "the next scrape shows no further step"
        time.sleep(0.5)


def test_prometheus_knows_types_and_meanings(watched: Watched) -> None:
    known = watched.query("targets/metadata", match_target='{job="peco"}')
    assert known and all(entry["type"] == "gauge" and entry["help"] for entry in known if "peco_" in entry["metric"])


def test_prometheus_evaluates_every_rule_and_a_healthy_stage_fires_no_alert(watched: Watched) -> None:
    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in watched.query("rules")["groups"] for rule in group["rules"]]

    deadline = time.monotonic() + 60
    while any(rule["health"] == "unknown" for rule in evaluated()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert {rule["name"] for rule in evaluated()} == set(FIRING)
    for rule in evaluated():
        assert (rule["health"], rule["state"]) == ("ok", "inactive"), rule["name"]


def test_promtool_accepts_the_served_metrics(watched: Watched) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{watched.stage}/metrics", timeout=10) as answer:
        assert promtool("check", "metrics", stdin=answer.read().decode()) == ""


# The alerts

HOUR = 240  # scrapes, one in 15 seconds
HEALTHY = {
    "steps_done": f"100+10x{HOUR}",
    "steps_planned": f"100000x{HOUR}",
    "nonfinite_steps": f"0x{HOUR}",
    "loss": f"2x{HOUR}",
    "step_seconds": f"1.5x{HOUR}",
    "data_wait_seconds": f"0.05x{HOUR}",
    "checkpoint_age_seconds": f"60x{HOUR}",
    "usage": f"0.95x{HOUR}",
    "perplexity": f"200x{HOUR}",
}
# Alert -> series that fire it; those of all but the last still hold at the end of the hour.
FIRING: dict[str, list[dict[str, str]]] = {
    "PecoStalled": [{"steps_done": f"100x{HOUR}"}, {"steps_done": f"0x{HOUR}"}],
    "PecoCodebookCollapse": [{"usage": f"0.02x{HOUR}"}, {"perplexity": f"200x{HOUR // 2} 5x{HOUR // 2}"}],
    "PecoDataBound": [{"data_wait_seconds": f"0.9x{HOUR}"}],
    "PecoCheckpointTooOld": [{"checkpoint_age_seconds": f"0+15x{HOUR}"}],
    # Visible in a single scrape: the process ends, and with it all series.
    "PecoNotFinite": [
        {name: f"{values.split('x')[0]}x{HOUR - 20} stale" for name, values in HEALTHY.items()}
        | {"nonfinite_steps": f"0x{HOUR - 21} 1 stale", "loss": f"2x{HOUR - 21} NaN stale"}
    ],
}
SILENT = {
    "training": {},
    "evaluation after the last step": {
        "steps_done": f"100000x{HOUR}",
        "checkpoint_age_seconds": f"0+15x{HOUR}",
    },
    "start": {name: f"_x{HOUR - 20} {values.split('x')[0]}x20" for name, values in HEALTHY.items()},
    "resume after a while without a pod": {
        name: f"{values.split('x')[0]}x100 stale _x100 {values.split('x')[0]}x40" for name, values in HEALTHY.items()
    },
    "codebook used a little less": {"usage": f"0.95x{HOUR // 2} 0.8x{HOUR // 2}", "perplexity": "200x120 150x120"},
    "network of another stage without a codebook": {"usage": f"_x{HOUR}", "perplexity": f"_x{HOUR}"},
}


def check_alerts(rules: Path, tmp_path: Path, series: dict[str, str], *firing: str) -> None:
    """Check by promtool that exactly these alerts fire after an hour of these series."""
    labels = '{stage="tokenizer",namespace="peco",pod="peco-tokenizer-0"}'
    test = {
        "interval": "15s",
        "input_series": [
            {"series": f"peco_{name}{labels}", "values": values} for name, values in (HEALTHY | series).items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "60m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing],
            }
        ],
    }
    path = tmp_path / "test.yml"
    document = {"rule_files": [str(rules)], "evaluation_interval": "15s", "tests": [test]}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    promtool("test", "rules", str(path))


def test_promtool_accepts_the_rules(rules: Path) -> None:
    alerts = [rule["alert"] for group in rule_groups() for rule in group["rules"]]
    assert sorted(alerts) == sorted(FIRING), "an alert without a test that fires it"
    assert f"{len(alerts)} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", str(rules))


@pytest.mark.parametrize(("alert", "series"), [(alert, series) for alert, many in FIRING.items() for series in many])
def test_an_alert_fires_for_its_cause_and_no_other_does(
    rules: Path, tmp_path: Path, alert: str, series: dict[str, str]
) -> None:
    check_alerts(rules, tmp_path, series, alert)


@pytest.mark.parametrize("situation", SILENT)
def test_no_alert_fires_while_nothing_is_wrong(rules: Path, tmp_path: Path, situation: str) -> None:
    check_alerts(rules, tmp_path, SILENT[situation])
