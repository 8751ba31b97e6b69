"""Demands that a cluster refuses, or can never meet: one line on what is wrong and what to do, and no job."""

from __future__ import annotations

import signal

import pytest
from harness import Client, find
from project import Project


def refused(project: Project, line: str, **changes: str) -> None:
    """Launch, and expect this line and no job."""
    status, lines = project.launch(PECO_RETRIES="1", **changes).end()
    assert status == 2
    find(lines, f"error: {line}")
    assert project.created not in lines
    assert project.client.cluster.find_all("jobs.batch.volcano.sh") == []


@pytest.mark.core
def test_a_queue_that_does_not_exist(project: Project) -> None:
    refused(project, "there is no queue no-such-queue; name another in PECO_QUEUE .*", PECO_QUEUE="no-such-queue")


@pytest.mark.core
def test_a_closed_queue(project: Project, closed_queue: str) -> None:
    refused(project, f"queue {closed_queue} is closed; name another in PECO_QUEUE .*", PECO_QUEUE=closed_queue)


@pytest.mark.core
def test_an_account_without_rights(project: Project, client: Client) -> None:
    path = client.kubeconfig("/tmp/kubeconfig-job", account="peco-job")
    refused(
        project,
        r"not allowed to get jobs\.batch\.volcano\.sh in namespace .*; give \S+:peco-job the role peco-jobs .*",
        KUBECONFIG=path,
        KUBERNETES_SERVICE_HOST="",
    )


@pytest.mark.core
def test_a_quota_is_not_reported_as_a_missing_right(project: Project, no_quota: None) -> None:
    namespace = project.client.cluster.settings.namespace
    refused(
        project,
        rf"quota peco of namespace {namespace} has no room \(count/jobs\.batch\.volcano\.sh 0 of 0 in use, 1 asked for\): .*",
    )


def test_pod_security(project: Project) -> None:
    process = project.launch(PECO_CAPABILITIES="IPC_LOCK", PECO_RETRIES="1")
    status, lines = process.end()
    assert status == 2
    find(lines, r"error: tokenizer: .*pod security restricted:?.* forbids the job's pods: .*IPC_LOCK.*")


@pytest.mark.core
def test_more_than_the_queue_can_ever_give(project: Project) -> None:
    queue = project.client.cluster.settings.namespace
    refused(
        project,
        rf"the job asks for cpu 500.*; queue {queue} has cpu 200 in all: ask for less, or have the queue enlarged",
        PECO_CPU="500",
    )


def test_a_gpu_that_no_node_has_is_named_while_the_job_waits(project: Project) -> None:
    process = project.launch(PECO_GPUS="1", PECO_GPU_RESOURCE="example.com/none")
    process.wait_for_line(f"tokenizer: job {project.job} has been waiting for ")
    process.kill(signal.SIGTERM)
    status, lines = process.end()
    assert status == 128 + signal.SIGTERM
    find(lines, rf"tokenizer: job {project.job} has been waiting for .*example\.com/none.*")
