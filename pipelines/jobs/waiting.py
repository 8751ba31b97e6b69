"""The time before a Volcano job runs: the reasons are reported now and then, and those that don't pass end it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kubernetes.client.exceptions import ApiException

from pipelines.jobs import capacity, pods, refusals
from pipelines.jobs.job import Job
from pipelines.jobs.kube import Api

NOTE_SECONDS = 300.0  # between two notices that a job still waits
FIRST_NOTE_SECONDS = 15.0
STUCK_SECONDS = 120.0  # an image that can't be pulled may not have been pushed yet
EVENT_SECONDS = 5.0  # between two looks at the events of a job without pods

Json = Mapping[str, Any]


class Waiting:
    """The waiting of one job.

    Args:
        api: the API.
        job: the job.
        note: shows a notice.
    """

    def __init__(self, api: Api, job: Job, note: Callable[[str], None]) -> None:
        self._api, self._job, self._note = api, job, note
        self._pods = job.app.roles[0].num_replicas
        self._since = time.monotonic()
        self._noted = self._since + FIRST_NOTE_SECONDS - NOTE_SECONDS
        self._stuck_since: float | None = None
        self._refusal: refusals.Refusal | None = None
        self._looked = float("-inf")  # at the events

    def problem(self, found: Json, current: list[pods.Pod]) -> str | None:
        """Report now and then why the job doesn't run yet. Returns the reason if it can't start at all.

        Args:
            found: the job, which has not ended.
            current: its pods.
        """
        now = time.monotonic()
        complete = len(current) >= self._pods
        if complete and all(pods.has_started(pod) for pod in current):
            self._noted, self._stuck_since = now, None
            return None
        stuck = pods.stuck(current)
        if not stuck:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since >= STUCK_SECONDS:
            return f"job {self._job.name} can't start: {stuck}; correct that and run again"
        refusal = None if complete else self._refused(found, now)
        if refusal and not refusal.pending and not refusal.shared:
            return f"job {self._job.name} can't start: {refusal.text}"
        if now - self._noted >= NOTE_SECONDS:
            self._noted = now
            reason = stuck or (refusal.text if refusal else self._reason(found, current))
            self._note(
                f"job {self._job.name} has been waiting for {now - self._since:.0f} s: {' '.join(reason.split())}"
            )
        return None

    def _refused(self, found: Json, now: float) -> refusals.Refusal | None:
        """The reason for which the cluster refuses the job's pods; None if it doesn't, or the account can't read events."""
        if now - self._looked >= EVENT_SECONDS:
            self._looked = now
            events = self._events(f"involvedObject.uid={found['metadata']['uid']}", "FailedCreate")
            self._refusal = refusals.of_pods(events[-1], self._api.namespace, self._pods) if events else None
        return self._refusal

    def _reason(self, found: Json, current: list[pods.Pod]) -> str:
        """The reason of the scheduler, with what the job asks for and the cluster has; or that of a pod that has a node."""
        unscheduled = pods.unscheduled(current)
        if current and not unscheduled:
            warnings = [
                text for pod in current for text in self._events(f"involvedObject.uid={pod['metadata']['uid']}")
            ]
            return warnings[-1] if warnings else "its containers are being set up"
        resources = self._job.resources
        group = f"{self._job.name}-{found['metadata']['uid']}"
        # The other message of the scheduler only counts pods.
        events = self._events(f"involvedObject.name={group}", "Unschedulable")
        volcano = [text for text in events if not re.match(r"\d+/\d+ tasks in gang unschedulable", text)]
        reason = unscheduled or (volcano[-1] if volcano else f"no room yet in queue {capacity.queue_name(resources)}")
        commands = capacity.commands(self._api.namespace, group, resources)
        return "; ".join([reason, *capacity.describe(self._api, resources), f"for an administrator: {commands}"])

    def _events(self, selector: str, *reasons: str) -> list[str]:
        """Messages of the events of an object, oldest first, by default of all warnings; empty if the account can't read them."""
        listing = partial(self._api.core.list_namespaced_event, self._api.namespace, field_selector=selector)
        try:
            events = self._api.items("list events", listing, pass_statuses=capacity.NOT_VISIBLE)
        except ApiException:
            return []
        events.sort(key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"])
        wanted = (
            event for event in events if event["reason"] in reasons or (not reasons and event["type"] == "Warning")
        )
        return [str(event.get("message") or event["reason"]) for event in wanted]
