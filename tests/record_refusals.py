"""Record how a real cluster with Volcano refuses jobs and their pods, for tests/test_cluster_refusals.py.

    KUBECONFIG=… python tests/record_refusals.py          # as an administrator; writes tests/recorded/refusals.json

It makes the namespace `peco-record`, queues and an admission policy of that name, and removes them. A recorded answer is the
`code`, `reason` and `message` of the API's Status; an event is its message.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

NAME = "peco-record"
TARGET = Path(__file__).parent / "recorded" / "refusals.json"
JOBS = ("batch.volcano.sh", "v1alpha1")
QUEUES = ("scheduling.volcano.sh", "v1beta1")
AMOUNTS = {"memory": "10Mi"}  # no CPU: the cluster may be busy
SELECTOR = {"matchLabels": {"kubernetes.io/metadata.name": NAME}}
RULE = {"apiGroups": ["batch.volcano.sh"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["jobs"]}
SECONDS = 30.0

Json = dict[str, Any]


def main() -> None:
    config.load_kube_config()
    api = client.ApiClient()
    core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
    recorded: dict[str, Json | str] = {}
    made: list[str] = []

    def create(name: str, namespace: str = NAME, **changes: Any) -> Json:
        """Create a job; its spec is changed by keys, that of its pod by `pod`, its amounts by `limits`."""
        limits = AMOUNTS | changes.pop("limits", {})
        pod = {"restartPolicy": "Never", "containers": [container(limits)]} | changes.pop("pod", {})
        tasks = [{"name": "one", "replicas": 1, "template": {"spec": pod}}]
        spec = {"schedulerName": "volcano", "queue": "default", "minAvailable": 1, "tasks": tasks} | changes
        body = {"apiVersion": "/".join(JOBS), "kind": "Job", "metadata": {"name": name}, "spec": spec}
        job: Json = custom.create_namespaced_custom_object(*JOBS, namespace, "jobs", body)
        made.append(name)
        return job

    def refused(key: str, **changes: Any) -> None:
        recorded[key] = answer(lambda: create(key, **changes))

    def event(key: str, reason: str, **changes: Any) -> None:
        """Record the first event with this reason of a job, its group or its pod."""
        uid = create(key, **changes)["metadata"]["uid"]

        def find() -> str | None:
            return next(
                (
                    found.message
                    for found in core.list_namespaced_event(NAME).items
                    if (
                        found.involved_object.uid == uid
                        or found.involved_object.name in (f"{key}-{uid}", f"{key}-one-0")
                    )
                    and found.reason == reason
                    and "tasks in gang" not in found.message
                ),
                None,
            )

        recorded[key] = wait_for(find)

    with contextlib.ExitStack() as stack:
        stack.enter_context(namespace(core))
        for queue in (
            {"name": NAME, "capability": {"memory": "15Mi"}},
            {"name": f"{NAME}-closed"},
            {"name": f"{NAME}-parent"},
            {"name": f"{NAME}-child", "parent": f"{NAME}-parent"},
        ):
            stack.enter_context(temporary_queue(custom, **queue))

        # Refused when the job is created
        close(custom, f"{NAME}-closed")
        refused("queue-unknown", queue="peco-record-nowhere")
        refused("queue-closed", queue=f"{NAME}-closed")
        refused("queue-parent", queue=f"{NAME}-parent")
        refused("volcano-webhook", minAvailable=3)
        refused(
            "invalid",
            tasks=[{"name": "T_0", "replicas": 1, "template": {"spec": {"containers": [container(AMOUNTS)]}}}],
        )
        with quota(core, {"count/jobs.batch.volcano.sh": "0"}):
            refused("quota-of-jobs")
        with quota(core, {"count/jobs.batch.volcano.sh": "5"}):
            hard = {"status": {"hard": {"count/jobs.batch.volcano.sh": "5"}, "used": None}}
            core.patch_namespaced_resource_quota_status(NAME, NAME, hard)
            refused("quota-unknown")
        with policy():
            wait_for(lambda: "ValidatingAdmissionPolicy" in str(answer(lambda: create("policy"))) or None)
            refused("admission-policy")
        with dead_webhook():
            wait_for(lambda: "failed calling webhook" in str(answer(lambda: create("webhook"))) or None)
            refused("webhook-away")
        refused("namespace-unknown", namespace="peco-record-nowhere")
        recorded["volcano-missing"] = answer(
            lambda: custom.list_namespaced_custom_object("batch.example", "v1", NAME, "jobs")
        )
        api.set_default_header("Impersonate-User", f"system:serviceaccount:{NAME}:nobody")
        refused("right-missing")
        for key, call in {
            "queue-unreadable": lambda: custom.get_cluster_custom_object(*QUEUES, "queues", NAME),
            "nodes-unreadable": core.list_node,
            "events-unreadable": lambda: core.list_namespaced_event(NAME),
        }.items():
            recorded[key] = answer(call)
        del api.default_headers["Impersonate-User"]

        # Refused when its pods are created
        with quota(core, {"requests.memory": "15Mi"}):
            create("first")
            used = {"requests.memory": "10Mi"}
            wait_for(lambda: core.read_namespaced_resource_quota(NAME, NAME).status.used == used or None)
            event("quota-used", "FailedCreate")
        with quota(core, {"requests.memory": "5Mi"}):
            event("quota-too-small", "FailedCreate")
        with quota(core, {"limits.cpu": "1"}):
            event("quota-demands", "FailedCreate")
        with limit_range(core):
            event("limit-range", "FailedCreate")
        mounting = container(AMOUNTS) | {"volumeMounts": [{"name": "ca", "mountPath": "/ca"}]}
        volume = {"name": "ca", "configMap": {"name": "nowhere"}}
        event("config-map", "FailedMount", pod={"containers": [mounting], "volumes": [volume]})
        event("priority", "FailedCreate", pod={"priorityClassName": "nowhere"})
        event("service-account", "FailedCreate", pod={"serviceAccountName": "nowhere"})
        core.patch_namespace(NAME, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
        event("pod-security", "FailedCreate")

        # Waiting
        event("queue-full", "Unschedulable", queue=NAME, limits={"memory": "20Mi"})
        event("no-such-device", "Unschedulable", limits={"example.com/gpu": "1"})
        for job in made:
            custom.delete_namespaced_custom_object(*JOBS, NAME, "jobs", job)
        core.delete_namespace(NAME)
        refused("namespace-ends")
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    print(f"{TARGET}: {len(recorded)} answers")


def container(amounts: Json) -> Json:
    resources = {"requests": dict(amounts), "limits": dict(amounts)}
    return {"name": "main", "image": "example.invalid/none:1", "command": ["true"], "resources": resources}


def answer(call: Callable[[], Any]) -> Json:
    """The refusal of a call; empty if it is taken."""
    try:
        call()
    except ApiException as error:
        try:
            body = json.loads(error.body)
        except ValueError:
            return {"code": error.status, "reason": "", "message": error.body.strip()}
        return {"code": body["code"], "reason": body.get("reason", ""), "message": body["message"]}
    return {}


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while (found := condition()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {SECONDS:.0f} s")
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def namespace(core: client.CoreV1Api) -> Iterator[None]:
    core.create_namespace({"metadata": {"name": NAME}})
    wait_for(lambda: core.list_namespaced_service_account(NAME).items or None)
    try:
        yield
    finally:
        with contextlib.suppress(ApiException):
            core.delete_namespace(NAME)


@contextlib.contextmanager
def temporary_queue(custom: client.CustomObjectsApi, name: str, **spec: Any) -> Iterator[None]:
    body = {"apiVersion": "/".join(QUEUES), "kind": "Queue", "metadata": {"name": name}, "spec": {"weight": 1} | spec}
    custom.create_cluster_custom_object(*QUEUES, "queues", body)
    try:
        yield
    finally:
        # A queue is deleted when it is closed and empty.
        close(custom, name)
        wait_for(
            lambda: True if not answer(lambda: custom.delete_cluster_custom_object(*QUEUES, "queues", name)) else None
        )


def close(custom: client.CustomObjectsApi, name: str) -> None:
    """Close a queue as Volcano's own command does."""
    queue = custom.get_cluster_custom_object(*QUEUES, "queues", name)
    if queue.get("status", {}).get("state") == "Closed":
        return
    target = {"apiVersion": "/".join(QUEUES), "kind": "Queue", "name": name, "uid": queue["metadata"]["uid"]}
    body = {"apiVersion": "bus.volcano.sh/v1alpha1", "kind": "Command", "metadata": {"generateName": f"{NAME}-"}}
    body |= {"action": "CloseQueue", "target": target | {"controller": True}}
    custom.create_namespaced_custom_object("bus.volcano.sh", "v1alpha1", "default", "commands", body)

    def closed() -> bool | None:
        found = custom.get_cluster_custom_object(*QUEUES, "queues", name)
        return found.get("status", {}).get("state") == "Closed" or None

    wait_for(closed)


