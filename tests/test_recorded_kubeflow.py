"""The size of a run's record in Argo, and what is printed for answers that a real Kubeflow has given.

PECO_TEST_KFP names a folder of answers of Kubeflow Pipelines 2.17.0 and Argo Workflows 4.0.5, recorded with an earlier pipeline.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kfp_answers
import pytest
import workflow_size
import yaml

from pipelines import submit
from pipelines.kfp import compile as compiler
from pipelines.kfp import follow
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.target import Target
from pipelines.workflow.graph import load_graph

ROOT = Path(__file__).parents[1]
# Argo compresses a larger status, and then Kubeflow shows the run's tasks as they were before.
ARGO_LIMIT = 1024 * 1024
RUN = Parameters(
    "https://git.example.com/team/peco.git",
    "0" * 40,
    "imagenet_vit_b",
    0,
    "tokenizer.perceptual.weight=0",
    "run-0000000",
)


@pytest.fixture
def recorded() -> Path:
    """The folder of recorded answers."""
    folder = os.environ.get("PECO_TEST_KFP")
    if not folder:
        pytest.skip("PECO_TEST_KFP names no folder of recorded answers of Kubeflow")
    return Path(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The compiled pipeline of dvc.yaml and its settings of Kubernetes."""
    file = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    target = Target(image="registry.example.com/team/peco:0123456789ab", settings={"PECO_QUEUE": "peco"})
    compiler.compile(file, load_graph(ROOT), target, RUN)
    ir, platform = yaml.safe_load_all(file.read_text())
    return ir, platform


# Size


def test_the_computed_size_is_that_of_a_recorded_run(recorded: Path) -> None:
    run = load(recorded / "b-run-5-end-succeeded-stale-tasks.json")["body"]
    nodes = load(recorded / "b-workflow-4-end-nodes-decompressed.json")
    spec = run["pipeline_spec"]
    computed = workflow_size.status_bytes(
        spec["pipeline_spec"], spec["platform_spec"], run["runtime_config"]["parameters"], outputs_of(nodes)
    )
    assert computed == pytest.approx(len(workflow_size.text(nodes).encode()), rel=0.02)


