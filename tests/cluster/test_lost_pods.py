"""Pods that the cluster takes away: the launcher starts the job again by itself, and the training resumes."""

from __future__ import annotations

import pytest
from harness import Cluster, find
from project import STEPS, Project

RESUMES = rf"tokenizer  resumes from step \d+/{STEPS}"


def take_away(cluster: Cluster, pod: str, way: str) -> None:
    if way == "evicted":
        cluster.evict(pod)
    else:
        options = ("--force", "--grace-period=0") if way == "deleted by force" else ()
        cluster.delete("pod", pod, *options)


@pytest.mark.parametrize("way", [pytest.param("deleted", marks=pytest.mark.core), "deleted by force", "evicted"])
def test_a_lost_pod_is_started_again_and_gives_the_same_results(
    project: Project, cluster: Cluster, lock: str, way: str
) -> None:
    process = project.repro(PECO_RETRIES="1")
    project.wait_for_checkpoint()
    [pod] = project.running()
    take_away(cluster, pod, way)
    status, lines = process.end()
    assert status == 0, lines
    find(lines, r"tokenizer: .* preempted or evicted.*; retry 1 of 1 in 10 s")
    assert lines.count(project.created) == 2
    find(lines, RESUMES)
    assert project.lock() == lock


def test_a_lost_pod_without_a_retry_is_a_temporary_error(project: Project, cluster: Cluster) -> None:
    process = project.launch(PECO_RETRIES="0")
    project.wait_for_checkpoint()
    [pod] = project.running()
    take_away(cluster, pod, "evicted")
    status, lines = process.end()
    assert status == 75
    find(
        lines,
        rf"error: tokenizer: pod {pod} was preempted or evicted.*; run again, it resumes from the last checkpoint",
    )


@pytest.mark.disposable
def test_a_drained_node_is_waited_for(project: Project, cluster: Cluster, lock: str) -> None:
    process = project.repro(PECO_RETRIES="1")
    project.wait_for_checkpoint()
    nodes = [entry["metadata"]["name"] for entry in cluster.find_all("nodes")]
    selector = f"--pod-selector=volcano.sh/job-name={project.job}"
    try:
        cluster.kubectl("drain", *nodes, selector, "--delete-emptydir-data", "--force")
        process.wait_for_line(f"tokenizer: job {project.job} has been waiting for ")
    finally:
        cluster.kubectl("uncordon", *nodes)
    status, lines = process.end()
    assert status == 0, lines
    find(lines, RESUMES)
    assert project.lock() == lock
