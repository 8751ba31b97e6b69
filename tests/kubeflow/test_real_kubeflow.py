"""Runs on a real Kubeflow Pipelines: `make test-kubeflow`, from a checkout whose pushed commit has the parameters of `smoke`.

    make params PRESET=smoke && git add -A && git commit -m smoke && git push && dvc push
    KFP_HOST=… PECO_IMAGE=… make test-kubeflow       # and the other variables of make pipeline-submit; kubectl in the namespace

Each test changes a parameter of its own, so that its run is a new one and earlier stages come from the run-cache.
"""

from __future__ import annotations

import os
import uuid

import kfp
import pytest
import yaml
from submitting import ROOT, Submit, items, kubectl, live_jobs, pulled_lock, wait_for

# Changes the results of no stage but one, and is new in each call of the tests.
NEW = int(uuid.uuid4().hex[:6], 16)
LONG = "tokenizer.optim.epochs=9000"


@pytest.fixture(scope="module", autouse=True)
def smoke() -> None:
    """The preset of the commit."""
    preset = yaml.safe_load((ROOT / "params.yaml").read_text())["preset"]
    assert preset == "smoke", f"params.yaml has preset {preset}; commit and push the one of `make params PRESET=smoke`"


@pytest.fixture
def kubeflow() -> kfp.Client:
    """Kubeflow's own client."""
    return kfp.Client(host=os.environ["KFP_HOST"], existing_token=os.environ.get("KFP_TOKEN"))


def test_a_run_shows_each_stage_and_can_be_pulled_and_an_equal_one_comes_from_the_run_cache() -> None:
    first = Submit("--set", f"seed={NEW}", "--wait")
    status, lines = first.end()
    assert status == 0, lines
    stages = [stage for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"] if stage != "evaluate"]
    for stage in stages:
        for state in ("running", "succeeded"):
            assert any(line.endswith(f"  {stage}: {state}") for line in lines), (stage, state, lines)
    assert items("jobs.batch.volcano.sh", "app.kubernetes.io/part-of=peco") == []

    again = Submit("--set", f"seed={NEW}", "--wait", "--force")
    status, lines = again.end()
    assert status == 0, lines
    assert items("jobs.batch.volcano.sh", "app.kubernetes.io/part-of=peco") == []
    assert pulled_lock(again.run().name) == pulled_lock(first.run().name)


def test_a_sweep_is_a_run_for_each_point() -> None:
    status, lines = Submit("--sweep", f"report.images={1 + NEW % 7},{9 + NEW % 7}", "--wait", "--force").end()
    assert status == 0, lines
    assert sum("/runs/details/" in line for line in lines) == 2


def test_a_schedule_is_created_once(kubeflow: kfp.Client) -> None:
    arguments = ("--set", f"seed={NEW + 1}", "--schedule", "6h")
    status, [line] = Submit(*arguments).end()
    assert status == 0
    assert ", every 6 h: " in line
    try:
        status, [second] = Submit(*arguments).end()
        assert status == 0
        assert "is already scheduled" in second
    finally:
        kubeflow.delete_recurring_run(line.rpartition("/")[2])


def test_a_terminated_run_leaves_no_job(kubeflow: kfp.Client) -> None:
    submit = Submit("--set", f"seed={NEW + 2}", LONG, "--wait")
    wait_for(lambda: live_jobs("tokenizer"), "the tokenizer is trained")
    kubeflow.terminate_run(submit.run().id)
    wait_for(lambda: not live_jobs("tokenizer"), "its job has ended", 120)
    status, lines = submit.end()
    assert status == 1
    assert lines[-1].startswith(f"error: {submit.run().name}: was terminated; ")


def test_a_step_whose_pod_is_lost_is_started_again_and_the_run_succeeds() -> None:
    submit = Submit("--set", f"seed={NEW + 3}", "tokenizer.optim.epochs=60", "--wait")
    [job] = wait_for(lambda: live_jobs("tokenizer"), "the tokenizer is trained")
    [found] = [entry for entry in items("jobs.batch.volcano.sh", "") if entry["metadata"]["name"] == job]
    kubectl("delete", "pod", found["metadata"]["ownerReferences"][0]["name"])
    status, lines = submit.end()
    assert status == 0, lines


def test_a_preempted_training_resumes_in_the_same_step() -> None:
    submit = Submit("--set", f"seed={NEW + 4}", "tokenizer.optim.epochs=60", "--wait")
    [job] = wait_for(lambda: live_jobs("tokenizer"), "the tokenizer is trained")
    kubectl("delete", "pod", f"--selector=volcano.sh/job-name={job}")
    status, lines = submit.end()
    assert status == 0, lines


def test_a_failed_step_is_reported_with_its_reason() -> None:
    submit = Submit("--set", f"seed={NEW + 5}", "--wait", PECO_MEMORY_TOKENIZER="128Mi", PECO_SHARED_MEMORY="32Mi")
    status, lines = submit.end()
    assert status == 1
    assert lines[-1].startswith(f"error: {submit.run().name}: step tokenizer failed: ")
    assert "ran out of memory and was killed; raise memory 128Mi" in lines[-1]
