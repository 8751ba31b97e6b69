"""The resources of a stage: `meta:` first, then the environment."""

from __future__ import annotations

import pytest

from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from pipelines.workflow.graph import Stage, load_graph
from pipelines.workflow.stage_resources import resolve


def stage(name: str = "s", kind: str = "train", **meta: object) -> Stage:
    return Stage(StageName(name), ("x",), (), (), (), meta, kind)


def test_the_environment_wins_over_meta_and_one_stage_over_all() -> None:
    requested = stage("evaluate@finetune", nodes=1, processes=2, memory="1Gi")
    env = {
        "PECO_NODES": "2",
        "PECO_NPROC": "5",
        "PECO_NPROC_EVALUATE_FINETUNE": "7",
        "PECO_MEMORY": "16Gi",
        "PECO_TOLERATIONS": "gpu=yes:NoSchedule",
        "PECO_TIME_LIMIT": "",
    }
    assert resolve(requested, env) == Resources(nodes=2, processes=7, memory="16Gi", tolerations="gpu=yes:NoSchedule")
    assert resolve(stage(processes=2), env).processes == 5


@pytest.mark.parametrize("kind", ["probe", "host", ""])
def test_a_stage_of_one_process_keeps_to_one(kind: str) -> None:
    env = {"PECO_NPROC": "8", "PECO_NODES": "2", "PECO_GPUS": "1"}
    assert resolve(stage(kind=kind, threads=3), env) == Resources(threads=3, gpus=1)
    with pytest.raises(PecoError, match="one process"):
        resolve(stage(kind=kind, processes=2), {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PECO_GPUS", "-1"),
        ("PECO_GPUS", "two"),
        ("PECO_CPU", "0"),
        ("PECO_MEMORY", "16"),
        ("PECO_MEMORY_S", "16 GB"),
        ("PECO_TIME_LIMIT", "1 day"),
        ("PECO_NODE_SELECTOR", "a"),
        ("PECO_TOLERATIONS", "a:Sometimes"),
        ("PECO_TOLERATIONS", "a:NoSchedule,"),
        ("PECO_QUEUE", "Big Queue"),
        ("PECO_GPU_RESOURCE", "gpu"),
        ("PECO_DEVICES", "rdma/hca"),
        ("PECO_DEVICES", "rdma/hca=0"),
        ("PECO_DEVICES", "hca=1"),
        ("PECO_CAPABILITIES", "ipc_lock"),
        ("PECO_CAPABILITIES", "IPC_LOCK,"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, text: str) -> None:
    with pytest.raises(PecoError, match=rf"^{name} \(environment\): .* is not allowed; expected "):
        resolve(stage(), {name: text})


def test_text_takes_the_form_of_kubernetes() -> None:
    resources = Resources(
        time_limit="90m", node_selector="zone=a,kind=gpu", tolerations="gpu=yes:NoSchedule,spot:NoExecute"
    )
    assert resources.seconds == 5400
    assert resources.selector == {"zone": "a", "kind": "gpu"}
    assert resources.tolerated == [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists", "effect": "NoExecute"},
    ]
    assert Resources(cpu=2, gpus=1, gpu_resource="amd.com/gpu", devices="rdma/hca=1,a.example/nic=2").amounts == {
        "cpu": "2",
        "memory": "4Gi",
        "amd.com/gpu": "1",
        "rdma/hca": "1",
        "a.example/nic": "2",
    }
    assert Resources().amounts == {"cpu": "1", "memory": "4Gi"}
    assert Resources().selector == {}
    assert Resources().tolerated == []


def test_every_stage_of_the_workflow_has_a_time_limit_and_retries() -> None:
    for each in load_graph().stages.values():
        assert "time_limit" in each.meta, each.name
        assert each.resources.retries >= 1, each.name
