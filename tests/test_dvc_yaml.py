"""The committed dvc.yaml: each stage depends on what it reads, on all of it and on nothing else."""

from __future__ import annotations

import importlib
import posixpath
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.kfp import plan
from pipelines.workflow.compose import PRESETS, compose_params, render
from pipelines.workflow.graph import load_graph

ROOT = Path(__file__).parents[1]
GRAPH = load_graph(ROOT)
# The project's own stages; a user's (`dvc stage add`) may be anything that DVC allows.
STAGES = [name for name, stage in GRAPH.stages.items() if any("pipelines.launch" in line for line in stage.commands)]
ENTRIES: dict[str, dict[str, Any]] = {
    name: entry.get("do", entry)
    for name, entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
    if any(stage.partition("@")[0] == name for stage in STAGES)
}


def test_each_module_of_a_stage_has_its_stage() -> None:
    modules = {path.stem for path in (ROOT / "peco/stages").glob("[!_]*.py")}
    modules |= {f"evaluate@{path.parent.name}" for path in (ROOT / "peco/evaluate").glob("*/stage.py")}
    assert set(STAGES) == modules


@pytest.mark.parametrize("name", STAGES)
def test_parameters_are_those_that_the_module_declares(name: str) -> None:
    stage = GRAPH[name]
    assert set(stage.params) == set(importlib.import_module(stage.name.module).PARAMS)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_run_by_the_launcher(name: str) -> None:
    assert GRAPH[name].commands == (f"python -m pipelines.launch {name}",)


@pytest.mark.parametrize("name", STAGES)
def test_no_path_is_absolute_or_leaves_the_repository(name: str) -> None:
    for path in (*GRAPH[name].deps, *GRAPH[name].outs):
        assert not posixpath.isabs(path)
        assert not path.startswith("..")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_out_is_cached_and_none_persists(name: str) -> None:
    """Without options an out is cached, and removed before a run."""
    for key in ("outs", "metrics", "plots"):
        assert all(isinstance(out, str) for out in ENTRIES[name].get(key, []))


def test_each_out_belongs_to_one_stage() -> None:
    outs = [out for stage in GRAPH.stages.values() for out in stage.outs]
    assert len(set(outs)) == len(outs)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_reads_is_in_the_repository(preset: str) -> None:
    """Except the images. Also what an evaluation that is switched off would read: DVC looks for it."""
    params = compose_params(preset, [])
    graph = plan.graph_of((ROOT / "dvc.yaml").read_bytes(), render(params))
    missing = {path for path in plan.inputs(graph) if not (ROOT / path).exists()}
    assert missing <= {params["dataset"]["path"]}


def test_each_stage_reads_the_results_that_it_needs() -> None:
    """That these edges are DVC's own is in test_graph.py."""
    reads = {
        "knn": {"shards", "pretrain"},
        "linear": {"shards", "pretrain"},
        "finetune": {"shards", "pretrain"},
        "segmentation": {"annotations", "pretrain"},
        "detection": {"annotations", "pretrain"},
        "agreement": {"shards", "tokenizer", "perceptual_net"},
        "codebook": {"shards", "tokenizer", "perceptual_net"},
    }
    evaluations = {f"evaluate@{name}" for name in reads}
    edges = {edge for edge in GRAPH.edges if set(edge) <= set(STAGES)}
    for name, others in reads.items():
        assert {other for stage, other in edges if stage == f"evaluate@{name}"} == others
    assert {other for stage, other in edges if stage == "report"} == set(STAGES) - {"report"}
    assert {edge for edge in edges if edge[0] not in {*evaluations, "report"}} == {
        ("perceptual_net", "shards"),
        ("tokenizer", "shards"),
        ("tokenizer", "perceptual_net"),
        ("tokens", "shards"),
        ("tokens", "tokenizer"),
        ("pretrain", "shards"),
        ("pretrain", "tokenizer"),
        ("pretrain", "tokens"),
    }


def test_annotated_sets_are_checked_first_and_are_no_input_of_a_training() -> None:
    """DVC runs the stages of a whole graph in the order of dvc.yaml, as far as their dependencies allow it."""
    assert next(iter(GRAPH.stages)) == "annotations"
    assert {stage for stage, other in GRAPH.edges if other == "annotations" and stage in STAGES} == {
        "evaluate@segmentation", "evaluate@detection", "report",
    }  # fmt: skip


def test_models_are_declared_as_artifacts() -> None:
    """For `dvc artifacts get` and model registries: each is an out of a stage, with type, description and labels."""
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    outs = {out for stage in GRAPH.stages.values() for out in stage.outs}
    assert {entry["path"] for entry in artifacts.values()} >= {
        "artifacts/perceptual_net", "artifacts/tokenizer", "artifacts/backbone",
        "artifacts/classifier", "artifacts/segmenter", "artifacts/detector",
    }  # fmt: skip
    for entry in artifacts.values():
        assert entry["path"] in outs
        assert entry["type"] == "model"
        assert entry["desc"] and entry["labels"]
