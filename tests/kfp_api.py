"""Kubeflow Pipelines' API for tests: an HTTP server on this machine that behaves as the real one, as far as submitting needs it.

If the published OpenAPI document is available, every request is checked against it: path, method, query, body without unknown or
output-only fields. The server's answers are checked too.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator

DOCUMENT = "kfp_api_v2beta1.swagger.json"
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13}
DATE = "2026-01-01T00:00:00Z"
# Fields of a cron expression as the real server (robfig/cron 1.2) reads them: lowest and highest number, names of the numbers.
CRON: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (0, 59, ()),
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    (0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


class Contract:
    """Checks of requests and answers against the OpenAPI (Swagger 2.0) document."""

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text())
        self.definitions = {name: _strict(schema) for name, schema in document["definitions"].items()}
        self.requests: dict[str, Any] = {name: _input(schema) for name, schema in self.definitions.items()}
        self.paths = [
            (re.compile(re.sub(r"\{[^}]+\}", "[^/:]+", path)), methods) for path, methods in document["paths"].items()
        ]

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """The document's entry for a request, None if there is none."""
        found = [methods for pattern, methods in self.paths if pattern.fullmatch(path)]
        return found[0].get(method.lower()) if found else None

    def faults(self, operation: dict[str, Any], query: dict[str, list[str]], body: object) -> list[str]:
        """The faults of a request."""
        parameters = {parameter["name"]: parameter for parameter in operation.get("parameters", ())}
        faults = [
            f"query {name}: not in the document" for name in query if parameters.get(name, {}).get("in") != "query"
        ]
        for name, values in query.items():
            kind = parameters.get(name, {}).get("type")
            if len(values) != 1 or (kind == "integer" and not values[0].isdecimal()):
                faults.append(f"query {name}: {values}")
        if "filter" in query:
            faults += self._errors(self.requests, "v2beta1Filter", json.loads(query["filter"][0]))
        bodies = [parameter["schema"] for parameter in parameters.values() if parameter["in"] == "body"]
        if not bodies:
            return faults + (["a body where there is none"] if body is not None else [])
        return faults + self._errors(self.requests, bodies[0]["$ref"].rpartition("/")[2], body)

    def check_answer(self, operation: dict[str, Any], answer: object) -> None:
        """Fail for an answer that the document doesn't allow."""
        schema = operation["responses"]["200"]["schema"]
        if "$ref" in schema:
            assert not (errors := self._errors(self.definitions, schema["$ref"].rpartition("/")[2], answer)), errors

    @staticmethod
    def _errors(definitions: dict[str, Any], name: str, data: object) -> list[str]:
        validator = Draft4Validator({"$ref": f"#/definitions/{name}", "definitions": definitions})
        return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(data)]


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused, and with long integers checked to be strings of digits."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        strict["additionalProperties"] = False
    if schema.get("type") == "string" and schema.get("format") == "int64":
        strict["pattern"] = "^-?[0-9]+$"
    return strict


