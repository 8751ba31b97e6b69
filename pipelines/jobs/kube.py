"""The Kubernetes API as the workflow uses it: patient where it can't be reached, and one line where it refuses.

Environment:
    PECO_API_PATIENCE_SECONDS: how long the API may be out of reach before a step gives up; its job runs on (300)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals

T = TypeVar("T")

TIMEOUTS = (10, 30)  # seconds to connect, and to wait for an answer
LONGEST_DELAY = 30.0


class Unreachable(Exception):
    """The API didn't answer for too long."""


class Stopped(Exception):
    """A signal came while the API was out of reach."""


def connect() -> Any:
    """A client for the cluster that this pod is in, or else for the one that kubeconfig names.

    Raises:
        PecoError: there is neither.
    """
    from kubernetes import client, config
    from kubernetes.config import ConfigException

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

    class Client(client.ApiClient):  # type: ignore[misc]
        def request(self, *args: Any, _request_timeout: Any = None, **others: Any) -> Any:
            return super().request(*args, _request_timeout=_request_timeout or TIMEOUTS, **others)

    return Client(configuration)


def said(error: Any) -> str:
    """What the API says of an ApiException, in one line."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason)
    return " ".join(message.split())


class Api:
    """Calls that are repeated, ever more slowly, while the API can't be reached."""

    def __init__(self, namespace: str, stops: StopSignals, patience: float) -> None:
        self.client = connect()
        self.namespace = namespace
        self._stops, self._patience = stops, patience

    def call(
        self,
        what: str,
        action: Callable[[], T],
        *,
        passing: tuple[int, ...] = (),
        again: tuple[int, ...] = (408, 429),
        ignore_stop_for: float | None = None,
    ) -> T:
        """Do it.

        Args:
            what: the right that is needed: "create jobs.batch.volcano.sh".
            action: the call.
            passing: statuses that are an answer for the caller: the ApiException is passed on.
            again: statuses below 500 that another attempt may not meet.
            ignore_stop_for: after a stop signal keep retrying for this many seconds, or until a second signal.

        Raises:
            PecoError: the cluster refuses.
            Unreachable: it didn't answer for too long.
            Stopped: a stop was asked for while it didn't answer, or with `ignore_stop_for` a second one.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        deadline = time.monotonic() + (self._patience if ignore_stop_for is None else ignore_stop_for)
        delay = 1.0
        while True:
            try:
                return action()
            except ApiException as error:
                if error.status in passing:
                    raise
                if error.status and error.status < 500 and error.status not in again:
                    raise self.refused(what, error) from None
                reason = f"{error.status} {error.reason}"
            except (HTTPError, OSError) as error:
                reason = str(error)
            reason = " ".join(reason.split())
            if time.monotonic() + delay > deadline:
                raise Unreachable(reason)
            self._stops.wait(delay, ignore_first=ignore_stop_for is not None)
            if self._stops.first if ignore_stop_for is None else self._stops.second:
                raise Stopped(reason)
            delay = min(2 * delay, LONGEST_DELAY)

    def get(self, path: str, what: str, **query: str) -> dict[str, Any]:
        """The object or list at `path`, as plain data; an ApiException where there is none (404)."""

        def action() -> dict[str, Any]:
            response = self.client.call_api(
                path,
                "GET",
                query_params=list(query.items()),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
            )
            found: dict[str, Any] = json.loads(response.data)
            return found

        return self.call(what, action, passing=(404,))

    def refused(self, what: str, error: Any) -> PecoError:
        """An ApiException as a line for the user."""
        message = said(error)
        where = f"in namespace {self.namespace}"
        if error.status == 401:
            return PecoError(
                f"the cluster doesn't know who asks to {what} {where} (401: {message}); renew the credentials"
            )
        if error.status == 403:
            return PecoError(f"not allowed to {what} {where} ({message}); give the step's service account that right")
        if error.status == 404:
            return PecoError(f"can't {what} {where} ({message}); is Volcano installed, and is the namespace there?")
        return PecoError(f"the cluster refuses to {what} {where} ({error.status}: {message})")
