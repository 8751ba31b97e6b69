"""A stage as a Volcano job, where a real cluster can't be made to do it: jobs found again, ends, lost APIs, stops.

The rest is tested on a real cluster (tests/cluster).
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_launcher import CREATED, NAME, Json, Launcher, complete, owner
from kubernetes_api import Answer, KubernetesApi

from peco.core import stopping
from peco.core.resources import Resources
from pipelines.jobs import pods, volcano
from pipelines.jobs.logs import Screen

TWO_NODES = Resources(nodes=2, processes=4, gpus=4, cpu=32, memory="64Gi")
POD = f"{NAME}-tokenizer-0-0"


def methods(api: KubernetesApi) -> list[str]:
    """The methods of the requests that change something."""
    return [verb.split()[0] for verb in api.verbs()]


def created(api: KubernetesApi) -> int:
    return methods(api).count("POST")


def phase(api: KubernetesApi) -> str:
    return str(api.jobs[NAME]["status"]["state"]["phase"])


# Finding the job again


def test_a_job_that_appears_in_the_same_moment_is_followed_and_owned(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner(monkeypatch, "step-1")
    start(scenario=lambda: complete(api))
    api.leave("Running")
    get, calls = volcano.Volcano._get, iter([None])
    monkeypatch.setattr(volcano.Volcano, "_get", lambda self: next(calls, get(self)))
    owner(monkeypatch, "step-2")

    def end() -> None:
        api.wait_for(lambda: "PATCH" in methods(api))
        api.leave("Completed")

    assert start(scenario=end) == (0, [f"tokenizer: job {NAME} already exists (Running): following it"])
    # The second POST was a conflict.
    assert methods(api) == ["POST", "DELETE", "POST", "PATCH", "DELETE"]
    [found] = api.created[NAME]["metadata"]["ownerReferences"]
    assert found["name"] == "step-2"


@pytest.mark.parametrize("ended", ["Completed", "Aborted", "Terminating"])
def test_a_job_that_has_ended_is_replaced(api: KubernetesApi, start: Launcher, ended: str) -> None:
    """Even a completed one: DVC has removed its results, and the stage's working files publish them again at once."""
    start(scenario=lambda: complete(api))
    before = api.leave(ended)["metadata"]["uid"]

    def end() -> None:
        api.wait_for(lambda: api.jobs.get(NAME, {"metadata": {"uid": before}})["metadata"]["uid"] != before)
        complete(api)

    line = f"tokenizer: job {NAME} of an earlier attempt has ended ({ended}): replacing it"
    assert start(scenario=end) == (0, [line])
    assert methods(api) == ["POST", "DELETE", "DELETE", "POST", "DELETE"]


