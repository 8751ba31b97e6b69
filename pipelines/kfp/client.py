"""Kubeflow Pipelines' API as far as submitting needs it; each error is one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from pipelines.kfp.schedule import Schedule

TIMEOUTS = (10, 60)  # seconds to connect, and between two reads
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"


class NoAnswerError(PecoError):
    """No answer, or one that leaves open whether the request was carried out, now or on a later try."""


class RefusedError(PecoError):
    """The server answered and refused."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


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
        self.namespace = env.get("KFP_NAMESPACE") or None
        self.service_account = env.get("KFP_SERVICE_ACCOUNT") or None
        if not self.host.startswith(("http://", "https://")):
            raise PecoError(
                f"KFP_HOST={self.host}: name the address of Kubeflow Pipelines, such as https://kubeflow.example.com/pipeline, "
                "or http://localhost:8080 for `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`"
            )
        settings = api.Configuration(host=self.host)
        settings.ssl_ca_cert = env.get("SSL_CERT_FILE") or None
        # What was not sent is sent again; what is not known to have arrived is not. A redirect leads to a login page.
        settings.retries = Retry(total=3, redirect=0, raise_on_redirect=False, backoff_factor=0.3)
        self._authorize(settings, env)
        self._client = api.ApiClient(settings)
        self._health = api.HealthzServiceApi(self._client)
        self._experiments = api.ExperimentServiceApi(self._client)
        self._runs = api.RunServiceApi(self._client)
        self._schedules = api.RecurringRunServiceApi(self._client)

    def _authorize(self, settings: Any, env: Mapping[str, str]) -> None:
        path = env.get("KF_PIPELINES_SA_TOKEN_PATH")
        if token := env.get("KFP_TOKEN", "").strip():
            settings.api_key = {"authorization": token}
        elif path or Path(TOKEN_FILE).exists():
            from kfp.client import ServiceAccountTokenVolumeCredentials

            try:
                Path(path or TOKEN_FILE).read_text()
            except OSError as error:
                raise PecoError(f"{path or TOKEN_FILE}: the token can't be read ({error.strerror})") from None
            # Kubernetes renews the file, so it is read for each request.
            settings.api_key = {"authorization": "read for each request"}
            settings.refresh_api_key_hook = ServiceAccountTokenVolumeCredentials(path).refresh_api_key_hook
        settings.api_key_prefix = {"authorization": "Bearer"}

    def check(self) -> None:
        """Check that this is Kubeflow Pipelines, that it lets us in, and that the namespace is ours.

        Raises:
            PecoError: it isn't, or doesn't.
        """
        health = self._call(self._health.healthz_service_get_healthz)
        try:
            answer = json.loads(self._client.last_response.data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise PecoError(
                f"KFP_HOST={self.host}: what answers is not Kubeflow Pipelines; its address may end in /pipeline"
            )
        if health.multi_user and self.namespace is None:
            raise PecoError(
                "KFP_NAMESPACE: not set; this Kubeflow has several users, so name the namespace of your profile"
            )
        self._call(self._experiments.experiment_service_list_experiments, page_size=1, **self._of_namespace)

    @property
    def _of_namespace(self) -> dict[str, str]:
        return {} if self.namespace is None else {"namespace": self.namespace}

    def find_experiment(self, name: str) -> str | None:
        """The id of the experiment of this name, None where there is none."""
        found = self._call(
            self._experiments.experiment_service_list_experiments,
            filter=_filter("EQUALS", "display_name", name),
            **self._of_namespace,
        )
        return str(found.experiments[0].experiment_id) if found.experiments else None

    def create_experiment(self, name: str) -> str:
        """Create an experiment and return its id."""
        from kfp_server_api import V2beta1Experiment

        experiment = V2beta1Experiment(display_name=name, namespace=self.namespace)
        created = self._call(self._experiments.experiment_service_create_experiment, experiment)
        return str(created.experiment_id)

    def find_runs(self, experiment_id: str, label: str) -> list[Any]:
        """The runs whose description has the label, newest first; archived ones are left out."""
        found = self._call(
            self._runs.run_service_list_runs,
            experiment_id=experiment_id,
            page_size=50,
            sort_by="created_at desc",
            filter=_filter("IS_SUBSTRING", "description", label),
        )
        return [run for run in found.runs or () if run.storage_state != "ARCHIVED"]

    def create_run(self, experiment_id: str, name: str, description: str, spec: object, arguments: object) -> str:
        """Start a pipeline and return the id of its run."""
        from kfp_server_api import V2beta1Run, V2beta1RuntimeConfig

        run = V2beta1Run(
            experiment_id=experiment_id,
            display_name=name,
            description=description,
            pipeline_spec=spec,
            runtime_config=V2beta1RuntimeConfig(parameters=arguments),
            service_account=self.service_account,
        )
        return str(self._call(self._runs.run_service_create_run, run).run_id)

    def get_run(self, run_id: str) -> Any:
        """A run with its state and its tasks."""
        return self._call(self._runs.run_service_get_run, run_id)

    def find_schedules(self, experiment_id: str, label: str) -> list[Any]:
        """The recurring runs that are enabled and whose description has the label."""
        found = self._call(
            self._schedules.recurring_run_service_list_recurring_runs,
            experiment_id=experiment_id,
            page_size=50,
            filter=_filter("IS_SUBSTRING", "description", label),
        )
        return [schedule for schedule in found.recurring_runs or () if schedule.status == "ENABLED"]

    def create_schedule(
        self, experiment_id: str, name: str, description: str, spec: object, arguments: object, schedule: Schedule
    ) -> str:
        """Start a pipeline again and again, one run at a time, and return the recurring run's id."""
        import kfp_server_api as api

        if schedule.cron:
            trigger = api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=schedule.cron))
        else:
            # Long integers are text in this API.
            periodic = api.V2beta1PeriodicSchedule(interval_second=str(schedule.seconds))
            trigger = api.V2beta1Trigger(periodic_schedule=periodic)
        recurring = api.V2beta1RecurringRun(
            experiment_id=experiment_id,
            display_name=name,
            description=description,
            pipeline_spec=spec,
            runtime_config=api.V2beta1RuntimeConfig(parameters=arguments),
            service_account=self.service_account,
            trigger=trigger,
            max_concurrency="1",
            no_catchup=True,
            mode="ENABLE",
        )
        created = self._call(self._schedules.recurring_run_service_create_recurring_run, recurring)
        return str(created.recurring_run_id)

    def run_address(self, run_id: str) -> str:
        """Where a browser shows the run."""
        return f"{self.host}/#/runs/details/{run_id}"

    def schedule_address(self, schedule_id: str) -> str:
        """Where a browser shows the recurring run."""
        return f"{self.host}/#/recurringrun/details/{schedule_id}"

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
            raise RefusedError(self._explain(error), error.status) from None
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise NoAnswerError(f"KFP_HOST={self.host}: can't be reached: {type(reason).__name__}: {reason}") from None

    def _explain(self, error: Any) -> str:
        if 300 <= error.status < 400:
            place = (error.headers or {}).get("Location", "another address")
            return f"KFP_HOST={self.host}: sends us on to {place}; set KFP_TOKEN if that is a login page, else name that address"
        if error.status == 401:
            return f"KFP_HOST={self.host}: the token was refused; set KFP_TOKEN to one that is valid"
        if error.status == 403 and self.namespace:
            return f"KFP_NAMESPACE={self.namespace}: no such namespace, or one that this token has no rights in: {_message(error)}"
        if error.status == 403:
            return f"KFP_HOST={self.host}: this token has no rights here: {_message(error)}"
        return f"KFP_HOST={self.host}: {error.status}: {_message(error)}"


def _filter(operation: str, key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": key, "string_value": value}]})


def _message(error: Any) -> str:
    """What the server says, of its own errors as of a proxy's."""
    try:
        text = str(json.loads(error.body)["message"])
    except (ValueError, LookupError, TypeError):
        text = str(error.body or error.reason)
    return text if len(text) <= 300 else text[:300] + "…"
