"""The TorchX component: well-formed, for each stage of dvc.yaml, with names that every scheduler takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from torchx.cli.main import main as torchx
from torchx.specs.file_linter import validate
from torchx.specs.finder import get_component

from k8s.pod_security import restricted_violations
from pipelines import components
from pipelines.workflow.graph import Stage, load_graph

ROOT = Path(__file__).parent.parent
STAGES = list(load_graph(ROOT).stages.values())
DISTRIBUTED = [stage for stage in STAGES if stage.distributed]


def test_torchx_accepts_the_component() -> None:
    assert validate(str(ROOT / "pipelines/components.py"), "stage") == []
    component = get_component(f"{ROOT}/pipelines/components.py:stage")
    assert component.validation_errors == []
    assert component.description


# TorchX's own command, `torchx run`; tests/slurm and tests/cluster start jobs by it.


@pytest.fixture
def dry_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`torchx run --dryrun` of a stage; the request to the scheduler."""
    monkeypatch.chdir(ROOT)

    def run(scheduler: str, *arguments: str, settings: str = "") -> str:
        options = ["--dryrun", "--workspace=", "-s", scheduler, *(["-cfg", settings] if settings else [])]
        torchx(["run", *options, "pipelines/components.py:stage", *arguments])
        return capsys.readouterr().out.partition("=== SCHEDULER REQUEST ===\n")[2]

    return run


def test_torchx_starts_a_stage_here(dry_run: Callable[..., str]) -> None:
    request = dry_run("local_cwd", "--name", "evaluate@knn")
    assert re.search(r"'args': \[\s*'python',\s*'-m',\s*'peco\.evaluate\.knn\.stage'\]", request)
    assert "'torchrun " in dry_run("local_cwd", "--name", "tokenizer", "-j", "1x2")


def test_torchx_starts_a_stage_on_slurm(dry_run: Callable[..., str]) -> None:
    options = ("--cpu", "3", "--memMB", "2000", "--threads", "3")
    script = dry_run("slurm", "--name", "evaluate@knn", *options, settings="partition=batch,time=60")
    assert "--partition=batch --time=60 " in script and " --cpus-per-task=3 --mem=2000" in script
    assert re.search(r"srun .*PECO_THREADS=3\S* python -m peco\.evaluate\.knn\.stage\n", script)
    script = dry_run("slurm", "--name", "tokenizer", "-j", "2x4", "--gpu", "4")
    assert script.count("--nnodes 2 --nproc_per_node 4 ") == 2 and "#SBATCH hetjob" in script


@pytest.mark.parametrize("j", ["1x1", "2x2"])
def test_torchx_starts_a_stage_on_volcano_where_pods_are_restricted(dry_run: Callable[..., str], j: str) -> None:
    pod = ("--image", "example/peco:1", "--folder", "/peco/mine", "--mounts", "type=volume,src=peco,dst=/peco")
    settings = "namespace=vision,queue=peco,service_account=peco-job,validate_spec=False"
    job = yaml.safe_load(dry_run("kubernetes", "--name", "tokenizer", "-j", j, *pod, settings=settings))
    assert job["spec"]["queue"] == "peco"
    assert len(job["spec"]["tasks"]) == int(j[0])
    for task in job["spec"]["tasks"]:
        spec = task["template"]["spec"]
        assert restricted_violations(spec) == []
        assert spec["serviceAccountName"] == "peco-job"
        assert {"name": "mount-0", "persistentVolumeClaim": {"claimName": "peco"}} in spec["volumes"]
        [container] = spec["containers"]
        assert container["workingDir"] == "/peco/mine"
        assert {"name": "PYTHONPATH", "value": "/peco/mine"} in container["env"]
        assert "peco.stages.tokenizer" in " ".join(container["command"])


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_names_are_valid_for_kubernetes_and_rendezvous(stage: Stage) -> None:
    for j in ("1x1", "2x2"):
        app = components.stage(stage.name, j=j)
        assert [app.name, *(role.name for role in app.roles)] == [stage.name.role, stage.name.role]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", stage.name.role)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_one_process_is_started_without_torchrun(stage: Stage) -> None:
    role = components.stage(stage.name, threads=3, workers=2, env={"X": "1"}).roles[0]
    assert [role.entrypoint, *role.args] == ["python", "-m", stage.name.module]
    assert role.env == {"PECO_WORKERS": "2", "GOMP_SPINCOUNT": "10000", "X": "1"} | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PECO_THREADS"), "3"
    )


@pytest.mark.parametrize("stage", DISTRIBUTED, ids=lambda stage: stage.name)
@pytest.mark.parametrize(("j", "nodes", "processes"), [("1x2", 1, 2), ("2x1", 2, 1), ("4x8", 4, 8)])
def test_several_processes_are_started_by_torchrun(stage: Stage, j: str, nodes: int, processes: int) -> None:
    app = components.stage(stage.name, j=j, threads=2, port=29777)
    command = " ".join(app.roles[0].args)
    assert app.roles[0].num_replicas == nodes
    assert f"--nnodes {nodes} --nproc_per_node {processes}" in command
    assert command.endswith(f"-m {stage.name.module}")
    assert ("29777" in command) == (nodes > 1)
    assert app.roles[0].env["OMP_NUM_THREADS"] == "2"


def test_stages_that_train_or_tokenize_take_a_number_of_processes() -> None:
    trained = ["evaluate@finetune", "evaluate@segmentation", "evaluate@detection"]
    assert [stage.name for stage in DISTRIBUTED] == ["perceptual_net", "tokenizer", "tokens", "pretrain", *trained]


def test_threads_are_left_to_the_libraries_unless_set() -> None:
    assert "OMP_NUM_THREADS" not in components.stage("shards").roles[0].env
