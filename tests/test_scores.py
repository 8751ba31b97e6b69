"""The scores that `dvc metrics show` prints: a few numbers of each stage, next to what they are compared with."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from dvc.compare import metrics_table
from tabulate import tabulate

from peco.runtime import scores
from peco.runtime.scores import BASELINE, HEADLINES
from pipelines.kfp.page import numbers
from pipelines.workflow.graph import SCORES, load_graph

GRAPH = load_graph(Path(__file__).parents[1])


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, metrics: dict[str, object]) -> dict[str, float]:
    monkeypatch.chdir(folder)
    scores.write_scores(stage, metrics)
    found: dict[str, float] = json.loads((folder / f"scores/{stage.rpartition('@')[2]}.json").read_text())
    return found


def test_scores_are_rounded_numbers_among_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"accuracy": 0.61249, "random_accuracy": 0.3, "block": "3", "neighbors": 20}
    assert write(tmp_path, monkeypatch, "evaluate@knn", metrics) == {"knn": 0.612, "baseline": 0.3}
    assert write(tmp_path, monkeypatch, "tokenizer", {"val_psnr": 17.2461, "val_l1": 0.1}) == {"psnr": 17.2}


@pytest.mark.parametrize("metrics", [{"skipped": "train has no labels"}, {"loss": 0.9}])
def test_a_stage_without_a_score_has_none(
    metrics: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(tmp_path, monkeypatch, "pretrain", metrics) == {}


def test_they_are_all_that_dvc_prints() -> None:
    """Every stage with scores has the file as an out, and no other file is a metric of DVC."""
    written = {stage: f"{SCORES}/{stage.rpartition('@')[2]}.json" for stage in HEADLINES}
    found = {name: out for name, stage in GRAPH.stages.items() for out in stage.outs if out.startswith(f"{SCORES}/")}
    assert found == written


def test_kubeflow_shows_metrics_and_no_second_form_of_them(tmp_path: Path) -> None:
    """Also of a user's own stage, whose JSON may be anything."""
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  own:\n    cmd: own\n    outs: [a.json, b.json, list.json, gone.json]\n    metrics: [scores/own.json]\n"
    )
    (tmp_path / "params.yaml").write_text("{}\n")
    (tmp_path / "scores").mkdir()
    for name, text in {
        "a": '{"usage": 0.98765, "of": {"x": 1}}',
        "b": "{",
        "list": "[1, 2]",
        "scores/own": '{"usage": 0.9}',
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert numbers(load_graph(tmp_path)["own"], tmp_path) == {"usage": 0.98765, "of.x": 1}


def test_dvc_metrics_show_fits_in_a_terminal_of_120_columns() -> None:
    values = {f"{SCORES}/{s.rpartition('@')[2]}.json": {"data": dict.fromkeys(HEADLINES[s], 0.123)} for s in HEADLINES}
    table = metrics_table({"workspace": {"data": values}}, precision=5)
    lines = tabulate(list(table), table.keys(), tablefmt="plain", disable_numparse=True).splitlines()
    assert len(lines) == 1 + len(HEADLINES)
    assert max(map(len, lines)) <= 120


def test_dvc_exp_show_has_a_short_column_for_each_score() -> None:
    """It puts the path before names that occur in several files: only the baselines' do."""
    names = Counter(name for names in HEADLINES.values() for name in names)
    assert {name for name, count in names.items() if count > 1} == {BASELINE}
