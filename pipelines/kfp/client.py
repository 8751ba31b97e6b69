"""Kubeflow Pipelines' API as far as submitting needs it; each error is one line that says what to do.

It uses the generated API and not `kfp.Client`. That one sends requests in its constructor (with pauses and log messages while they
fail), sets no timeouts, prints addresses, and creates runs without a description, by which runs are found again here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from pipelines.kfp.schedule import Schedule

TIMEOUTS = (10, 60)  # seconds to connect, and between two reads
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"


class NoAnswerError(PecoError):
    """There was no answer, or one that leaves open if the request was or will be carried out."""


class RefusedError(PecoError):
    """The server answered with a refusal."""


class NotFoundError(RefusedError):
    """The server has no such object."""


@dataclass(frozen=True)
class Version:
    """A version of a pipeline that Kubeflow has registered, as runs refer to it."""

    pipeline_id: str
    pipeline_version_id: str


class Kubeflow:
    """One namespace of one installation.

    Args:
        env: KFP_HOST and, where they are needed, KFP_NAMESPACE, KFP_TOKEN, KFP_SERVICE_ACCOUNT. Without KFP_TOKEN the token is
            read from the file that Kubernetes projects into a pod (KF_PIPELINES_SA_TOKEN_PATH), if there is one. SSL_CERT_FILE
            names certificates to trust.

    Raises:
        PecoError: the host is missing, or the token can't be read.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        import kfp_server_api as api
        from urllib3 import Retry

        self.host = env.get("KFP_HOST", "").partition("#")[0].rstrip("/")
        self.namespace = {"namespace": env["KFP_NAMESPACE"]} if env.get("KFP_NAMESPACE") else {}
        self.account = {"service_account": env["KFP_SERVICE_ACCOUNT"]} if env.get("KFP_SERVICE_ACCOUNT") else {}
        if not self.host.startswith(("http://", "https://")):
            raise PecoError(
                f"KFP_HOST={self.host}: give the address of Kubeflow Pipelines, such as https://kubeflow.example.com/pipeline, "
                "or http://localhost:8080 for `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`"
            )
        settings = api.Configuration(host=self.host)
        settings.ssl_ca_cert = env.get("SSL_CERT_FILE") or None
        # A request is repeated only if it was not sent. A redirect leads to a login page.
        settings.retries = Retry(total=3, redirect=0, raise_on_redirect=False, backoff_factor=0.3)
        _authorize(settings, env)
        self._client = api.ApiClient(settings)
        self._health = api.HealthzServiceApi(self._client)
        self._experiments = api.ExperimentServiceApi(self._client)
        self._runs = api.RunServiceApi(self._client)
        self._schedules = api.RecurringRunServiceApi(self._client)
        self._pipelines = api.PipelineServiceApi(self._client)
        self._uploads = api.PipelineUploadServiceApi(self._client)

    def check(self) -> None:
        """Check that Kubeflow Pipelines answers at the address and that the namespace may be used.

        Raises:
            PecoError: it doesn't, or may not.
        """
        health = self._call(self._health.healthz_service_get_healthz)
        try:
            answer = json.loads(self._client.last_response.data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise PecoError(
                f"KFP_HOST={self.host}: the answer is not from Kubeflow Pipelines; its address may end in /pipeline"
            )
        if health.multi_user and not self.namespace:
            raise PecoError("KFP_NAMESPACE: not set; this Kubeflow has several users, so give your profile's namespace")
        self._call(self._experiments.experiment_service_list_experiments, page_size=1, **self.namespace)

    def find_experiment(self, name: str) -> str | None:
        """The id of the experiment of this name, None if there is none."""
        found = self._call(
            self._experiments.experiment_service_list_experiments,
            filter=_filter("EQUALS", "display_name", name),
            **self.namespace,
        )
        return str(found.experiments[0].experiment_id) if found.experiments else None

    def create_experiment(self, name: str) -> str:
        """Create an experiment and return its id."""
        body = {"display_name": name, **self.namespace}
        return str(self._call(self._experiments.experiment_service_create_experiment, body).experiment_id)

    def find_pipeline(self, name: str) -> str | None:
        """The id of the pipeline of this name, None if there is none."""
        try:
            found = self._call(self._pipelines.pipeline_service_get_pipeline_by_name, name, **self.namespace)
        except NotFoundError:
            return None
        return str(found.pipeline_id)

    def find_version(self, pipeline_id: str, name: str) -> Version | None:
        """The version of this name of a pipeline, None if there is none."""
        found = self._call(
            self._pipelines.pipeline_service_list_pipeline_versions,
            pipeline_id,
            filter=_filter("EQUALS", "name", name),
        )
        return (
            Version(pipeline_id, str(found.pipeline_versions[0].pipeline_version_id))
            if found.pipeline_versions
            else None
        )

    def create_pipeline(self, name: str, description: str) -> str:
        """Create a pipeline without versions and return its id."""
        body = {"name": name, "display_name": name, "description": description, **self.namespace}
        return str(self._call(self._pipelines.pipeline_service_create_pipeline, body).pipeline_id)

    def upload_version(self, file: Path, pipeline_id: str, name: str, description: str) -> Version:
        """Create a version of a pipeline from a compiled file."""
        options = {"name": name, "pipelineid": pipeline_id, "description": description}
        made = self._call(self._uploads.upload_pipeline_version, str(file), **options)
        return Version(pipeline_id, str(made.pipeline_version_id))

    def find_runs(self, experiment_id: str, label: str) -> list[Any]:
        """The runs whose description has the label, newest first, without archived ones."""
        found = self._call(
            self._runs.run_service_list_runs,
            experiment_id=experiment_id,
            page_size=50,
            sort_by="created_at desc",
            filter=_filter("IS_SUBSTRING", "description", label),
        )
        return [run for run in found.runs or () if run.storage_state != "ARCHIVED"]

    def create_run(self, experiment_id: str, name: str, description: str, version: Version, arguments: object) -> str:
        """Start a pipeline and return the id of its run."""
        body = self._run(experiment_id, name, description, version, arguments)
        return str(self._call(self._runs.run_service_create_run, body).run_id)

    def get_run(self, run_id: str) -> Any:
        """A run with its state and its tasks."""
        return self._call(self._runs.run_service_get_run, run_id)

    def find_schedules(self, experiment_id: str, label: str) -> list[Any]:
        """The enabled recurring runs whose description has the label."""
        found = self._call(
            self._schedules.recurring_run_service_list_recurring_runs,
            experiment_id=experiment_id,
            page_size=50,
            filter=_filter("IS_SUBSTRING", "description", label),
        )
        return [schedule for schedule in found.recurring_runs or () if schedule.status == "ENABLED"]

    def create_schedule(
        self, experiment_id: str, name: str, description: str, version: Version, arguments: object, schedule: Schedule
    ) -> str:
        """Start a pipeline repeatedly, one run at a time, and return the id of the recurring run."""
        # Long integers are strings in this API.
        trigger = (
            {"cron_schedule": {"cron": schedule.cron}}
            if schedule.cron
            else {"periodic_schedule": {"interval_second": str(schedule.seconds)}}
        )
        body = {
            **self._run(experiment_id, name, description, version, arguments),
            "trigger": trigger,
            "max_concurrency": "1",
            "no_catchup": True,
            "mode": "ENABLE",
        }
        created = self._call(self._schedules.recurring_run_service_create_recurring_run, body)
        return str(created.recurring_run_id)

    def read(self, path: str, query: Mapping[str, str]) -> str | None:
        """The text at an address that the generated API lacks, None if it isn't there or may not be read."""
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            self._client.call_api(
                path, "GET", query_params=list(query.items()), header_params={"Accept": "*/*"}, auth_settings=["Bearer"],
                _request_timeout=TIMEOUTS, _preload_content=False, _return_http_data_only=True,
            )  # fmt: skip
            answer = self._client.last_response
            return str(answer.data.decode(errors="replace")) if answer.status == 200 else None
        except (ApiException, HTTPError):
            return None

    def run_address(self, run_id: str) -> str:
        """Address of the run's page."""
        return f"{self.host}/#/runs/details/{run_id}"

    def schedule_address(self, schedule_id: str) -> str:
        """Address of the recurring run's page."""
        return f"{self.host}/#/recurringrun/details/{schedule_id}"

    def _run(
        self, experiment_id: str, name: str, description: str, version: Version, arguments: object
    ) -> dict[str, Any]:
        return {
            "experiment_id": experiment_id,
            "display_name": name,
            "description": description,
            "pipeline_version_reference": asdict(version),
            "runtime_config": {"parameters": arguments},
            **self.account,
        }

    def _call(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Send one request and return the answer.

        Raises:
            NoAnswerError: there was no answer.
            RefusedError: the answer was an error.
        """
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return request(*arguments, _request_timeout=TIMEOUTS, **options)
        except ApiException as error:
            if error.status in (0, 429) or error.status >= 500:  # 0: a broken TLS connection
                raise NoAnswerError(f"KFP_HOST={self.host}: {error.status or ''} {_message(error)}") from None
            raise (NotFoundError if error.status == 404 else RefusedError)(self._explain(error)) from None
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise NoAnswerError(f"KFP_HOST={self.host}: can't be reached: {type(reason).__name__}: {reason}") from None

    def _explain(self, error: Any) -> str:
        host = f"KFP_HOST={self.host}"
        if 300 <= error.status < 400:
            address = (error.headers or {}).get("Location", "another address")
            return f"{host}: redirects to {address}; set KFP_TOKEN if that is a login page, else set KFP_HOST to it"
        if error.status == 401:
            return f"{host}: the token was refused; set KFP_TOKEN to a valid one"
        if error.status == 403 and self.namespace:
            name = self.namespace["namespace"]
            return f"KFP_NAMESPACE={name}: no such namespace, or this token has no rights in it: {_message(error)}"
        if error.status == 403:
            return f"{host}: this token has no rights here: {_message(error)}"
        return f"{host}: {error.status}: {_message(error)}"


def _authorize(settings: Any, env: Mapping[str, str]) -> None:
    """Send the token with each request."""
    path = env.get("KF_PIPELINES_SA_TOKEN_PATH") or TOKEN_FILE
    if token := env.get("KFP_TOKEN", "").strip():
        settings.api_key = {"authorization": token}
    elif env.get("KF_PIPELINES_SA_TOKEN_PATH") or Path(path).exists():
        from kfp.client import ServiceAccountTokenVolumeCredentials

        try:
            Path(path).read_text()
        except OSError as error:
            raise PecoError(f"{path}: the token can't be read ({error.strerror})") from None
        # Kubernetes renews the file, so it is read for each request.
        settings.api_key = {"authorization": "read for each request"}
        settings.refresh_api_key_hook = ServiceAccountTokenVolumeCredentials(path).refresh_api_key_hook
    settings.api_key_prefix = {"authorization": "Bearer"}


def _filter(operation: str, key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": key, "string_value": value}]})


def _message(error: Any) -> str:
    """The message of the server's answer, its own or a proxy's."""
    try:
        text = str(json.loads(error.body)["message"])
    except (ValueError, LookupError, TypeError):
        text = str(error.body or error.reason)
    return text if len(text) <= 300 else text[:300] + "…"
