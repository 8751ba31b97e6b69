"""A job that waits for room: what is reported, and jobs that can never have it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from cluster_launcher import NAME, TIME, WORDS, Json, Launcher, complete, has_sent, leave_event
from kubernetes_api import KubernetesApi

from peco.core.resources import Resources
from pipelines.jobs import waiting

READS = {("get", "queues"), ("list", "nodes")}


# The queue


def queue(name: str = "training", **spec: Any) -> Json:
    """A queue as Volcano 1.14 shows it."""
    return {
        "metadata": {"name": name},
        "spec": {"weight": 1, "reclaimable": True, "dequeueStrategy": "traverse", "parent": "root"} | spec,
        "status": {"state": "Open", "reservation": {}, "allocated": {"cpu": "1200m", "memory": "3221225472"}},
    }


def closed(name: str) -> Json:
    return queue(name) | {"status": {"state": "Closed"}}


GPUS = Resources(nodes=2, gpus=4, cpu=32, memory="64Gi", queue="training")
REQUEST = "2 nodes, each with cpu 32, memory 64Gi, nvidia.com/gpu 4"


@pytest.mark.parametrize(
    ("queues", "line"),
    [
        ([], "there is no queue training; name another in PECO_QUEUE (kubectl get queues.scheduling.volcano.sh)"),
        (
            [closed("training")],
            "queue training is closed; name another in PECO_QUEUE (kubectl get queues.scheduling.volcano.sh)",
        ),
        (
            [queue(capability={"cpu": "64", "memory": "100Gi", "nvidia.com/gpu": "4"})],
            f"the job asks for {REQUEST}, together memory 128Gi, nvidia.com/gpu 8; queue training has memory 100Gi, "
            "nvidia.com/gpu 4 in all: ask for less, or have the queue enlarged",
        ),
        (
            [queue(parent="team"), queue("team", capability={"cpu": "63500m"})],
            f"the job asks for {REQUEST}, together cpu 64; queue team has cpu 63.5 in all: ask for less, or have the queue "
            "enlarged",
        ),
    ],
)
def test_a_job_that_its_queue_can_never_take_is_not_created(
    api: KubernetesApi, start: Launcher, queues: list[Json], line: str
) -> None:
    api.forbidden -= READS
    api.queues = {each["metadata"]["name"]: each for each in [*queues, queue("root")]}
    assert start(GPUS) == (2, [f"error: {line}"])
    assert api.verbs() == []


@pytest.mark.parametrize("capability", [None, {"cpu": "64", "memory": "128Gi", "nvidia.com/gpu": "8"}, {"pods": "1"}])
def test_a_job_as_large_as_its_queue_is_created(
    api: KubernetesApi, start: Launcher, capability: dict[str, str] | None
) -> None:
    api.forbidden -= READS
    found = queue(parent="")
    if capability:
        found["spec"]["capability"] = capability
    api.queues = {"training": found}
    assert start(GPUS, lambda: complete(api)) == (0, [])


def test_a_queue_that_the_account_cannot_read_is_not_checked(api: KubernetesApi, start: Launcher) -> None:
    assert start(GPUS, lambda: complete(api)) == (0, [])


# Waiting for room


def test_the_reason_of_the_scheduler_is_reported_once(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_NOTE_SECONDS", 0.0)
    reason = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    api.waiting = {"conditions": [{"type": "PodScheduled", "status": "False", "message": reason}]}

    def scenario() -> None:
        api.wait_for(lambda: len(start.notes) > 1)
        api.wait_for(has_sent(api, "/pods", 10))
        complete(api)

    status, [line] = start(scenario=scenario)
    assert status == 0
    assert re.match(rf"tokenizer: job {NAME} has been waiting for \d+ s: {reason}; it asks for ", line)


def node(name: str, labels: Json | None = None, taints: list[Json] | None = None, **allocatable: str) -> Json:
    amounts = {key.replace("gpu", "nvidia.com/gpu"): value for key, value in allocatable.items()}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {"allocatable": amounts},
    }


SMALL = node("a", cpu="2", memory="24326832Ki")
LARGE = node("b", cpu="64", memory="500Gi", gpu="8")
TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
COMMANDS = (
    "for an administrator: kubectl -n peco describe podgroups.scheduling.volcano.sh {group}; kubectl describe "
    "queues.scheduling.volcano.sh training; kubectl describe nodes"
)


def notice(api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch, words: str | None) -> str:
    """The first notice of a job that is not admitted, without its start and the group's name."""
    monkeypatch.setattr(waiting, "FIRST_NOTE_SECONDS", 0.5)
    api.admits = False
    group: list[str] = []

    def scenario() -> None:
        if words:
            leave_event(api, "Unschedulable", WORDS[words], of_group=True)
            gang = "0/0 tasks in gang unschedulable: pod group is not ready, 1 minAvailable"
            leave_event(api, "Unschedulable", gang, of_group=True)
        group.append(f"{NAME}-{api.job()['metadata']['uid']}")
        api.wait_for(has_sent(api, "/nodes"))
        complete(api)

    status, [line] = start(dataclasses.replace(GPUS, nodes=1), scenario)
    assert status == 0
    found = re.fullmatch(rf"tokenizer: job {NAME} has been waiting for \d+ s: (.*)", line)
    assert found
    return found[1].replace(group[0], "{group}")


