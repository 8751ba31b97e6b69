"""The TorchX components: well-formed, one for each stage, named as every scheduler takes it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from torchx.specs.file_linter import validate
from torchx.specs.finder import get_component

from pipelines import components
from pipelines.workflow.graph import load_graph

ROOT = Path(__file__).parent.parent
ROLES = [stage.role for stage in load_graph(ROOT).stages.values()]
SEVERAL = [role for role in ROLES if "j" in inspect.signature(getattr(components, role)).parameters]


@pytest.mark.parametrize("role", ROLES)
def test_every_stage_has_a_component_that_torchx_accepts(role: str) -> None:
    assert validate(str(ROOT / "pipelines/components.py"), role) == []
    component = get_component(f"{ROOT}/pipelines/components.py:{role}")
    assert component.validation_errors == []
    assert component.description


@pytest.mark.parametrize("role", ROLES)
def test_names_suit_kubernetes_and_rendezvous(role: str) -> None:
    app = getattr(components, role)()
    assert [app.name, app.roles[0].name] == [role, role]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", role)


def test_one_process_is_started_without_torchrun() -> None:
    role = components.tokenizer(threads=3, workers=2, env={"X": "1"}).roles[0]
    assert [role.entrypoint, *role.args] == ["python", "-m", "peco.stages.tokenizer"]
    assert role.env == {"PECO_WORKERS": "2", "GOMP_SPINCOUNT": "10000", "X": "1"} | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PECO_THREADS"), "3"
    )


@pytest.mark.parametrize("role", SEVERAL)
@pytest.mark.parametrize(("j", "nodes", "processes"), [("1x2", 1, 2), ("2x1", 2, 1), ("4x8", 4, 8)])
def test_several_processes_are_started_by_torchrun(role: str, j: str, nodes: int, processes: int) -> None:
    app = getattr(components, role)(j=j, threads=2, port=29777)
    command = " ".join(app.roles[0].args)
    assert app.roles[0].name == role
    assert app.roles[0].num_replicas == nodes
    assert f"--nnodes {nodes} --nproc_per_node {processes}" in command
    assert command.endswith(f"-m peco.stages.{role}")
    assert ("29777" in command) == (nodes > 1)
    assert app.roles[0].env["OMP_NUM_THREADS"] == "2"


def test_stages_that_train_or_tokenize_take_a_number_of_processes() -> None:
    trained = ["evaluate_finetune", "evaluate_segmentation", "evaluate_detection"]
    assert ["perceptual_net", "tokenizer", "tokens", "pretrain", *trained] == SEVERAL


def test_threads_are_left_to_the_libraries_unless_given() -> None:
    assert "OMP_NUM_THREADS" not in components.shards().roles[0].env
