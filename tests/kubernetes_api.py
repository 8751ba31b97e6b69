"""A Kubernetes API server with Volcano's job controller, as far as the workflow uses them. It refuses invalid requests.

Tests change the pods; the controller changes the job as Volcano would, by the job's own policies. Each answer has the form that a
real server's has (tests/test_kubernetes_api.py).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from k8s.check import load_definitions, violations

Json = dict[str, Any]
NAMESPACE = "peco"
TOKEN = "a-token"
JOBS = f"/apis/batch.volcano.sh/v1alpha1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
QUEUES = "/apis/scheduling.volcano.sh/v1beta1/queues"
NODES = "/api/v1/nodes"
ENDED = ("Completed", "Failed", "Aborted", "Terminated")


_definitions = functools.cache(load_definitions)  # reading them takes longer than most tests


def now(offset: float = 0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=offset)).strftime("%Y-%m-%dT%H:%M:%SZ")


REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 415: "UnsupportedMediaType", 422: "Invalid",
    500: "",
}  # fmt: skip


class Answer(Exception):
    """An answer that is an error; its reason is the usual one of the status unless it is given."""

    def __init__(self, status: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = REASONS[status] if reason is None else reason


class KubernetesApi:
    """The server, as a context; `kubeconfig` writes the file that points to it."""

    def __init__(self) -> None:
        self.jobs: dict[str, Json] = {}
        self.created: dict[str, Json] = {}  # the last job of each name, even if it is gone
        self.pods: dict[str, Json] = {}
        self.logs: dict[str, list[tuple[str, str]]] = {}  # time and text
        self.requests: list[tuple[str, str, Any]] = []
        self.faults: list[str] = []  # requests that no client should make
        # Verb and resource. By default the account has the role peco-jobs alone.
        self.forbidden: set[tuple[str, str]] = {("get", "queues"), ("list", "nodes")}
        self.refusals: list[Json] = []  # recorded answers to the next requests for a job
        self.admits = True  # pods are made for a job
        self.queues: dict[str, Json] = {}
        self.nodes: list[Json] = []
        self.events: list[Json] = []
        self.waiting: Json = {}  # of the status of pods that don't run yet
        self.conflicts = 0  # patches to come that find the job changed meanwhile
        self.down = False
        self.missed: list[str] = []  # requests while it was down
        self.unreadable = ""  # the error of each request for a log
        self.cuts = 0  # an increment breaks the connection of every log
        self.saving = 0.0  # seconds that a pod takes to end after SIGTERM
        self._endings: list[threading.Timer] = []
        self.lock = threading.RLock()
        self.definitions = _definitions(os.environ.get("PECO_TEST_SCHEMAS"))
        self._stamp = 0

    def __enter__(self) -> KubernetesApi:
        api = self

        class Handler(_Handler):
            fake = api

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        for ending in self._endings:
            ending.cancel()

    def kubeconfig(self, path: Path) -> Path:
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [
                        {"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.server.server_address[1]}"}}
                    ],
                    "users": [{"name": "test", "user": {"token": TOKEN}}],
                }
            )
        )
        return path

    # For tests

    def wait_for(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"it didn't happen; requests: {self.verbs()}, faults: {self.faults}"
            time.sleep(0.01)
        return found

    def job(self) -> Json:
        """The one job, as soon as it is there."""
        found: Json = self.wait_for(lambda: next(iter(self.jobs.values()), None))
        return found

    def verbs(self) -> list[str]:
        """Requests that change something."""
        return [f"{method} {path}" for method, path, _ in self.requests if method != "GET"]

    def start(self) -> list[str]:
        """Run all pods; returns their names."""
        self.job()
        with self.lock:
            for pod in self.pods.values():
                self._begin(pod)
            self._phase("Running")
            return list(self.pods)

    def say(self, pod: str, *texts: str) -> None:
        with self.lock:
            for text in texts:
                self._stamp += 1
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + f"{self._stamp % 1000:03}Z"
                self.logs[pod].append((stamp, text))

    def end(self, pod: str, code: int = 0, reason: str = "", *, pod_reason: str = "") -> None:
        """The pod's container ends."""
        with self.lock:
            found = self.pods[pod]
            done = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "finishedAt": now()}
            found["status"]["phase"] = "Failed" if code else "Succeeded"
            found["status"]["containerStatuses"][0]["state"] = {"terminated": done}
            if pod_reason:
                found["status"]["reason"] = pod_reason
            if code:
                self._event("PodFailed")
            elif all(p["status"]["phase"] == "Succeeded" for p in self.pods.values()):
                self._phase("Completed")

    def evict(self, pod: str) -> None:
        """Do as Volcano's preemption: set a condition, then delete the pod."""
        with self.lock:
            self.pods[pod]["status"].setdefault("conditions", []).append(
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "PreemptionByScheduler",
                    "message": "volcano: preempting to accommodate a higher priority pod",
                    "lastTransitionTime": now(),
                }
            )
            self._delete_pod(pod, "PodEvicted")

    def forget(self) -> None:
        """Remove job and pods."""
        with self.lock:
            self.jobs.clear()
            self.pods.clear()

    def leave(self, phase: str) -> Json:
        """Have the last job in this phase, as if its launcher had been killed."""
        with self.lock:
            name, job = next(reversed(self.created.items()))
            job["metadata"].pop("deletionTimestamp", None)
            self.jobs[name] = job
            self._phase(phase)
            return job

    def condition(self, **status: Any) -> None:
        with self.lock:
            for pod in self.pods.values():
                pod["status"].update(copy.deepcopy(status))

    # The controller

    def _create_pods(self, job: Json) -> None:
        name = job["metadata"]["name"]
        for task in job["spec"]["tasks"]:
            for index in range(task["replicas"]):
                pod = copy.deepcopy(task["template"]) | {"apiVersion": "v1", "kind": "Pod"}
                pod["metadata"]["name"] = f"{name}-{task['name']}-{index}"
                pod["metadata"]["labels"]["volcano.sh/job-name"] = name
                pod["metadata"] |= {"namespace": NAMESPACE, "uid": str(uuid.uuid4())}
                pod["status"] = {"phase": "Pending"} | copy.deepcopy(self.waiting)
                self.pods[pod["metadata"]["name"]] = pod
                self.logs[pod["metadata"]["name"]] = []

    def _begin(self, pod: Json) -> None:
        name = pod["spec"]["containers"][0]["name"]
        state = {"running": {"startedAt": now()}}
        pod["status"] = {"phase": "Running", "containerStatuses": [{"name": name, "state": state}]}

    def _event(self, event: str) -> None:
        """Apply the job's policies; without one for the event Volcano only creates missing pods again."""
        job = next(iter(self.jobs.values()), None)
        if job is None or job["status"]["state"].get("phase") not in ("Pending", "Running"):
            return
        actions = [policy["action"] for policy in job["spec"].get("policies", []) if policy["event"] == event]
        if "TerminateJob" in actions:
            self._phase("Terminating")
            self._kill_pods()
        elif event == "PodEvicted":
            self._create_pods(job)

    def _kill_pods(self) -> None:
        for name, pod in list(self.pods.items()):
            if pod["status"]["phase"] not in ("Succeeded", "Failed"):
                self._delete_pod(name, "")
        self._settle()

    def _delete_pod(self, name: str, event: str) -> None:
        pod = self.pods[name]
        if "deletionTimestamp" in pod["metadata"]:
            return
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        pod["metadata"] |= {"deletionTimestamp": now(grace), "deletionGracePeriodSeconds": grace}

        def gone() -> None:
            with self.lock:
                self.pods.pop(name, None)
                if event:
                    self._event(event)
                self._settle()

        self._endings.append(threading.Timer(self.saving, gone))
        self._endings[-1].start()

    def _settle(self) -> None:
        alive = [p for p in self.pods.values() if p["status"]["phase"] not in ("Succeeded", "Failed")]
        for name, job in list(self.jobs.items()):
            if not alive and job["status"]["state"].get("phase") == "Terminating":
                self._phase("Terminated")
            if not alive and "deletionTimestamp" in job["metadata"]:
                del self.jobs[name]
                self.pods.clear()

    def _phase(self, phase: str) -> None:
        for job in self.jobs.values():
            job["status"]["state"] = {"phase": phase, "lastTransitionTime": now()}
            self._touch(job)

    @staticmethod
    def _touch(job: Json) -> None:
        job["metadata"]["resourceVersion"] = str(int(job["metadata"].get("resourceVersion", "0")) + 1)

    # Requests

    def answer(self, method: str, path: str, query: dict[str, str], body: Any, kind: str) -> Json:
        """The object or list that answers a request.

        Raises:
            Answer: an error's status.
        """
        with self.lock:
            if path == PODS and method == "GET":
                return self._list_pods(query)
            if path.startswith(f"{PODS}/") and method == "GET" and path.count("/") == PODS.count("/") + 1:
                self._known(query)
                return self._one(self.pods, path.rsplit("/", 1)[1], "pods")
            if path == JOBS and method == "POST":
                self._known(query)
                if self.refusals:
                    refusal = self.refusals.pop(0)
                    raise Answer(refusal["code"], refusal["message"], refusal["reason"])
                return self._create(body)
            if path.startswith(f"{QUEUES}/") and method == "GET":
                return self._one(self.queues, path.removeprefix(f"{QUEUES}/"), "queues.scheduling.volcano.sh")
            if path == NODES and method == "GET":
                self._known(query, "resourceVersion")
                return {"apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": self.nodes}
            if path == EVENTS and method == "GET":
                return self._list_events(query)
            if path.startswith(f"{JOBS}/"):
                name, _, part = path.removeprefix(f"{JOBS}/").partition("/")
                job = self._one(self.jobs, name, "jobs.batch.volcano.sh")
                if method == "GET" and not part:
                    self._known(query)
                    return job
                if method == "PATCH" and not part:
                    self._known(query)
                    return self._patch(job, body, kind)
                if method == "PATCH" and part == "status":
                    self._known(query)
                    return self._patch_status(job, body, kind)
                if method == "DELETE" and not part:
                    self._known(query, "propagationPolicy")
                    return self._delete(job)
            raise self._fault(404, f"{method} {path}: no such request")

    def _fault(self, status: int, text: str) -> Answer:
        self.faults.append(text)
        return Answer(status, text)

    def _known(self, query: dict[str, str], *names: str) -> None:
        if unknown := query.keys() - set(names):
            raise self._fault(400, f"query: {unknown}")

    @staticmethod
    def _one(objects: dict[str, Json], name: str, kind: str) -> Json:
        if name not in objects:
            raise Answer(404, f'{kind} "{name}" not found')
        return objects[name]

    def _list_events(self, query: dict[str, str]) -> Json:
        self._known(query, "fieldSelector")
        field, equals, value = query.get("fieldSelector", "").partition("=")
        if not equals or field not in ("involvedObject.uid", "involvedObject.name"):
            raise self._fault(400, "events must be listed by an object")
        key = field.removeprefix("involvedObject.")
        found = [event for event in self.events if event["involvedObject"][key] == value]
        return {"apiVersion": "v1", "kind": "EventList", "metadata": {}, "items": found}

    def _list_pods(self, query: dict[str, str]) -> Json:
        self._known(query, "labelSelector")
        key, equals, value = query.get("labelSelector", "").partition("=")
        if not equals:
            raise self._fault(400, "pods must be listed by a label")
        found = [pod for pod in self.pods.values() if pod["metadata"]["labels"].get(key) == value]
        return {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": found}

    def _create(self, job: Json) -> Json:
        wrong = violations(job, self.definitions)
        for task in job["spec"]["tasks"]:
            pod = {"apiVersion": "v1", "kind": "Pod"} | copy.deepcopy(task["template"])
            pod["metadata"]["name"] = task["name"]
            wrong += violations(pod, {})
        if job["spec"].get("minAvailable", 0) > len(job["spec"]["tasks"]):
            wrong.append("spec.minAvailable: more than the number of tasks")
        if wrong:
            raise self._fault(422, "; ".join(wrong))
        name = job["metadata"]["name"]
        if name in self.jobs:
            raise Answer(409, f'jobs.batch.volcano.sh "{name}" already exists', "AlreadyExists")
        stored = copy.deepcopy(job)
        stored["metadata"] |= {"uid": str(uuid.uuid4()), "resourceVersion": "1", "creationTimestamp": now()}
        stored["status"] = {"state": {"phase": "Pending"}}
        self.jobs[name] = self.created[name] = stored
        if self.admits:
            self._create_pods(stored)
        return stored

    def _patch(self, job: Json, body: Json, kind: str) -> Json:
        if kind != "application/merge-patch+json":
            raise self._fault(415, f"{kind}: patches of custom resources are merge patches")
        if set(body) != {"metadata"} or set(body["metadata"]) != {"ownerReferences"}:
            raise self._fault(422, f"patch: {body}")
        job["metadata"]["ownerReferences"] = body["metadata"]["ownerReferences"]
        wrong = violations({"apiVersion": "v1", "kind": "ConfigMap", "metadata": job["metadata"]}, {})
        if wrong:
            raise self._fault(422, "; ".join(wrong))
        self._touch(job)
        return job

    def _patch_status(self, job: Json, body: Json, kind: str) -> Json:
        if self.conflicts:
            self.conflicts -= 1
            raise Answer(
                409,
                f'Operation cannot be fulfilled on jobs.batch.volcano.sh "{job["metadata"]["name"]}": the object has been '
                "modified; please apply your changes to the latest version and try again",
                "Conflict",
            )
        if kind != "application/merge-patch+json" or body != {"status": {"state": {"phase": "Aborted"}}}:
            raise self._fault(422, f"{kind}: {body}")
        job["status"]["state"]["phase"] = "Aborted"
        self._touch(job)
        self._kill_pods()
        return job

    def _delete(self, job: Json) -> Json:
        job["metadata"]["deletionTimestamp"] = now()
        self._kill_pods()
        return job

    def log(self, pod: str, query: dict[str, str]) -> Iterator[bytes]:
        """Lines of a pod as they come; ends with its container, or within a line if the connection is to break."""
        self._known(query, "container", "follow", "timestamps", "sinceTime")
        found = self._one(self.pods, pod, "pods")
        if query.get("container") != found["spec"]["containers"][0]["name"]:
            raise self._fault(400, f"log: no container {query.get('container')}")
        if self.unreadable:
            raise Answer(500, self.unreadable)
        if found["status"]["phase"] == "Pending":
            container = query["container"]
            raise Answer(400, f'container "{container}" in pod "{pod}" is waiting to start: ContainerCreating')
        return self._follow(pod, query.get("sinceTime", ""), self.cuts)

    def _follow(self, pod: str, since: str, cuts: int) -> Iterator[bytes]:
        sent = 0
        while True:
            with self.lock:
                ended = self.pods.get(pod, {"status": {"phase": "Failed"}})["status"]["phase"] in (
                    "Succeeded",
                    "Failed",
                )
                lines = self.logs[pod][sent:]
            for stamp, text in lines:
                sent += 1
                if stamp[:19] + "Z" >= since:
                    yield f"{stamp} {text}\n".encode()
            if self.cuts > cuts:
                yield b"2026-01-01T00:00:00.5Z half a li"
                return
            if ended and not lines:
                return
            time.sleep(0.01)


VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error, but not that of a client which is gone: the tests compare what is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: KubernetesApi

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        fake = self.fake
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if fake.down:
            fake.missed.append(f"{self.command} {parts.path}")
            self.close_connection = True
            return
        try:
            body = json.loads(raw) if raw else None
            fake.requests.append((self.command, parts.path, body))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Answer(401, "Unauthorized")
            self._check_right(parts.path)
            if parts.path.endswith("/log"):
                self._stream(fake.log(parts.path.split("/")[-2], query))
                return
            kind = self.headers.get("Content-Type", "")
            self._send(201 if self.command == "POST" else 200, fake.answer(self.command, parts.path, query, body, kind))
        except Answer as error:
            status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": error.status}
            self._send(error.status, status | {"message": str(error), "reason": error.reason})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _check_right(self, path: str) -> None:
        parts = path.split("/")
        collection = next(part for part in ("jobs", "pods", "events", "queues", "nodes") if part in parts)
        name, *subresource = [*parts[parts.index(collection) + 1 :], ""]
        resource = "/".join([collection, *filter(None, subresource)])
        verb = VERBS[self.command] if name or self.command != "GET" else "list"
        if (verb, resource) in self.fake.forbidden:
            group = {"jobs": "batch.volcano.sh", "queues": "scheduling.volcano.sh"}.get(collection, "")
            scope = f'in the namespace "{NAMESPACE}"' if NAMESPACE in parts else "at the cluster scope"
            what = (f"{collection}.{group}" if group else collection) + (f' "{name}"' if name else "")
            raise Answer(
                403,
                f'{what} is forbidden: User "system:serviceaccount:peco:x" cannot {verb} resource "{resource}" in API group '
                f'"{group}" {scope}',
            )

    def _send(self, status: int, body: Json) -> None:
        with self.fake.lock:
            data = json.dumps(body).encode()
        self.send_response(status, {409: "Conflict", 403: "Forbidden"}.get(status))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, chunks: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
                if not chunk.endswith(b"\n"):  # broken: no last chunk
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")
