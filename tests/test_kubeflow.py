"""The Kubeflow pipeline of dvc.yaml, read back from the compiled YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_graph import dvc_graph

from peco.core.errors import PecoError
from pipelines.kfp import compile as compiler
from pipelines.kfp.page import has_page
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.target import Target
from pipelines.workflow import stage_resources
from pipelines.workflow.graph import Graph, load_graph

ROOT = Path(__file__).parents[1]
GRAPH = load_graph(ROOT)
DEFAULTS = Parameters("https://example.com/r.git", "0" * 40, "tiny", 3, "", "run-0000000")
TARGET = Target(
    image="registry.example.com/peco:1", remote="s3://bucket/peco", remote_endpoint="https://s3.example.com",
    service_account="jobs", settings={"PECO_GPUS": "4"},
)  # fmt: skip


def compiled_edges(ir: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The edges between stages as in `Graph.edges`, as Kubeflow shows them."""
    tasks = ir["root"]["dag"]["tasks"]
    names = {task: entry["taskInfo"]["name"] for task, entry in tasks.items()}
    return {
        (names[task], names[before])
        for task, entry in tasks.items()
        if names[task] != compiler.COLLECT
        for before in entry.get("dependentTasks", ())
    }


class Compiled:
    def __init__(self, folder: Path, graph: Graph, target: Target, defaults: Parameters = compiler.NOTHING) -> None:
        compiler.compile(folder / "pipeline.yaml", graph, target, defaults)
        documents = list(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))
        self.ir: dict[str, Any] = documents[0]
        platforms = (
            documents[1]["platforms"]["kubernetes"] if len(documents) > 1 else {"deploymentSpec": {"executors": {}}}
        )
        self.pods: dict[str, Any] = platforms["deploymentSpec"]["executors"]

    @property
    def tasks(self) -> dict[str, Any]:
        """Tasks by their display names."""
        return {task["taskInfo"]["name"]: task for task in self.ir["root"]["dag"]["tasks"].values()}

    def _executor(self, name: str) -> str:
        label: str = self.ir["components"][self.tasks[name]["componentRef"]["name"]]["executorLabel"]
        return label

    def container(self, name: str) -> dict[str, Any]:
        container: dict[str, Any] = self.ir["deploymentSpec"]["executors"][self._executor(name)]["container"]
        return container

    def pod(self, name: str) -> dict[str, Any]:
        pod: dict[str, Any] = self.pods[self._executor(name)]
        return pod

    def env(self, name: str) -> dict[str, str]:
        return {item["name"]: item["value"] for item in self.container(name)["env"]}

    def inputs(self, name: str) -> dict[str, Any]:
        inputs: dict[str, Any] = self.tasks[name].get("inputs", {}).get("parameters", {})
        return inputs


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("compiled"), GRAPH, TARGET, DEFAULTS)


NAMES = [*GRAPH.stages, compiler.COLLECT]


def test_the_edges_are_those_of_dvc(compiled: Compiled) -> None:
    names, edges = dvc_graph(ROOT)
    assert set(compiled.tasks) == {*names, compiler.COLLECT}
    assert compiled_edges(compiled.ir) == edges


@st.composite
def stages(draw: st.DrawFn) -> dict[str, Any]:
    """A dvc.yaml of some stages in any order; each reads outs of some earlier ones, or the folder of all outs."""
    count = draw(st.integers(1, 6))
    generated = {}
    for number in range(count):
        earlier = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        inner = draw(st.sampled_from(["", "/inner.txt"]))
        generated[f"Stage_{number}-{'x' * draw(st.integers(0, 2))}"] = {
            "cmd": "true",
            "deps": [f"out/{before}{inner}" for before in sorted(earlier)] or ["in"],
            "outs": [f"out/{number}"],
        }
    if draw(st.booleans()):
        generated["all"] = {"foreach": ["a", "b"], "do": {"cmd": "true", "deps": ["out"], "outs": ["${item}"]}}
    return dict(draw(st.permutations(list(generated.items()))))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(generated=stages())
def test_the_edges_are_those_of_dvc_in_any_graph(tmp_path: Path, generated: dict[str, Any]) -> None:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": generated}, sort_keys=False))
    (tmp_path / "params.yaml").write_text("{}")
    found = Compiled(tmp_path, load_graph(tmp_path), TARGET)
    names, edges = dvc_graph(tmp_path)
    assert set(found.tasks) == {*names, compiler.COLLECT}
    assert compiled_edges(found.ir) == edges