def test_a_job_that_cannot_be_removed_since_its_node_is_lost_is_reported_once(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(scenario=lambda: complete(api))
    api._create_pods(api.leave("Terminated"))
    monkeypatch.setattr(volcano, "LOG_SECONDS", 0.1)
    api.saving = 1

    def scenario() -> None:
        api.wait_for(lambda: created(api) == 2)
        complete(api)

    assert start(scenario=scenario) == (
        0,
        [
            f"tokenizer: job {NAME} of an earlier attempt has ended (Terminated): replacing it",
            f"tokenizer: job {NAME} is being removed, but pods are left of it ({POD}); if their node is lost: kubectl --namespace "
            f"peco delete pod --force {POD}",
        ],
    )


def test_the_job_of_a_step_has_a_heartbeat_and_another_job_has_none(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / f".work/{NAME}.alive"
    beats = []

    def scenario() -> None:
        api.job()
        beats.append(alive.exists())
        complete(api)

    def variables() -> dict[str, str]:
        [container] = api.created[NAME]["spec"]["tasks"][0]["template"]["spec"]["containers"]
        return {entry["name"]: entry["value"] for entry in container["env"]}

    start(scenario=scenario)
    assert "PECO_HEARTBEAT" not in variables()
    owner(monkeypatch, "step-1")
    start(scenario=scenario)
    assert variables()["PECO_HEARTBEAT"] == str(alive)
    assert beats == [True, True]  # the first job could be one that a step has started
    assert not alive.exists()


def test_a_job_is_removed_although_the_api_fails_once(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, delete = iter([Answer(500, "etcdserver: leader changed")]), api._delete

    def fail_once(job: Json) -> Json:
        for failure in failures:
            raise failure
        return delete(job)

    monkeypatch.setattr(api, "_delete", fail_once)
    assert start(scenario=lambda: complete(api)) == (0, [])
    assert (methods(api), api.jobs) == (["POST", "DELETE", "DELETE"], {})


# Failures

TORCHRUN = """\
E1123 failed (exitcode: {code}) local_rank: 1 (pid: 7) of binary: python
peco.stages.tokenizer FAILED
Failures:
  <NO_OTHER_FAILURES>
Root Cause (first observed failure):
[0]:
  time      : 2026-11-23_12:00:00
  rank      : 5 (local_rank: 1)
  exitcode  : {code} (pid: 7)"""


def fail(api: KubernetesApi, code: int, *lines: str) -> None:
    """Rank 5, in the second of two pods, ends with this status, and torchrun reports it."""
    first, second = api.start()
    api.say(first, "[0]: waits")
    api.say(second, *(f"[5]: {line}" for line in lines), *TORCHRUN.format(code=code).splitlines())
    api.end(second, 1)


def test_a_failed_rank_ends_the_job_and_its_last_lines_are_shown(api: KubernetesApi, start: Launcher) -> None:
    api.saving = 60  # the other pods don't delay it
    lines = [f"line {number}" for number in range(30)]
    status, out, err = start.run(TWO_NODES, lambda: fail(api, 1, *lines, "ValueError: no"))
    assert status == 1
    assert "[5] ValueError: no" in out
    assert (
        f"error: tokenizer: rank 5 of pod {NAME}-tokenizer-1-0 failed with status 1; its last line: ValueError: no"
        in err
    )
    assert err[-2:] == ["  line 29", "  ValueError: no"] and "  line 3" not in err
    assert "deletionTimestamp" in api.jobs[NAME]["metadata"]


def test_an_error_that_the_user_can_fix_is_one_line_and_no_retry(api: KubernetesApi, start: Launcher) -> None:
    resources = dataclasses.replace(TWO_NODES, retries=2)
    status, out, err = start.run(resources, lambda: fail(api, 2, "error: data: missing; get some"))
    assert (status, created(api)) == (2, 1)
    assert out.count("error: ") == 0 and err == [CREATED, "error: data: missing; get some"]


def test_a_killed_rank_is_named_by_its_signal(api: KubernetesApi, start: Launcher) -> None:
    status, [line, *_] = start(TWO_NODES, lambda: fail(api, -9, "step 1"))
    assert status == 2
    assert "rank 5" in line and "SIGKILL (out of memory?)" in line


# Jobs that the cluster ends


def shut_down_the_node(api: KubernetesApi) -> None:
    [pod] = api.start()
    api.end(pod, 137, pod_reason="Terminated")


def refuse_the_pod(api: KubernetesApi) -> None:
    """As kubelet does after its restart, when it has not found the node's GPUs yet."""
    api.job()
    not_taken(api, "UnexpectedAdmissionError", "Allocate failed due to no healthy devices present")


def not_taken(api: KubernetesApi, reason: str, message: str) -> None:
    with api.lock:
        api.condition(phase="Failed", reason=reason, message=message)
        api._event("PodFailed")


def stop_from_outside(api: KubernetesApi) -> None:
    [pod] = api.start()
    api.end(pod, 143)


def lose_the_pods(api: KubernetesApi) -> None:
    api.start()
    with api.lock:
        api.pods.clear()
        api._phase("Terminated")


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (shut_down_the_node, f"pod {POD} was preempted or evicted (Terminated)"),
        (
            refuse_the_pod,
            f"pod {POD} was refused by its node (Allocate failed due to no healthy devices present)",
        ),
        (stop_from_outside, f"pod {POD} was stopped from outside"),
        (lose_the_pods, f"job {NAME} ended (Terminated), its pods were preempted or evicted"),
    ],
)
def test_a_job_that_the_cluster_ended_is_started_again_until_no_retry_is_left(
    api: KubernetesApi, start: Launcher, loss: Callable[[KubernetesApi], None], reason: str
) -> None:
    api.saving = 0.3  # long enough to be seen

    def scenario() -> None:
        for count in range(1, 4):
            api.wait_for(lambda count=count: created(api) == count)
            loss(api)

    status, _, lines = start.run(Resources(retries=2), scenario)
    assert status == 75
    assert lines == [
        CREATED,
        f"tokenizer: {reason}; retry 1 of 2 in 0 s",
        CREATED,
        f"tokenizer: {reason}; retry 2 of 2 in 0 s",
        CREATED,
        f"error: tokenizer: {reason}; no retry of 2 is left; run again, it resumes from the last checkpoint",
    ]
    assert api.jobs == {}


OWN = "was evicted for exceeding its own limit"
MORE = "raise it (of the volume shm: PECO_SHARED_MEMORY, or shared_memory in params.yaml), or write less, and run again"


@pytest.mark.parametrize(
    ("reason", "message", "line"),
    [
        (
            "Evicted",
            'Usage of EmptyDir volume "shm" exceeds the limit "1Gi". ',
            f'{OWN} (Usage of EmptyDir volume "shm" exceeds the limit "1Gi"); {MORE}',
        ),
        (
            "Evicted",
            'Container main exceeded its local ephemeral storage limit "1Gi". ',
            f'{OWN} (Container main exceeded its local ephemeral storage limit "1Gi"); {MORE}',
        ),
        (
            "Evicted",
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
            f"{OWN} (Pod ephemeral local storage usage exceeds the total limit of containers 1Gi); {MORE}",
        ),
        ("SysctlForbidden", "forbidden sysctl", "failed (forbidden sysctl); correct that and run again"),
    ],
)
def test_what_would_happen_to_the_pod_again_is_not_tried_again(
    api: KubernetesApi, start: Launcher, reason: str, message: str, line: str
) -> None:
    def scenario() -> None:
        api.job()
        not_taken(api, reason, message)

    assert start(Resources(retries=2), scenario) == (2, [f"error: tokenizer: pod {POD} {line}"])
    assert created(api) == 1


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            "OutOfcpu",
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 32000, used: 100, capacity: 32000",
        ),
        ("OutOfnvidia.com/gpu", "Pod was rejected: Node didn't have enough resource: nvidia.com/gpu"),
        ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed"),
        ("Evicted", "The node was low on resource: ephemeral-storage. "),
    ],
)
def test_a_pod_that_another_node_may_take_is_started_again(
    api: KubernetesApi, start: Launcher, reason: str, message: str
) -> None:
    def scenario() -> None:
        api.job()
        not_taken(api, reason, message)
        api.wait_for(lambda: created(api) == 2)
        complete(api)

    status, [line, *_] = start(Resources(retries=1), scenario)
    assert status == 0
    assert f"({message.rstrip('. ')})" in line and line.endswith("; retry 1 of 1 in 0 s")