def _input(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without fields that only the server sets."""
    properties = {
        name: value
        for name, value in schema.get("properties", {}).items()
        if not value.get("readOnly") and not value.get("description", "").startswith("Output")
    }
    required = [name for name, value in properties.items() if value.get("description", "").startswith("Required input")]
    return (
        {**schema, "properties": properties, **({"required": required} if required else {})} if properties else schema
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
        lost: number of next answers to requests that create something that are lost.
        break_off: number of next requests for a run that are cut off.
    """

    contract: Contract | None
    token: str | None = None
    namespaces: set[str] | None = None
    experiments: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    script: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lost: int = 0
    break_off: int = 0
    address: str = ""

    @property
    def created(self) -> list[dict[str, Any]]:
        """All created objects."""
        return self.experiments + self.runs + self.schedules

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any, token: str | None) -> Any:
        """Status and content of the answer; None for no answer."""
        self.requests.append(f"{method} {path}")
        self.tokens.append(token)
        operation = self.contract.operation(method, path) if self.contract else None
        if self.contract and operation is None:
            self.faults.append(f"{method} {path}: not in the document")
            return _error(404, "Not Found")
        if self.contract and operation and (faults := self.contract.faults(operation, query, body)):
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
        if path.count("/") == 4 and method == "GET" and self.break_off:
            self.break_off -= 1
            return None
        return status, answer

    def _route(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        kind, _, name = path.partition("/")
        if kind == "healthz":
            return 200, {"multi_user": self.namespaces is not None}
        stores: dict[str, tuple[list[dict[str, Any]], Callable[[Any], tuple[int, Any]]]] = {
            "experiments": (self.experiments, self._create_experiment),
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
        listed = [item for item in reversed(store) if _matches(item, query)]
        key = {"recurringruns": "recurringRuns"}.get(kind, kind)
        return 200, {key: listed, "total_size": len(listed)} if listed else {}

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
            return _error(409, f"Already exist error: experiment {body['display_name']}")
        made = {
            **body,
            "experiment_id": f"experiment-{len(self.experiments)}",
            "created_at": DATE,
            "storage_state": "AVAILABLE",
        }
        self.experiments.append(made)
        return 200, made

    def _create_run(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not self._is_experiment(body):
            return _error(404, f"Experiment {body.get('experiment_id')} not found.")
        made = {
            **body,
            "run_id": f"run-{len(self.runs)}",
            "created_at": DATE,
            "storage_state": "AVAILABLE",
            "state": "PENDING",
        }
        self.runs.append(made)
        return 200, made

    def _create_schedule(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not self._is_experiment(body):
            return _error(404, f"Experiment {body.get('experiment_id')} not found.")
        if not 1 <= int(body["max_concurrency"]) <= 10:
            return _error(400, "Max concurrency must be between 1 and 10")
        if not _is_cron(body["trigger"].get("cron_schedule", {}).get("cron", "* * * * * *")):
            return _error(400, "Invalid input error: Schedule cron is not a supported format")
        made = {**body, "recurring_run_id": f"schedule-{len(self.schedules)}", "created_at": DATE, "status": "ENABLED"}
        self.schedules.append(made)
        return 200, made

    def _is_experiment(self, body: dict[str, Any]) -> bool:
        return any(item["experiment_id"] == body.get("experiment_id") for item in self.experiments)

    def _get_run(self, run_id: str) -> tuple[int, Any]:
        found = [run for run in self.runs if run["run_id"] == run_id]
        if not found:
            return _error(404, f"Run {run_id} not found.")
        if self.script:
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            found[0].update(step)
        return 200, found[0]


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


def task(name: str, state: str, error: str = "", task_id: str = "", parent: str = "") -> dict[str, Any]:
    """A task in the server's answer."""
    answer: dict[str, Any] = {"display_name": name, "state": state, "create_time": DATE, "task_id": task_id or name}
    if error:
        answer["error"] = {"code": 2, "message": error}
    return {**answer, "parent_task_id": parent} if parent else answer


def moment(state: str, *tasks: dict[str, Any], error: str = "") -> dict[str, Any]:
    """A run at one moment, as in the server's answer."""
    answer = {"state": state, "run_details": {"task_details": list(tasks)}}
    return {**answer, "error": {"code": 2, "message": error}} if error else answer


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
    return status, {"error": message, "code": CODES[status], "message": message, "details": []}


@contextlib.contextmanager
def serve(api: KfpApi) -> Iterator[KfpApi]:
    """Answer on a free port of this machine; fail at the end if a request has broken the contract."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _handle(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
            try:
                answered = api.answer(self.command, parts.path, query, body, self.headers.get("Authorization"))
            except Exception as error:  # a bug of this server must not look like a fault of the network
                api.faults.append(f"{self.command} {self.path}: {error!r}")
                answered = _error(500, repr(error))
            if answered is None:
                self.close_connection = True
                return
            data = json.dumps(answered[1]).encode()
            self.send_response(answered[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _handle

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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