def test_the_last_task_comes_after_those_that_no_stage_depends_on(compiled: Compiled) -> None:
    assert compiled.tasks[compiler.COLLECT]["dependentTasks"] == ["report"]


ROOTS = [name for name in GRAPH.stages if not any(stage == name for stage, _ in GRAPH.edges)]
ID = {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}


@pytest.mark.parametrize("name", NAMES)
def test_only_stages_that_depend_on_no_other_receive_the_parameters_of_the_run(compiled: Compiled, name: str) -> None:
    inputs = compiled.inputs(name)
    if name in ROOTS:
        assert set(inputs) == {"run", "stage", *dataclasses.asdict(DEFAULTS)} and inputs["run"] == ID
    else:
        assert inputs == ({"run": ID} if name == compiler.COLLECT else {})


@pytest.mark.parametrize("name", [name for name in GRAPH.stages if name not in ROOTS])
def test_the_other_stages_have_their_name_as_argument_and_the_run_in_their_environment(
    compiled: Compiled, name: str
) -> None:
    container = compiled.container(name)
    page = ["{{$.outputs.artifacts['page'].path}}"] if has_page(GRAPH[name]) else []
    assert container["command"] == ["python3", "-m", "pipelines.kfp.stage_command"]
    assert container["args"] == [name, *page]
    assert compiled.pod(name)["fieldPathAsEnv"] == [
        {"name": "PECO_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
    ]


def test_stages_with_curves_and_the_report_have_a_page_and_the_last_task_the_numbers(compiled: Compiled) -> None:
    outputs = {}
    for name, task in compiled.tasks.items():
        component = compiled.ir["components"][task["componentRef"]["name"]]
        outputs[name] = set(component.get("outputDefinitions", {}).get("artifacts", {}))
    pages = {name for name, artifacts in outputs.items() if artifacts == {"page"}}
    assert pages == {"perceptual_net", "tokenizer", "pretrain", "report"}
    assert outputs[compiler.COLLECT] == {"metrics"}
    assert not any(outputs[name] for name in set(NAMES) - pages - {compiler.COLLECT})


def test_names_of_tasks_are_labels(compiled: Compiled) -> None:
    for task in compiled.ir["root"]["dag"]["tasks"]:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", task)
    assert "evaluate-knn" in compiled.ir["root"]["dag"]["tasks"]


def test_nothing_is_cached_by_kubeflow(compiled: Compiled) -> None:
    for task in compiled.tasks.values():
        assert not task["cachingOptions"].get("enableCache")


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_has_the_volume_and_a_time_limit(compiled: Compiled, name: str) -> None:
    pod = compiled.pod(name)
    assert [(mount["constant"], mount["mountPath"]) for mount in pod["pvcMount"]] == [("peco", "/peco")]
    limit = stage_resources.resolve(GRAPH[name], {}).seconds if name in GRAPH.stages else 0
    assert int(pod["activeDeadlineSeconds"]) > limit
    assert pod["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_requests_few_resources_and_installs_nothing(compiled: Compiled, name: str) -> None:
    container = compiled.container(name)
    assert container["image"] == TARGET.image
    assert container["command"][:2] == ["python3", "-m"]
    assert "accelerator" not in container["resources"]
    assert container["resources"] == compiled.container("shards")["resources"]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_task_may_write_to_git(compiled: Compiled, name: str) -> None:
    pod = compiled.pod(name)
    mounted = {each["mountPath"]: each["secretName"] for each in pod["secretAsVolume"]}
    git = "peco-git-write" if name == compiler.COLLECT else "peco-git-read"
    assert mounted == {"/etc/peco/git": git, "/etc/peco/storage": "peco-storage"}
    assert all(each["optional"] for each in pod["secretAsVolume"])


def test_a_secret_and_certificates_for_the_steps_are_mounted(tmp_path: Path) -> None:
    target = dataclasses.replace(TARGET, step_secret="proxies", ca_configmap="trusted")
    found = Compiled(tmp_path, GRAPH, target)
    for name in NAMES:
        mounted = {each["mountPath"]: each["secretName"] for each in found.pod(name)["secretAsVolume"]}
        assert mounted["/etc/peco/step"] == "proxies"
        (certificates,) = found.pod(name)["configMapAsVolume"]
        assert (certificates["configMapName"], certificates["mountPath"]) == ("trusted", "/etc/peco/ca")
        assert not certificates.get("optional")
        assert found.env(name)["PECO_CA_CONFIGMAP"] == "trusted"


def test_the_environment_of_the_steps_is_what_differs_from_the_defaults_of_a_pod(compiled: Compiled) -> None:
    assert compiled.env("pretrain") == {
        "PECO_REMOTE": "s3://bucket/peco",
        "PECO_REMOTE_ENDPOINT": "https://s3.example.com",
        "PECO_IMAGE": TARGET.image,
        "PECO_SERVICE_ACCOUNT": "jobs",
        "PECO_GPUS": "4",
    }


def test_the_parameters_of_the_pipeline_are_readable_and_have_the_defaults_of_the_caller(compiled: Compiled) -> None:
    inputs = compiled.ir["root"]["inputDefinitions"]["parameters"]
    assert {name: each["defaultValue"] for name, each in inputs.items()} == dataclasses.asdict(DEFAULTS)


def test_on_this_machine_a_pipeline_has_no_settings_of_kubernetes(tmp_path: Path) -> None:
    found = Compiled(tmp_path, GRAPH, Target(volume_claim="", scheduler="local_cwd", workspaces="/w", cache="/c"))
    assert found.pods == {}
    assert found.env("shards") == {"PECO_SCHEDULER": "local_cwd", "PECO_WORKSPACES": "/w", "PECO_CACHE": "/c"}
    assert all(found.inputs(name)["stage"] == {"runtimeValue": {"constant": name}} for name in GRAPH.stages)


def test_a_target_is_read_from_the_environment() -> None:
    env = {
        "PECO_IMAGE": "i", "PECO_REMOTE": "s3://b", "PECO_GIT_WRITE_SECRET": "mine", "PECO_CACHE": "",
        "PECO_GPUS_PRETRAIN": "8", "PECO_NPROC": "2", "PECO_CHECKPOINT_STEPS": "5", "NCCL_SOCKET_IFNAME": "enp3s0",
        "PECO_WORK": "/laptop", "PECO_TEST_DATA": "/laptop/data", "HOME": "/home/me",
    }  # fmt: skip
    assert Target.from_env(env) == Target(
        image="i", remote="s3://b", git_write_secret="mine",
        settings={"PECO_GPUS_PRETRAIN": "8", "PECO_NPROC": "2", "PECO_CHECKPOINT_STEPS": "5"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PECO_PULL_POLICY", "Sometimes", "PECO_PULL_POLICY: 'Sometimes' is not allowed"),
        ("PECO_IMAGE", "https://registry.example.com/peco:1", "PECO_IMAGE: .* without https://"),
        ("PECO_IMAGE", "Peco:1", "PECO_IMAGE: 'Peco:1' is not allowed"),
        ("PECO_IMAGE", "peco:", "PECO_IMAGE: 'peco:' is not allowed"),
        ("PECO_VOLUME_CLAIM", "My_Claim", "PECO_VOLUME_CLAIM: 'My_Claim' is not allowed"),
        ("PECO_STEP_SECRET", "a b", "PECO_STEP_SECRET: 'a b' is not allowed"),
        ("PECO_JOB_SECRET", "S3_KEYS", "PECO_JOB_SECRET: 'S3_KEYS' is not allowed"),
        ("PECO_CA_CONFIGMAP", "-ca", "PECO_CA_CONFIGMAP: '-ca' is not allowed"),
        ("PECO_GIT_READ_SECRET", "Git", "PECO_GIT_READ_SECRET: 'Git' is not allowed"),
        ("PECO_UMASK", "rwx", "PECO_UMASK: 'rwx' is not allowed; expected three octal digits, such as 022"),
        (
            "PECO_STEP_SECRET",
            "peco-storage",
            "PECO_STORAGE_SECRET and PECO_STEP_SECRET both name peco-storage; a pod mounts a secret once",
        ),
    ],
)
def test_what_a_cluster_would_refuse_is_refused_when_compiling(variable: str, value: str, message: str) -> None:
    with pytest.raises(PecoError, match=message):
        Target.from_env({variable: value})


def test_a_wrong_resource_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match="PECO_RETRIES"):
        compiler.compile(tmp_path / "p.yaml", GRAPH, Target(settings={"PECO_RETRIES": "many"}))
    assert not (tmp_path / "p.yaml").exists()
