"""`make pipeline-submit WAIT=1`: a run is followed to its end, and a failed one to its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kfp_answers import failed_pod, moment, pod_name, waiting_pod
from kfp_api import KfpApi
from kfp_project import between_requests, run
from kubernetes.config import kube_config

from pipelines.kfp import follow

POD = pod_name("root(0).tokenizer(0).executor(0)")


def changes(kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """The output about the run after its address, without times and name, and the error without the name."""
    name, captured = kubeflow.runs[0]["display_name"], capsys.readouterr()
    lines = [line.partition(name)[2].strip(" :") for line in captured.out.splitlines()[1:]]
    return lines, captured.err.removeprefix(f"error: {name}: ").rstrip("\n")


def test_waiting_prints_each_change_of_a_stage_once_and_the_command_that_fetches_the_results(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    done = dict.fromkeys(["shards", "tokenizer", "evaluate-knn", "evaluate-linear", "collect"], "SUCCEEDED")
    kubeflow.script = [
        moment("PENDING"),
        moment("RUNNING", driver="PENDING"),
        moment("RUNNING", {"shards": "PENDING"}),
        moment("RUNNING", {"shards": "RUNNING"}),
        moment("RUNNING", {"shards": "SUCCEEDED", "tokenizer": "SUCCEEDED", "evaluate-knn": "RUNNING"}),
        moment("SUCCEEDED", {**done, "evaluate-linear": "SUCCEEDED"}),
    ]
    run("--wait")
    lines, _ = changes(kubeflow, capsys)
    assert lines[:-1] == [
        "shards: running", "shards: succeeded", "tokenizer: succeeded", "evaluate@knn: running", "evaluate@knn: succeeded",
        "evaluate@linear: succeeded", "collect: succeeded", "succeeded",
    ]  # fmt: skip
    assert lines[-1] == "` fetches the results."


def test_a_success_names_the_stages_of_which_kubeflow_reported_no_end(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kubeflow reports no more tasks of a run whose record is too large."""
    kubeflow.script = [moment("SUCCEEDED", {"shards": "SUCCEEDED", "tokenizer": "RUNNING"})]
    run("--wait")
    lines, _ = changes(kubeflow, capsys)
    unseen = "collect, evaluate@knn, evaluate@linear, tokenizer"
    assert lines[2] == f"succeeded (Kubeflow has not reported the end of {unseen})"


@pytest.mark.parametrize(
    ("pods", "logs"),
    [
        ({POD: failed_pod("the volume is full")}, {}),
        ({POD: failed_pod()}, {POD: "step tokenizer\nerror: tokenizer: the volume is full\nError: exit status 1\n"}),
        (
            {},
            {
                POD: "error: tokenizer: the volume is full\nERROR: failed to reproduce 'tokenizer'\n"
                "error: tokenizer: not finished; see the reason above. Fix it and retry: the stage resumes\n"
            },
        ),
    ],
    ids=["in the pod", "in its log", "in the log that the API server has"],
)
def test_a_failed_run_ends_with_the_step_and_its_reason(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str], pods: dict[str, Any], logs: dict[str, str]
) -> None:
    kubeflow.pods, kubeflow.logs = pods, logs
    failed = {"shards": "SUCCEEDED", "tokenizer": "FAILED", "evaluate-knn": "OMITTED", "collect": "OMITTED"}
    kubeflow.script = [moment("FAILED", failed)]
    run("--wait", status=1)
    assert changes(kubeflow, capsys)[1] == "step tokenizer failed: the volume is full"


