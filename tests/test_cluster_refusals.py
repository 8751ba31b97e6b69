"""A cluster that refuses a job or its pods: one line with the reason and what to do, or a wait for what passes."""

from __future__ import annotations

import os
import re
import signal

import pytest
from cluster_launcher import NAME, WORDS, Launcher, complete, has_sent, leave_event
from kubernetes_api import KubernetesApi

from peco.core.resources import Resources
from pipelines.jobs import kube, waiting

# A job that is refused

OF_JOBS = {
    "queue-unknown": 'Volcano refuses the job: unable to find job queue: queue.scheduling.volcano.sh "peco-record-nowhere" not '
    "found; name another queue in PECO_QUEUE (kubectl get queues.scheduling.volcano.sh)",
    "queue-closed": "Volcano refuses the job: can only submit job to queue with state `Open`, queue `peco-record-closed` status is "
    "`Closed`; name another queue in PECO_QUEUE (kubectl get queues.scheduling.volcano.sh)",
    "queue-parent": "Volcano refuses the job: can only submit job to leaf queue, queue `peco-record-parent` has 1 child queues; "
    "name another queue in PECO_QUEUE (kubectl get queues.scheduling.volcano.sh)",
    "volcano-webhook": "Volcano refuses the job: job 'minAvailable' should not be greater than total replicas in tasks",
    "quota-of-jobs": "quota peco-record of namespace peco has no room (count/jobs.batch.volcano.sh 0 of 0 in use, 1 asked for): "
    "ask for less, or have the quota raised (kubectl -n peco describe quota peco-record)",
    "right-missing": "not allowed to create jobs.batch.volcano.sh in namespace peco (403: "
    + WORDS["right-missing"]["message"]
    + "); give system:serviceaccount:peco-record:nobody the role peco-jobs (k8s/base/accounts.yaml)",
    "admission-policy": "admission policy peco-record refuses the job: jobs need the label team; change that, or ask the "
    "cluster's administrator",
    "namespace-unknown": "there is no namespace peco-record-nowhere; correct PECO_NAMESPACE",
    "namespace-ends": "namespace peco-record is being deleted; create it again, or correct PECO_NAMESPACE",
    "volcano-missing": "the cluster refuses to create jobs.batch.volcano.sh in namespace peco (404: 404 page not found); is "
    "Volcano installed?",
    "invalid": f"the cluster refuses to create jobs.batch.volcano.sh in namespace peco (422: {WORDS['invalid']['message']})",
}


@pytest.mark.parametrize("words", OF_JOBS)
def test_a_refused_job_is_one_line_with_what_to_do(api: KubernetesApi, start: Launcher, words: str) -> None:
    api.refusals = [WORDS[words]]
    assert start() == (2, [f"error: {OF_JOBS[words]}"])
    assert api.jobs == {}


USED = WORDS["quota-of-jobs"] | {"message": WORDS["quota-of-jobs"]["message"].replace("sh=0", "sh=20")}


