"""Kubernetes API calls with retries while it is unreachable and one-line errors where it refuses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.jobs import refusals
from pipelines.jobs.backend import StopRequested
from pipelines.jobs.connection import connect, permanent, reason_of

T = TypeVar("T")

SERVER_ERRORS = range(500, 600)
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # between two attempts; doubled after each
NOTICE_SECONDS = 5.0  # without an answer, until that is reported
# A quota of a new namespace is computed within five minutes.
PENDING_SECONDS = 600.0
PENDING_DELAY = 5.0


class Unreachable(Exception):
    """The API didn't answer for too long."""


class Api:
    """Calls in one namespace, retried with growing delays while the API can't be reached.

    Args:
        namespace: the namespace.
        stops: the stop signals, which end the waiting.
        patience: seconds for which the API may be away.
        note: shows a notice.

    Raises:
        PecoError: there is no cluster, or a file of the kubeconfig can't be used.
    """

    def __init__(self, namespace: str, stops: StopSignals, patience: float, note: Callable[[str], None]) -> None:
        self.client = connect()
        self.host = str(self.client.configuration.host)
        self.core, self.custom = client.CoreV1Api(self.client), client.CustomObjectsApi(self.client)
        self.namespace = namespace
        self._stops, self._patience, self._note = stops, patience, note
        self._answered = False
        self._trouble = ""  # the last reason without an answer
        self._noted = False  # it was reported

    def call(
        self,
        right: str,
        action: Callable[[], T],
        *,
        pass_statuses: tuple[int, ...] = (),
        retry_statuses: tuple[int, ...] = (408, 429),
        ignore_stop_for: float | None = None,
    ) -> T:
        """Make the call and return its result, after a wait where the cluster isn't ready to decide, or others use up a quota.

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
        begun, pending = time.monotonic(), ""
        while True:
            try:
                return self._answer(action, (*retry_statuses, *SERVER_ERRORS), ignore_stop_for)
            except ApiException as error:
                if error.status in pass_statuses:
                    raise
                refusal = refusals.of_call(error, right, self.namespace)
                late = refusal.pending and time.monotonic() - begun > PENDING_SECONDS
                if late or not (refusal.pending or refusal.shared):
                    raise PecoError(refusal.text) from None
            if refusal.text != pending:
                self._note(
                    f"{refusal.text}; waiting" + (f" for up to {PENDING_SECONDS:.0f} s" if refusal.pending else "")
                )
            pending = refusal.text
            self._wait(PENDING_DELAY, ignore_stop_for, pending)

    def _answer(self, action: Callable[[], T], retry_statuses: Container[int], ignore_stop_for: float | None) -> T:
        """Make the call, again and again while the API is away.

        Raises:
            ApiException: it refuses.
        """
        patience = self._patience if ignore_stop_for is None else ignore_stop_for
        deadline, delay = time.monotonic() + patience, FIRST_DELAY
        self._trouble = "no answer in time"
        notice = threading.Timer(NOTICE_SECONDS, self._note_silence, [patience])
        notice.daemon = True
        notice.start()
        try:
            while True:
                try:
                    result = action()
                    self._answered = True
                    if self._noted:
                        self._noted = False
                        self._note("the cluster's API answers again")
                    return result
                except ApiException as error:
                    if error.status and error.status not in retry_statuses:
                        self._answered = True
                        raise
                    self._trouble = (
                        f"{error.status}: {refusals.error_message(error)}" if error.status else reason_of(error)
                    )
                    failed: Exception = error
                except (HTTPError, OSError) as error:
                    self._trouble, failed = reason_of(error), error
                if final := permanent(failed, self.host, answered=self._answered):
                    raise final from None
                if time.monotonic() + delay > deadline:
                    raise Unreachable(self._trouble)
                self._wait(delay, ignore_stop_for, self._trouble)
                delay = min(2 * delay, LONGEST_DELAY)
        finally:
            notice.cancel()

    def _wait(self, seconds: float, ignore_stop_for: float | None, reason: str) -> None:
        self._stops.wait(seconds, ignore_first=ignore_stop_for is not None)
        if self._stops.first if ignore_stop_for is None else self._stops.second:
            raise StopRequested(reason)

    def _note_silence(self, patience: float) -> None:
        self._noted = True
        self._note(
            f"no usable answer from the cluster's API at {self.host} ({self._trouble}); trying for {patience:.0f} s"
        )

    def items(self, right: str, listing: Callable[..., Any], **options: Any) -> list[Mapping[str, Any]]:
        """`call` for a listing: its objects as plain data, since the client's classes refuse those of other versions."""
        return self.call(right, lambda: list(json.loads(listing(_preload_content=False).data)["items"]), **options)

    def call_if_exists(self, right: str, action: Callable[[], T], **options: Any) -> T | None:
        """`call`, but None where there is no such object."""
        try:
            return self.call(right, action, pass_statuses=(404,), **options)
        except ApiException:
            return None

    def refused(self, right: str, error: ApiException) -> PecoError:
        """An ApiException as a line for the user."""
        return PecoError(refusals.of_call(error, right, self.namespace).text)
