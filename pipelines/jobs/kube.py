"""Kubernetes API calls with retries while it is unreachable and one-line errors where it refuses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.jobs.backend import StopRequested

T = TypeVar("T")

TIMEOUTS = (10, 30)  # seconds to connect, and to wait for an answer
LONGEST_DELAY = 30.0


class Unreachable(Exception):
    """The API didn't answer for too long."""


class _Client(client.ApiClient):  # type: ignore[misc]
    def request(self, *args: Any, _request_timeout: Any = None, **others: Any) -> Any:
        return super().request(*args, _request_timeout=_request_timeout or TIMEOUTS, **others)


def connect() -> client.ApiClient:
    """A client for the cluster that this pod is in, or else for the one that kubeconfig names.

    Raises:
        PecoError: there is neither.
    """
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except ConfigException:
        try:
            # The client reads the variable only once, when it is imported.
            config.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise PecoError(f"no cluster: not in a pod, and no usable kubeconfig ({error}); set KUBECONFIG") from None
    configuration.retries = False  # Api has its own
    return _Client(configuration)


def error_message(error: ApiException) -> str:
    """The message in the API's answer, in one line."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason)
    return " ".join(message.split())


class Api:
    """Calls in one namespace, retried with growing delays while the API can't be reached."""

    def __init__(self, namespace: str, stops: StopSignals, patience: float) -> None:
        self.client = connect()
        self.core, self.custom = client.CoreV1Api(self.client), client.CustomObjectsApi(self.client)
        self.namespace = namespace
        self._stops, self._patience = stops, patience

    def call(
        self,
        right: str,
        action: Callable[[], T],
        *,
        pass_statuses: tuple[int, ...] = (),
        retry_statuses: tuple[int, ...] = (408, 429),
        ignore_stop_for: float | None = None,
    ) -> T:
        """Make the call and return its result.

        Args:
            right: the right that it needs: "create jobs.batch.volcano.sh".
            action: the call.
            pass_statuses: statuses whose ApiException the caller handles.
            retry_statuses: statuses below 500 that another attempt may not meet.
            ignore_stop_for: after a stop signal keep retrying for this many seconds, or until a second signal.

        Raises:
            PecoError: the cluster refuses.
            Unreachable: it didn't answer for too long.
            StopRequested: a stop signal came while it didn't answer, or with `ignore_stop_for` a second one.
        """
        deadline = time.monotonic() + (self._patience if ignore_stop_for is None else ignore_stop_for)
        delay = 1.0
        while True:
            try:
                return action()
            except ApiException as error:
                if error.status in pass_statuses:
                    raise
                if error.status and error.status < 500 and error.status not in retry_statuses:
                    raise self.refused(right, error) from None
                reason = f"{error.status} {error.reason}"
            except (HTTPError, OSError) as error:
                reason = str(error)
            reason = " ".join(reason.split())
            if time.monotonic() + delay > deadline:
                raise Unreachable(reason)
            self._stops.wait(delay, ignore_first=ignore_stop_for is not None)
            if self._stops.first if ignore_stop_for is None else self._stops.second:
                raise StopRequested(reason)
            delay = min(2 * delay, LONGEST_DELAY)

    def call_if_exists(self, right: str, action: Callable[[], T], **options: Any) -> T | None:
        """`call`, but None where there is no such object."""
        try:
            return self.call(right, action, pass_statuses=(404,), **options)
        except ApiException:
            return None

    def refused(self, right: str, error: ApiException) -> PecoError:
        """An ApiException as a line for the user."""
        action = f"{right} in namespace {self.namespace} ({error.status}: {error_message(error)})"
        if error.status == 403:
            return PecoError(f"not allowed to {action}; give the step's service account that right")
        hints = {401: "; renew the credentials", 404: "; is Volcano installed, and does the namespace exist?"}
        return PecoError(f"the cluster refuses to {action}{hints.get(error.status, '')}")