def test_the_record_of_a_whole_run_stays_readable_for_kubeflow(pipeline: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """14 stages and `collect`: each started once, and each started again twice, as often as Kubeflow does."""
    assert len(pipeline[0]["root"]["dag"]["tasks"]) == 15
    sizes = [workflow_size.status_bytes(*pipeline, dataclasses.asdict(RUN), attempts=attempts) for attempts in (1, 3)]
    assert sizes == [400_015, 513_581]
    assert sizes[1] < ARGO_LIMIT / 2


def test_a_third_of_the_record_is_of_this_project(pipeline: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Kubeflow itself writes the rest: 15 tasks without inputs, outputs, variables and volumes."""
    ir, platform = copy.deepcopy(pipeline)
    for task in ir["root"]["dag"]["tasks"].values():
        component = ir["components"][task["componentRef"]["name"]]
        label = component["executorLabel"]
        container = ir["deploymentSpec"]["executors"][label]["container"]
        settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]
        task.pop("inputs", None)
        component.pop("inputDefinitions", None)
        component.pop("outputDefinitions", None)
        container |= {"command": ["true"], "args": [], "env": []}
        settings["pvcMount"] = []
        for key in ("secretAsVolume", "fieldPathAsEnv", "podMetadata"):
            settings.pop(key, None)
    assert workflow_size.status_bytes(ir, platform, {}) == 269_863


# Answers


class Recorded:
    """A Kubeflow that gives recorded answers for a run, the last one again and again, and shows these pods."""

    def __init__(self, runs: list[Any], pods: Mapping[str, Any]) -> None:
        self.runs, self.pods = runs, pods

    def get_run(self, run_id: str) -> Any:
        return self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]

    def run_address(self, run_id: str) -> str:
        return "PAGE"

    def read(self, path: str, query: Mapping[str, str]) -> str | None:
        pod = self.pods.get(query["podname"]) if path == "/k8s/pod" else None
        return None if pod is None else json.dumps(pod)


def watch(
    folder: Path, names: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **pods: Any
) -> tuple[int, list[str], str]:
    """Follow a run by its recorded answers: status, lines without time and name, and the error."""
    from kfp_server_api import ApiClient

    answers = [load(folder / f"{name}.json")["body"] for name in names]
    runs = [ApiClient().deserialize(SimpleNamespace(data=json.dumps(answer)), "V2beta1Run") for answer in answers]
    spec = answers[0]["pipeline_spec"]
    steps = submit.steps(yaml.safe_dump_all([spec["pipeline_spec"], spec["platform_spec"]]))
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    kubeflow: Any = Recorded(runs, pods)
    status = follow.follow(kubeflow, [follow.Followed(runs[0].run_id, "RUN", steps, {"PECO_NAMESPACE": "peco"})])
    captured = capsys.readouterr()
    lines = [line.partition("RUN")[2].strip(" :") for line in captured.out.splitlines()]
    return status, lines, captured.err.removeprefix("error: RUN: ").strip()


def test_a_step_that_failed_is_found_though_its_tasks_were_late(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["c2-run-failing", "c2-run-failed-tasks-not-yet", "c2-run-end"]
    pod = load(recorded / "c2-pod-step-failed.json")["metadata"]["name"]
    status, lines, error = watch(recorded, names, capsys, monkeypatch)
    assert status == 1 and lines[-1] == "tokenizer: failed"
    assert error == f"step tokenizer failed; `kubectl -n peco logs {pod} -c main` or PAGE shows why"


def test_the_termination_message_of_the_pod_is_the_reason(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = load(recorded / "c2-pod-step-failed.json")
    [main] = [each for each in pod["status"]["containerStatuses"] if each["name"] == "main"]
    main["state"]["terminated"]["message"] = "its pod ran out of memory"
    pods = {pod["metadata"]["name"]: pod}
    _, lines, error = watch(recorded, ["c2-run-failing", "c2-run-end"], capsys, monkeypatch, **pods)
    assert lines[-2:] == ["tokenizer: its pod failed: its pod ran out of memory", "tokenizer: failed"]
    assert error == "step tokenizer failed: its pod ran out of memory"


@pytest.mark.parametrize("name", ["e1-run-end", "e2-run-end-terminated-after-compression", "i-run-end-terminated"])
def test_a_run_that_was_terminated_is_reported_as_terminated(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    status, _, error = watch(recorded, [name], capsys, monkeypatch)
    assert status == 1 and error == "was terminated; finished work is kept, and the same command submits it again"


def test_the_termination_of_a_run_is_reported_at_once(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["e1-run-right-after-terminate", "e1-run-canceling-step-failed", "e1-run-end"]
    _, lines, _ = watch(recorded, names, capsys, monkeypatch)
    assert lines[-2:] == ["is being terminated; waiting for its steps to end", "tokenizer: failed"]


def test_a_failed_driver_is_reported_with_what_to_look_at(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = load(recorded / "f2-pod-root-driver-failed.json")["metadata"]["name"]
    _, lines, error = watch(recorded, ["f2-run-end"], capsys, monkeypatch)
    what = "Kubeflow's driver of the run failed, before the first step"
    advice = "check `defaultPipelineRoot` in the ConfigMap kfp-launcher, and Kubeflow's bucket and its keys"
    assert error == f"{what}; `kubectl -n peco logs {pod} -c main` or PAGE shows why; {advice}" and not lines


def test_an_image_that_can_not_be_pulled_is_what_the_pod_waits_for(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = load(recorded / "i-pod-step-image-missing.json")
    names = ["i-run-image-missing", "i-run-image-missing", "i-run-end-terminated"]
    _, lines, _ = watch(recorded, names, capsys, monkeypatch, **{pod["metadata"]["name"]: pod})
    assert lines[0] == "shards: running"
    assert lines[1].startswith('shards: waits: ErrImagePull: failed to pull and unpack image "localhost/peco:nosuch"')


def test_the_stages_of_which_kubeflow_reported_no_end_are_named(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, lines, _ = watch(recorded, ["b-run-5-end-succeeded-stale-tasks"], capsys, monkeypatch)
    assert status == 0 and lines[-1].startswith("succeeded (Kubeflow has not reported the end of collect, evaluate@")


@pytest.mark.parametrize("name", ["c2-run-end", "f2-run-end", "i-run-image-missing", "e1-run-right-after-terminate"])
def test_the_server_of_the_tests_answers_with_what_the_real_one_has(recorded: Path, name: str) -> None:
    """Runs and tasks have the fields that the real ones have, and no others."""
    answer = load(recorded / f"{name}.json")["body"]
    made = kfp_answers.moment(answer["state"], {"shards": "SUCCEEDED", "tokenizer": "FAILED", "tokens": "OMITTED"})
    assert set(made) <= set(answer)
    assert {key for task in made["run_details"]["task_details"] for key in task} == {
        key for task in answer["run_details"]["task_details"] for key in task
    }


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def outputs_of(nodes: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Values of the parameters that tasks output, from the inputs of those after them."""
    found = {}
    for node in nodes.values():
        for parameter in node.get("outputs", {}).get("parameters", ()):
            if parameter["name"] == "pod-spec-patch":
                command = json.loads(parameter["value"])["containers"][0]["command"]
                given = json.loads(command[command.index("--executor_input") + 1])["inputs"]["parameterValues"]
                found |= {
                    (key.removeprefix("pipelinechannel--").removesuffix("-lock"), "lock"): value
                    for key, value in given.items()
                    if key.startswith("pipelinechannel--")
                }
    return found