@contextlib.contextmanager
def quota(core: client.CoreV1Api, hard: Json) -> Iterator[None]:
    core.create_namespaced_resource_quota(NAME, {"metadata": {"name": NAME}, "spec": {"hard": hard}})
    wait_for(lambda: core.read_namespaced_resource_quota(NAME, NAME).status.used)
    try:
        yield
    finally:
        core.delete_namespaced_resource_quota(NAME, NAME)


@contextlib.contextmanager
def limit_range(core: client.CoreV1Api) -> Iterator[None]:
    limits = [{"type": "Container", "max": {"memory": "5Mi"}}]
    core.create_namespaced_limit_range(NAME, {"metadata": {"name": NAME}, "spec": {"limits": limits}})
    try:
        yield
    finally:
        core.delete_namespaced_limit_range(NAME, NAME)


@contextlib.contextmanager
def policy() -> Iterator[None]:
    api = client.AdmissionregistrationV1Api()
    match = {"namespaceSelector": SELECTOR, "resourceRules": [RULE]}
    rule = {"expression": "has(object.metadata.labels)", "message": "jobs need the label team"}
    spec: Json = {"failurePolicy": "Fail", "matchConstraints": match, "validations": [rule]}
    api.create_validating_admission_policy({"metadata": {"name": NAME}, "spec": spec})
    binding = {"policyName": NAME, "validationActions": ["Deny"]}
    api.create_validating_admission_policy_binding({"metadata": {"name": NAME}, "spec": binding})
    try:
        yield
    finally:
        api.delete_validating_admission_policy_binding(NAME)
        api.delete_validating_admission_policy(NAME)


@contextlib.contextmanager
def dead_webhook() -> Iterator[None]:
    api = client.AdmissionregistrationV1Api()
    webhook = {
        "name": f"check.{NAME}.example",
        "rules": [copy.deepcopy(RULE)],
        "namespaceSelector": SELECTOR,
        "clientConfig": {"url": "https://127.0.0.1:9/check"},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    api.create_validating_webhook_configuration({"metadata": {"name": NAME}, "webhooks": [webhook]})
    try:
        yield
    finally:
        api.delete_validating_webhook_configuration(NAME)


if __name__ == "__main__":
    main()