def test_where_the_reason_can_not_be_read_the_command_and_the_page_are_printed(
    kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PECO_NAMESPACE", "team")
    kubeflow.script = [moment("FAILED", {"tokenizer": "FAILED"})]
    run("--wait", status=1)
    page = f"{kubeflow.address}/#/runs/details/run-0"
    assert (
        changes(kubeflow, capsys)[1]
        == f"step tokenizer failed; `kubectl -n team logs {POD} -c main` or {page} shows why"
    )


def test_a_pod_that_failed_is_reported_before_kubeflow_ends_the_run(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.pods = {POD: failed_pod("the volume is full")}
    failing = moment("RUNNING", {"shards": "SUCCEEDED", "tokenizer": "FAILING"})
    kubeflow.script = [
        moment("RUNNING", {"tokenizer": "RUNNING"}),
        failing,
        failing,
        moment("FAILED", {"tokenizer": "FAILED"}),
    ]
    run("--wait", status=1)
    assert changes(kubeflow, capsys)[0] == [
        "tokenizer: running", "shards: succeeded", "tokenizer: its pod failed: the volume is full", "tokenizer: failed",
    ]  # fmt: skip


def test_the_tasks_of_a_run_that_has_just_failed_are_read_again(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.pods = {POD: failed_pod("the volume is full")}
    before, after = ({"shards": "SUCCEEDED", "tokenizer": state} for state in ("RUNNING", "FAILED"))
    kubeflow.script = [moment("FAILED", before), moment("FAILED", after)]
    run("--wait", status=1)
    assert changes(kubeflow, capsys)[1] == "step tokenizer failed: the volume is full"


def test_a_failed_run_of_which_kubeflow_reports_no_failed_step_names_its_page(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.script = [moment("FAILED", {"tokenizer": "RUNNING"})]
    run("--wait", status=1)
    page = f"{kubeflow.address}/#/runs/details/run-0"
    assert changes(kubeflow, capsys)[1] == f"failed, but Kubeflow does not report which step; see its page: {page}"


def test_a_terminated_run_is_reported_as_terminated(kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Kubeflow calls it failed, and so each of its steps that was running or had not begun."""
    failed = moment("FAILED", {"shards": "SUCCEEDED", "tokenizer": "FAILED"}, history="PENDING RUNNING CANCELING")
    canceling = moment("CANCELING", {"shards": "SUCCEEDED", "tokenizer": "RUNNING"}, history="PENDING RUNNING")
    kubeflow.script = [canceling, canceling, failed]
    run("--wait", status=1)
    lines, error = changes(kubeflow, capsys)
    assert lines[-2:] == ["is being terminated; waiting for its steps to end", "tokenizer: failed"]
    assert error == "was terminated; finished work is kept, and the same command submits it again"


def test_a_run_that_fails_after_it_was_terminated_and_retried_is_not_reported_as_terminated(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.pods = {POD: failed_pod("the volume is full")}
    history = "PENDING RUNNING CANCELING FAILED RUNNING"
    before, after = ({"shards": "SUCCEEDED", "tokenizer": state} for state in ("RUNNING", "FAILED"))
    kubeflow.script = [moment("FAILED", before, history=history), moment("FAILED", after, history=history)]
    run("--wait", status=1)
    assert changes(kubeflow, capsys)[1] == "step tokenizer failed: the volume is full"


@pytest.mark.parametrize(
    ("script", "pod", "what"),
    [
        (
            moment("FAILED", driver="FAILED"),
            pod_name("root-driver(0)", "system-dag-driver"),
            "Kubeflow's driver of the run failed, before the first step",
        ),
        (
            moment("FAILED", {"shards": "SUCCEEDED", "tokenizer": "DRIVER FAILED"}),
            pod_name("root(0).tokenizer-driver(0)", "system-container-driver"),
            "Kubeflow's driver of step tokenizer failed",
        ),
    ],
)
def test_a_failed_driver_of_kubeflow_is_reported_with_what_to_look_at(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str], script: dict[str, Any], pod: str, what: str
) -> None:
    advice = "; check `defaultPipelineRoot` in the ConfigMap kfp-launcher, and Kubeflow's bucket and its keys"
    kubeflow.script = [script]
    run("--wait", status=1)
    page = f"{kubeflow.address}/#/runs/details/run-0"
    assert (
        changes(kubeflow, capsys)[1] == f"{what}; `kubectl -n kubeflow logs {pod} -c main` or {page} shows why{advice}"
    )


def test_a_pod_that_does_not_start_is_reported_with_what_it_waits_for(
    kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    kubeflow.pods = {POD: waiting_pod("ErrImagePull", "no such image")}
    waiting = moment("RUNNING", {"tokenizer": "PENDING"})
    kubeflow.script = [waiting, waiting, moment("SUCCEEDED", {"tokenizer": "SUCCEEDED"})]
    run("--wait")
    assert changes(kubeflow, capsys)[0][:2] == ["tokenizer: running", "tokenizer: waits: ErrImagePull: no such image"]


def test_a_pod_that_does_not_start_and_can_not_be_read_is_named(
    kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    waiting = moment("RUNNING", {"tokenizer": "PENDING"})
    kubeflow.script = [waiting, waiting, moment("SUCCEEDED", {"tokenizer": "SUCCEEDED"})]
    run("--wait")
    why = f"waits: its pod has not started; `kubectl -n kubeflow describe pod {POD}` shows why"
    assert changes(kubeflow, capsys)[0][1] == f"tokenizer: {why}"


@pytest.mark.parametrize(
    ("linear", "lines"),
    [
        (
            "PENDING",
            [
                "evaluate@knn: waits: its pod has not started; `kubectl -n kubeflow describe pod {knn}` shows why",
                "evaluate@linear: waits: its pod has not started; `kubectl -n kubeflow describe pod {linear}` shows why",
            ],
        ),
        (
            "RUNNING",
            [
                "evaluate@knn, evaluate@linear: 1 of their 2 pods not started; `kubectl -n kubeflow describe pod {knn} {linear}` "
                "shows which"
            ],
        ),
    ],
)
def test_pods_of_several_steps_that_do_not_start_and_can_not_be_read_are_named(
    kubeflow: KfpApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    linear: str,
    lines: list[str],
) -> None:
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    waiting = moment("RUNNING", {"evaluate-knn": "PENDING", "evaluate-linear": linear})
    kubeflow.script = [waiting, waiting, moment("SUCCEEDED")]
    run("--wait")
    names = {name: pod_name(f"root(0).evaluate-{name}(0).executor(0)") for name in ("knn", "linear")}
    assert changes(kubeflow, capsys)[0][2:-2] == [line.format(**names) for line in lines]


@pytest.mark.parametrize("text", ["a: [", "just a text", "apiVersion: v1\nclusters: 5\n", "contexts: []\n"])
def test_a_broken_kubeconfig_leaves_the_reason_unknown(
    kubeflow: KfpApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    text: str,
) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    kubeflow.script = [moment("FAILED", {"tokenizer": "FAILED"})]
    run("--wait", status=1)
    assert "step tokenizer failed; `kubectl -n kubeflow logs " in changes(kubeflow, capsys)[1]


def test_a_sweep_has_failed_when_one_of_its_runs_has(kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.script = [moment("FAILED", {"shards": "FAILED"}), moment("SUCCEEDED", {"shards": "SUCCEEDED"})]
    run("--wait", "--sweep", "seed=0,1", status=1)
    captured = capsys.readouterr()
    assert "seed-0: step shards failed" in captured.err and "seed-1: succeeded" in captured.out


def test_waiting_outlasts_a_lost_connection(kubeflow: KfpApi) -> None:
    kubeflow.script = [moment("RUNNING", {"shards": "RUNNING"}), moment("SUCCEEDED")]
    kubeflow.break_off = 5
    run("--wait")


def test_waiting_ends_when_the_token_is_no_longer_valid(
    kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.token = "secret"
    monkeypatch.setenv("KFP_TOKEN", "secret")
    kubeflow.script = [moment("RUNNING")]
    between_requests(monkeypatch, lambda: setattr(kubeflow, "token", "other"))
    run("--wait", status=2)
    assert "the token was refused" in capsys.readouterr().err


def test_after_ctrl_c_the_run_continues_and_the_same_command_follows_again(
    kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    kubeflow.script = [moment("RUNNING"), moment("SUCCEEDED")]
    with monkeypatch.context() as context:
        between_requests(context, interrupt)
        run("--wait", status=130)
    error = capsys.readouterr().err
    assert (
        f"still running: {kubeflow.address}/#/runs/details/run-0" in error and "The same command follows again" in error
    )
    assert not any("terminate" in request for request in kubeflow.requests)
    run("--wait")
    assert len(kubeflow.runs) == 1