def test_a_quota_that_is_used_up_is_waited_for_without_an_end(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job's pods are: it passes when other jobs end."""
    monkeypatch.setattr(kube, "PENDING_SECONDS", 0.0)
    api.refusals = [USED] * 5
    status, [line] = start(scenario=lambda: complete(api))
    assert (status, line) == (
        0,
        "tokenizer: quota peco-record of namespace peco has no room (count/jobs.batch.volcano.sh 20 of 20 in use, 1 asked "
        "for): delete what has ended, or have the quota raised (kubectl -n peco describe quota peco-record); waiting",
    )


def test_a_stop_ends_the_waiting_for_a_quota(api: KubernetesApi, start: Launcher) -> None:
    api.refusals = [USED] * 10_000

    def scenario() -> None:
        api.wait_for(lambda: len(start.notes) == 1)
        os.kill(os.getpid(), signal.SIGTERM)

    assert start(scenario=scenario)[0] == 128 + signal.SIGTERM
    assert api.jobs == {}


def test_another_webhook_is_named(api: KubernetesApi, start: Launcher) -> None:
    """All webhooks' answers reach the client in the same words of the API server."""
    words = (
        WORDS["volcano-webhook"]["message"].replace("validatejob.volcano.sh", "validate.kyverno.svc-fail").rstrip(";")
    )
    api.refusals = [WORDS["volcano-webhook"] | {"message": words}]
    assert start() == (
        2,
        [
            "error: admission webhook validate.kyverno.svc-fail refuses the job: job 'minAvailable' should not be greater than "
            "total replicas in tasks; change that, or ask the cluster's administrator"
        ],
    )


@pytest.mark.parametrize(("verb", "resource"), [("create", "jobs"), ("list", "pods"), ("get", "pods/log")])
def test_a_right_that_is_missing_is_named(api: KubernetesApi, start: Launcher, verb: str, resource: str) -> None:
    api.forbidden.add((verb, resource))
    status, lines = start(scenario=api.start if resource == "pods/log" else lambda: None)
    assert status == 2
    right = rf"error: not allowed to {verb} {resource}.* in namespace peco .*; give \S+ the role peco-jobs .*"
    assert re.fullmatch(right, lines[-1])


# What the cluster can't decide yet


def test_a_quota_that_is_not_computed_yet_is_waited_for(api: KubernetesApi, start: Launcher) -> None:
    api.refusals = [WORDS["quota-unknown"]] * 3
    assert start(scenario=lambda: complete(api)) == (
        0,
        [
            "tokenizer: quota peco-record of namespace peco is not computed yet (kubectl -n peco describe quota peco-record); "
            "waiting for up to 600 s"
        ],
    )


def test_a_quota_that_is_never_computed_ends_the_waiting(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "PENDING_SECONDS", 0.1)
    api.refusals = [WORDS["quota-unknown"]] * 1000
    status, lines = start()
    assert status == 2
    assert lines[-1] == (
        "error: quota peco-record of namespace peco is not computed yet (kubectl -n peco describe quota peco-record)"
    )


def test_a_webhook_that_is_away_is_waited_for_like_the_api(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "NOTICE_SECONDS", 0.2)
    monkeypatch.setattr(kube, "FIRST_DELAY", 1.0)
    api.refusals = [WORDS["webhook-away"]]
    status, lines = start(scenario=lambda: complete(api))
    assert status == 0
    assert f"(500: {WORDS['webhook-away']['message']}); trying for 300 s" in lines[0]


# Pods that are refused

OF_PODS = {
    "pod-security": "pod security restricted:latest of namespace peco forbids the job's pods: allowPrivilegeEscalation != false "
    '(container "main" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "main" must '
    'set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "main" must set '
    'securityContext.runAsNonRoot=true), seccompProfile (pod or container "main" must set securityContext.seccompProfile.type to '
    '"RuntimeDefault" or "Localhost"); leave out PECO_CAPABILITIES if it is about capabilities, or use a namespace with a less '
    "strict level",
    "limit-range": "a LimitRange of namespace peco forbids the job's pods: maximum memory usage per Container is 5Mi, but limit is "
    "10Mi; change the stage's resources, or have the range changed (kubectl -n peco describe limitrange)",
    "priority": "there is no priority class nowhere; correct PECO_PRIORITY (kubectl get priorityclass)",
    "service-account": "there is no service account nowhere in namespace peco; correct PECO_SERVICE_ACCOUNT, or apply the "
    "manifests",
    "quota-too-small": "quota peco-record of namespace peco has no room (requests.memory 20Mi of 5Mi in use, 10Mi asked for): ask "
    "for less, or have the quota raised (kubectl -n peco describe quota peco-record)",
    "quota-demands": "quota peco-record of namespace peco demands limits.cpu for: main, which the job doesn't set: have a "
    "LimitRange set a default",
}


@pytest.mark.parametrize("words", OF_PODS)
def test_a_job_whose_pods_are_refused_ends_in_one_line(api: KubernetesApi, start: Launcher, words: str) -> None:
    api.admits = False
    result = start(scenario=lambda: leave_event(api, "FailedCreate", WORDS[words]))
    assert result == (2, [f"error: tokenizer: job {NAME} can't start: {OF_PODS[words]}"])
    assert api.jobs == {}


def test_pods_that_fit_the_quota_later_are_waited_for(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_NOTE_SECONDS", 0.1)
    api.admits = False

    def scenario() -> None:
        leave_event(api, "FailedCreate", WORDS["quota-used"])
        api.wait_for(has_sent(api, "/pods", 30))
        complete(api)

    status, [line] = start(scenario=scenario)
    assert status == 0
    assert re.fullmatch(
        rf"tokenizer: job {NAME} has been waiting for \d+ s: quota peco-record of namespace peco has no room \(requests.memory "
        r"10Mi of 15Mi in use, 10Mi asked for\): delete what has ended, or have the quota raised \(kubectl -n peco describe quota "
        r"peco-record\)",
        line,
    )


def test_two_pods_that_exceed_a_quota_together_are_not_waited_for(api: KubernetesApi, start: Launcher) -> None:
    api.admits = False
    status, [line] = start(Resources(nodes=2), lambda: leave_event(api, "FailedCreate", WORDS["quota-used"]))
    assert (status, "ask for less" in line) == (2, True)


def test_events_that_the_account_cannot_read_leave_the_job_waiting(api: KubernetesApi, start: Launcher) -> None:
    api.forbidden.add(("list", "events"))
    api.admits = False

    def scenario() -> None:
        leave_event(api, "FailedCreate", WORDS["priority"])
        api.wait_for(has_sent(api, "/events", 3))
        complete(api)

    assert start(scenario=scenario) == (0, [])