def test_a_waiting_job_reports_what_it_asks_for_and_what_there_is(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.forbidden -= READS
    api.queues = {"training": queue(capability={"cpu": "200", "memory": "1500Gi", "nvidia.com/gpu": "16"}, parent="")}
    api.nodes = [SMALL]
    assert notice(api, start, monkeypatch, "queue-full") == (
        "queue resource quota insufficient: insufficient memory; it asks for cpu 32, memory 64Gi, nvidia.com/gpu 4; in use in "
        "queue training: cpu 1.2 of 200, memory 3Gi of 1500Gi, nvidia.com/gpu 0 of 16; none of 1 nodes is large enough, at most "
        f"cpu 2, memory 23.2Gi, nvidia.com/gpu 0; {COMMANDS}"
    )


def test_what_the_account_cannot_see_is_reported_as_such(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.forbidden.add(("list", "events"))
    assert notice(api, start, monkeypatch, None) == (
        "no room yet in queue training; it asks for cpu 32, memory 64Gi, nvidia.com/gpu 4; this account can't read queue training; "
        f"this account can't read nodes; {COMMANDS}"
    )


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([SMALL, LARGE], "1 of 2 nodes are large enough when they are free"),
        ([SMALL, node("b", taints=[TAINT], cpu="64", memory="500Gi", gpu="8")], "none of 2 nodes is large enough"),
        ([node("b", taints=[TAINT], cpu="64")], "none of 1 nodes fits node_selector and tolerations"),
        (
            [node("b", taints=[TAINT | {"effect": "PreferNoSchedule"}], cpu="1")],
            "at most cpu 1, memory 0Mi, nvidia.com/gpu 0",
        ),
    ],
)
def test_only_nodes_that_the_job_may_use_count(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch, nodes: list[Json], text: str
) -> None:
    api.forbidden.discard(("list", "nodes"))
    api.nodes = nodes
    assert text in notice(api, start, monkeypatch, "no-such-device")


def test_a_pod_that_its_node_cannot_set_up_reports_why(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_NOTE_SECONDS", 0.3)
    api.waiting = {"conditions": [{"type": "PodScheduled", "status": "True"}]}

    def scenario() -> None:
        api.job()
        [pod] = api.pods.values()
        event = {"metadata": {"creationTimestamp": TIME}, "reason": "FailedMount", "type": "Warning"}
        api.events.append(event | {"involvedObject": pod["metadata"], "message": WORDS["config-map"]})
        api.wait_for(has_sent(api, "/events"))
        complete(api)

    status, [line] = start(scenario=scenario)
    assert status == 0
    assert line.endswith(' s: MountVolume.SetUp failed for volume "ca" : configmap "nowhere" not found')
