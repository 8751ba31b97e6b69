"""Record what a real API server with Volcano answers to the launcher's requests, for tests/test_kubernetes_api.py.

    KUBECONFIG=… python tests/record_answers.py          # as an administrator; writes tests/recorded/answers.json

It makes the namespace `peco-record` and a node of that name that doesn't exist, and removes them. An answer is recorded as its
status with the `kind` of the object, or with the `reason` and `message` of the API's Status.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config
from record_refusals import NAME, Json, namespace, wait_for

TARGET = Path(__file__).parent / "recorded" / "answers.json"
MERGE = "application/merge-patch+json"
ABORTED = {"status": {"state": {"phase": "Aborted"}}}
GROUP = "/apis/batch.volcano.sh/v1alpha1"
LOG = {"container": "main", "follow": "true", "timestamps": "true"}


@dataclass(frozen=True)
class Request:
    """A request, with `{namespace}`, `{job}` and `{pod}` in its path."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    body: Json | None = None


JOB = f"{GROUP}/namespaces/{{namespace}}/jobs/{{job}}"
POD_LOG = "/api/v1/namespaces/{namespace}/pods/{pod}/log"
# In this order: the job is created, found, aborted and deleted. `job-created` and `job-exists` need a body.
REQUESTS = {
    "job-missing": Request("GET", JOB),
    "job-created": Request("POST", f"{GROUP}/namespaces/{{namespace}}/jobs"),
    "job-exists": Request("POST", f"{GROUP}/namespaces/{{namespace}}/jobs"),
    "job": Request("GET", JOB),
    "job-adopted": Request("PATCH", JOB, body={"metadata": {"ownerReferences": []}}),
    "pods": Request("GET", "/api/v1/namespaces/{namespace}/pods", {"labelSelector": "volcano.sh/job-name={job}"}),
    "log-waits": Request("GET", POD_LOG, LOG),
    "log-missing": Request("GET", POD_LOG.replace("{pod}", "nowhere"), LOG),
    "events": Request("GET", "/api/v1/namespaces/{namespace}/events", {"fieldSelector": "involvedObject.uid=1"}),
    "nodes": Request("GET", "/api/v1/nodes", {"resourceVersion": "0"}),
    "queue": Request("GET", "/apis/scheduling.volcano.sh/v1beta1/queues/default"),
    "queue-missing": Request("GET", "/apis/scheduling.volcano.sh/v1beta1/queues/nowhere"),
    "job-changed": Request("PATCH", f"{JOB}/status", body=ABORTED),
    "job-aborted": Request("PATCH", f"{JOB}/status", body=ABORTED),
    "job-deleted": Request("DELETE", JOB, {"propagationPolicy": "Foreground"}),
    "log-unreadable": Request("GET", POD_LOG, LOG),
    "right-missing": Request("GET", JOB),
    "token-wrong": Request("GET", JOB),
}


def job(name: str) -> Json:
    """A job whose pod waits for a volume that there is none of."""
    mounts = [{"name": "none", "mountPath": "/none"}]
    container: Json = {"name": "main", "image": "example.invalid/none:1", "command": ["true"], "volumeMounts": mounts}
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "none", "configMap": {"name": "nowhere"}}],
    }
    tasks = [{"name": "one", "replicas": 1, "template": {"metadata": {"labels": {}}, "spec": pod}}]
    spec = {"schedulerName": "volcano", "queue": "default", "minAvailable": 1, "tasks": tasks}
    return {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def summary(status: int, body: Mapping[str, Any]) -> Json:
    """The part of an answer that is recorded."""
    if body.get("status") == "Failure":
        return {"code": status, "reason": body.get("reason", ""), "message": body["message"]}
    return {"code": status, "kind": body["kind"]}


def ask(api: client.ApiClient, request: Request, body: Json | None = None, **names: str) -> Json:
    """The summary of the answer to a request."""
    connection = client.ApiClient(api.configuration).rest_client.pool_manager
    query = "&".join(f"{key}={value}" for key, value in (request.query or {}).items())
    url = f"{api.configuration.host}{request.path}{'?' if query else ''}{query}".format(**names)
    headers = {"Content-Type": MERGE if request.method == "PATCH" else "application/json", **api.default_headers}
    api.update_params_for_auth(headers, [], ["BearerToken"])
    content = json.dumps(body or request.body) if body or request.body else None
    answer = connection.request(request.method, url, body=content, headers=headers)
    return summary(answer.status, json.loads(answer.data))


@contextmanager
def silent_node(core: client.CoreV1Api) -> Iterator[str]:
    """A node whose kubelet doesn't answer, with a pod; the pod's name."""
    core.create_node({"metadata": {"name": NAME}, "spec": {"unschedulable": True}})
    try:
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 9}},
        }
        core.patch_node_status(NAME, {"status": status})
        container = {"name": "main", "image": "example.invalid/none:1"}
        spec = {"nodeName": NAME, "containers": [container], "tolerations": [{"operator": "Exists"}]}
        core.create_namespaced_pod(NAME, {"metadata": {"name": "silent"}, "spec": spec})
        running = {"name": "main", "ready": True, "restartCount": 0, "image": "", "imageID": ""}
        running["state"] = {"running": {}}
        status = {"phase": "Running", "containerStatuses": [running]}
        core.patch_namespaced_pod_status("silent", NAME, {"status": status})
        yield "silent"
    finally:
        core.delete_node(NAME)
        core.delete_namespaced_pod("silent", NAME, grace_period_seconds=0)


def main() -> None:
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    nobody, wrong = client.ApiClient(), client.ApiClient(client.Configuration())
    nobody.set_default_header("Impersonate-User", f"system:serviceaccount:{NAME}:nobody")
    for field in ("host", "ssl_ca_cert"):
        setattr(wrong.configuration, field, getattr(api.configuration, field))
    wrong.configuration.api_key = {"authorization": "Bearer wrong"}
    accounts = {"right-missing": nobody, "token-wrong": wrong}
    recorded: dict[str, Json] = {}
    names = {"namespace": NAME, "job": "peco-one", "pod": "peco-one-one-0"}

    def waiting() -> bool | None:
        """True once the pod has a node."""
        found = core.list_namespaced_pod(NAME, field_selector=f"metadata.name={names['pod']}").items
        return bool(found and found[0].spec.node_name and found[0].status.container_statuses) or None

    with namespace(core):
        for key, request in REQUESTS.items():
            body = job(names["job"]) if request.method == "POST" else None
            if key == "log-waits":
                wait_for(waiting)
            if key == "job-changed":
                body = ABORTED | {"metadata": {"resourceVersion": "1"}}
            if key == "log-unreadable":
                with silent_node(core) as pod:
                    recorded[key] = ask(api, request, **names | {"pod": pod})
                continue
            recorded[key] = ask(accounts.get(key, api), request, body, **names)
    TARGET.write_text(json.dumps(recorded, indent=2) + "\n")
    print(f"{TARGET}: {len(recorded)} answers")


if __name__ == "__main__":
    main()