def test_the_pod_that_its_node_refused_is_the_cause_and_not_those_that_were_deleted_for_it() -> None:
    refused = {"metadata": {"name": "b"}, "status": {"phase": "Failed", "reason": "OutOfcpu", "message": "no room"}}
    deleted = {"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}
    found = pods.first_end([deleted, refused])
    assert found and (found.kind, found.pod, found.reason) == ("rejected", "b", "no room")


def test_ranks_that_end_because_one_was_preempted_are_not_the_cause(api: KubernetesApi, start: Launcher) -> None:
    api.saving = 2

    def scenario() -> None:
        first, second = api.start()
        api.evict(second)
        time.sleep(1.1)  # times of the API are whole seconds
        api.end(first, 1)

    status, lines = start(TWO_NODES, scenario)
    assert status == 75
    assert f"pod {NAME}-tokenizer-1-0 was preempted" in lines[-1]


def test_a_job_is_followed_further_when_the_api_was_away_for_too_long(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_API_PATIENCE_SECONDS", "0")
    shown = threading.Event()
    monkeypatch.setattr(Screen, "_show", lambda self, line, show=Screen._show: (show(self, line), shown.set()))

    def scenario() -> None:
        [pod] = api.start()
        api.say(pod, "step 1")
        assert shown.wait(8)
        api.down = True
        api.wait_for(lambda: "; retry 1 of 9 in 0 s" in "".join(start.notes))
        api.down = False
        api.say(pod, "step 2")
        api.end(pod)

    status, out, _ = start.run(Resources(retries=9), scenario)
    assert (status, out) == (0, "step 1\nstep 2\n")
    assert methods(api) == ["POST", "DELETE"]
    assert "the cluster's API can't be reached" in start.notes[1]


# Stopping

MANY = 50  # more attempts than a stop should make


def updates(api: KubernetesApi) -> int:
    return methods(api).count("PATCH")


def missed(api: KubernetesApi) -> int:
    """Requests while the API was down, other than for a log."""
    return sum(not path.endswith("/log") for path in api.missed)


def test_a_second_signal_ends_the_waiting(api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_STOP_SECONDS", 0.0)
    monkeypatch.setenv("PECO_GRACE_SECONDS", "120")
    api.saving = 60

    def scenario() -> None:
        api.start()
        os.kill(os.getpid(), signal.SIGINT)
        api.wait_for(lambda: phase(api) == "Aborted")
        os.kill(os.getpid(), signal.SIGINT)

    assert start(TWO_NODES, scenario)[0] == 128 + signal.SIGINT
    assert len(api.pods) == 2  # they still save


def test_a_stop_is_tried_again_if_the_job_changes_at_the_same_time(api: KubernetesApi, start: Launcher) -> None:
    api.conflicts = 1

    def scenario() -> None:
        api.start()
        os.kill(os.getpid(), signal.SIGTERM)

    line = f"tokenizer: stopping job {NAME}, which saves its work; a second signal ends the waiting"
    assert start(scenario=scenario) == (128 + signal.SIGTERM, [line])
    assert api.created[NAME]["status"]["state"]["phase"] == "Aborted"


def test_a_stop_gives_up_on_a_job_that_changes_all_the_time(api: KubernetesApi, start: Launcher) -> None:
    api.conflicts = MANY

    def scenario() -> None:
        api.start()
        os.kill(os.getpid(), signal.SIGTERM)

    status, lines = start(scenario=scenario)
    assert status == 128 + signal.SIGTERM
    assert f"job {NAME} may still run" in lines[-1]
    assert 1 < updates(api) < 10


@pytest.mark.parametrize("obstacle", ["conflicts", "away"])
def test_a_second_signal_ends_the_attempts_to_abort(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    monkeypatch.setattr(stopping, "SAME_STOP_SECONDS", 0.0)
    monkeypatch.setenv("PECO_GRACE_SECONDS", "60")

    def scenario() -> None:
        api.start()
        api.conflicts = MANY
        api.down = obstacle == "away"
        os.kill(os.getpid(), signal.SIGINT)
        api.wait_for(lambda: missed(api) > 2 if api.down else updates(api) > 0)
        os.kill(os.getpid(), signal.SIGINT)

    status, lines = start(TWO_NODES, scenario)
    assert status == 128 + signal.SIGINT
    assert f"job {NAME} may still run" in lines[-1]
    assert missed(api) + updates(api) < 10
