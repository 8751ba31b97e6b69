"""Kubeflow Pipelines' API for tests: an HTTP server on this machine that answers as Kubeflow Pipelines 2.17.0 has answered.

If the published OpenAPI document is available, every request is checked against it: path, method, query, body without unknown or
output-only fields. The server's answers are checked too. Pods and logs are not in the document; Kubeflow's UI serves them.
"""

from __future__ import annotations

import contextlib
import email
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from kfp_answers import DATE, NO_DATE
from kfp_contract import Contract
from kubernetes_api import Server

CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13}
# Fields of a cron expression as the real server (robfig/cron 1.2) reads them: lowest and highest number, names of the numbers.
CRON: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (0, 59, ()),
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    (0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


@dataclass
class KfpApi:
    """The server's state, which a test sets up and inspects.

    Attributes:
        token: the token that requests must carry; None accepts all.
        contract: checks of requests and answers, None for no checks.
        namespaces: namespaces in which the token has rights; None is an installation for one user.
        runs: the created runs, with the server's own fields.
        script: states of the run and its tasks, by which successive requests for the run are answered.
        pods: pods as Kubeflow's UI shows them, by name.
        logs: their logs; an API server without the UI in front of it shows these too.
        lost: number of next answers to requests that create something that are lost.
        break_off: number of next requests for a run that are cut off.
    """

    contract: Contract | None
    token: str | None = None
    namespaces: set[str] | None = None
    experiments: list[dict[str, Any]] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    script: list[dict[str, Any]] = field(default_factory=list)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lost: int = 0
    break_off: int = 0
    address: str = ""

    @property
    def created(self) -> list[dict[str, Any]]:
        """All created objects."""
        return self.experiments + self.pipelines + self.versions + self.runs + self.schedules

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any, token: str | None) -> Any:
        """Status and content of the answer; None for no answer."""
        self.requests.append(f"{method} {path}")
        self.tokens.append(token)
        if path.startswith("/k8s/") or path.endswith("/log"):
            return self._pod(path, query)
        operation = self.contract.operation(method, path) if self.contract else None
        if self.contract and operation is None:
            self.faults.append(f"{method} {path}: not in the document")
            return 404, {"code": 5, "message": "Not Found"}
        given = None if isinstance(body, str) else body  # a text is an uploaded file
        if self.contract and operation and (faults := self.contract.faults(operation, query, given)):
            self.faults += [f"{method} {path}: {fault}" for fault in faults]
            return _error(400, "; ".join(faults))
        if self.token is not None and token != f"Bearer {self.token}":
            return _error(401, "Request header error: there is no user identity header.")
        status, answer = self._route(method, path.removeprefix("/apis/v2beta1/"), query, body)
        if status == 200 and self.contract and operation:
            self.contract.check_answer(operation, answer)
        if method == "POST" and self.lost:
            self.lost -= 1
            return None
        if path.startswith("/apis/v2beta1/runs/") and method == "GET" and self.break_off:
            self.break_off -= 1
            return None
        return status, answer

    def _route(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        kind, _, name = path.partition("/")
        if kind == "healthz":
            multi_user = self.namespaces is not None
            return 200, {"multi_user": multi_user, "pipeline_store": "database"}
        if kind == "pipelines" and name:
            return self._pipelines(name, query, body)
        stores: dict[str, tuple[list[dict[str, Any]], Callable[[Any], tuple[int, Any]]]] = {
            "experiments": (self.experiments, self._create_experiment),
            "pipelines": (self.pipelines, self._create_pipeline),
            "runs": (self.runs, self._create_run),
            "recurringruns": (self.schedules, self._create_schedule),
        }
        store, create = stores[kind]
        if method == "POST":
            return create(body)
        if name:
            return self._get_run(name)
        namespace = query.get("namespace", [""])[0]
        if kind == "experiments" and (refused := self._refuse(namespace)):
            return refused
        # The one key in camel case.
        return 200, _listing({"recurringruns": "recurringRuns"}.get(kind, kind), store, query)

    def _refuse(self, namespace: str) -> tuple[int, Any] | None:
        if self.namespaces is None or namespace in self.namespaces:
            return None
        if not namespace:
            return _error(400, "An experiment cannot have an empty namespace in multi-user mode")
        return _error(403, f"User 'jane' is not authorized with reason: no rights in namespace {namespace}")

    def _create_experiment(self, body: dict[str, Any]) -> tuple[int, Any]:
        if refused := self._refuse(body.get("namespace", "")):
            return refused
        if any(item["display_name"] == body["display_name"] for item in self.experiments):
            return _error(409, f"The name {body['display_name']} already exists. Please specify a new name")
        made = {
            **body,
            "experiment_id": f"experiment-{len(self.experiments)}",
            "created_at": DATE,
            "storage_state": "AVAILABLE",
            "last_run_created_at": NO_DATE,
        }
        self.experiments.append(made)
        return 200, made

    def _create_pipeline(self, body: dict[str, Any]) -> tuple[int, Any]:
        if refused := self._refuse(body.get("namespace", "")):
            return refused
        if any(item["name"] == body["name"] for item in self.pipelines):
            return _error(409, f"The name {body['name']} already exists. Please specify a new name")
        made = {**body, "pipeline_id": f"pipeline-{len(self.pipelines)}", "created_at": DATE}
        self.pipelines.append(made)
        return 200, made

    def _pipelines(self, name: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """A pipeline by its name, the versions of one, or a new version from an uploaded file."""
        if name == "upload_version":
            pipeline, platform = yaml.safe_load_all(body)
            pipeline_id, own = query["pipelineid"][0], query["name"][0]
            if any((item["pipeline_id"], item["name"]) == (pipeline_id, own) for item in self.versions):
                return _error(409, f"The name {own} already exists. Please specify a new name")
            made = {
                "pipeline_id": pipeline_id,
                "pipeline_version_id": f"version-{len(self.versions)}",
                "display_name": own,
                "name": own,
                "description": query["description"][0],
                "created_at": DATE,
                "pipeline_spec": {"pipeline_spec": pipeline, "platform_spec": platform},
            }
            self.versions.append(made)
            return 200, made
        first, _, rest = name.partition("/")
        if first == "names":
            found = [item for item in self.pipelines if item["name"] == rest]
            return (200, found[0]) if found else _error(404, f"Pipeline {rest} not found")
        versions = [item for item in self.versions if item["pipeline_id"] == first]
        return 200, _listing("pipeline_versions", versions, query)

    def _create_run(self, body: dict[str, Any]) -> tuple[int, Any]:
        if refused := self._wrong_run(body):
            return refused
        made = {
            **body,
            "run_id": f"run-{len(self.runs)}",
            "created_at": DATE,
            "finished_at": NO_DATE,
            "storage_state": "AVAILABLE",
            "state": "PENDING",
            "state_history": [{"update_time": DATE, "state": "PENDING"}],
        }
        self.runs.append(made)
        return 200, made

    def _create_schedule(self, body: dict[str, Any]) -> tuple[int, Any]:
        if refused := self._wrong_run(body):
            return refused
        if not 1 <= int(body["max_concurrency"]) <= 10:
            return _error(400, "Max concurrency must be between 1 and 10")
        if not _is_cron(body["trigger"].get("cron_schedule", {}).get("cron", "* * * * * *")):
            return _error(400, "Invalid input error: Schedule cron is not a supported format")
        made = {**body, "recurring_run_id": f"schedule-{len(self.schedules)}", "created_at": DATE, "status": "ENABLED"}
        self.schedules.append(made)
        return 200, made

    def _wrong_run(self, body: dict[str, Any]) -> tuple[int, Any] | None:
        if all(item["experiment_id"] != body.get("experiment_id") for item in self.experiments):
            return _error(404, f"Experiment {body.get('experiment_id')} not found.")
        wanted = body["pipeline_version_reference"]
        found = [item for item in self.versions if {key: item[key] for key in wanted} == wanted]
        if not found:
            return _error(404, f"PipelineVersion {wanted['pipeline_version_id']} not found")
        inputs = found[0]["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        if unknown := set(body["runtime_config"]["parameters"]) - set(inputs):
            return _error(400, f"parameter(s) provided are not required by pipeline: {', '.join(sorted(unknown))}")
        return None

    def _get_run(self, run_id: str) -> tuple[int, Any]:
        found = [run for run in self.runs if run["run_id"] == run_id]
        if not found:
            return _error(404, f"Run {run_id} not found")
        if self.script:
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            found[0].update(step)
        return 200, found[0]

    def _pod(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        """A pod or a log, at the addresses of the UI, or a log at that of the API server."""
        name = query["podname"][0]
        if path == "/k8s/pod" and name in self.pods:
            return 200, self.pods[name]
        if path.endswith(f"/nodes/{name}/log") and path.startswith("/apis/v2beta1/") and name in self.logs:
            return 200, self.logs[name]
        return 404, {"code": 5, "message": "Not Found"}


def _is_cron(text: str) -> bool:
    """Check a cron expression as the real server does: each field is a list of `*`, numbers and ranges, with or without `/step`."""
    fields = text.split()
    return len(fields) == len(CRON) and all(
        _is_cron_item(item, *limits) for field, limits in zip(fields, CRON, strict=True) for item in field.split(",")
    )


def _is_cron_item(item: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    span, slash, step = item.partition("/")
    if slash and (not step.isdecimal() or int(step) == 0):
        return False
    if span in ("*", "?"):
        return True
    ends = [str(low + names.index(end)) if end in names else end for end in span.lower().split("-")]
    if len(ends) > 2 or not all(end.isdecimal() for end in ends):
        return False
    numbers = [low, *map(int, ends), high]
    return numbers == sorted(numbers)


def _listing(key: str, items: list[dict[str, Any]], query: dict[str, list[str]]) -> dict[str, Any]:
    """An answer with a list, newest first; an empty list is no list."""
    found = [item for item in reversed(items) if _matches(item, query)]
    return {key: found, "total_size": len(found)} if found else {}


def _matches(item: dict[str, Any], query: dict[str, list[str]]) -> bool:
    for key in ("namespace", "experiment_id"):
        if key in query and key in item and item[key] != query[key][0]:
            return False
    for predicate in json.loads(query.get("filter", ["{}"])[0]).get("predicates", ()):
        value = item.get(predicate["key"], "")
        wanted = predicate["string_value"]
        if not {"EQUALS": value == wanted, "IS_SUBSTRING": wanted in value}[predicate["operation"]]:
            return False
    return True


def _error(status: int, message: str) -> tuple[int, Any]:
    details = [{"@type": "type.googleapis.com/google.rpc.Status", "code": CODES[status], "message": message}]
    return status, {"code": CODES[status], "message": message, "details": details}


def _body(content_type: str, data: bytes) -> Any:
    """The JSON of a request, or the text of the file that it uploads."""
    if not content_type.startswith("multipart/"):
        return json.loads(data) if data else None
    message = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + data)
    whole, part, *others = message.walk()
    assert whole.is_multipart() and not others and part.get_param("name", header="content-disposition") == "uploadfile"
    return str(part.get_payload(decode=True), "utf-8")  # type: ignore[arg-type]


@contextlib.contextmanager
def serve(api: KfpApi) -> Iterator[KfpApi]:
    """Answer on a free port of this machine; fail at the end if a request has broken the contract."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _handle(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = _body(self.headers.get("Content-Type") or "", self.rfile.read(length))
            query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
            try:
                answered = api.answer(self.command, parts.path, query, body, self.headers.get("Authorization"))
            except Exception as error:  # a bug of this server must not look like a fault of the network
                api.faults.append(f"{self.command} {self.path}: {error!r}")
                answered = _error(500, repr(error))
            if answered is None:
                self.close_connection = True
                return
            text = answered[1]
            data = (text if isinstance(text, str) else json.dumps(text)).encode()
            self.send_response(answered[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _handle

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    api.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not api.faults, api.faults
