"""One stage as a Volcano job: created or found, followed to its end, aborted on request."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from kubernetes.client.exceptions import ApiException
from torchx.runner import Runner
from torchx.schedulers.kubernetes_scheduler import create_scheduler

from peco.core.stopping import StopSignals
from pipelines.jobs import pods
from pipelines.jobs.backend import RESUME, Backend, StopRequested
from pipelines.jobs.job import Job
from pipelines.jobs.kube import Api, Unreachable
from pipelines.jobs.logs import Screen
from pipelines.jobs.pod_log import LOG_SECONDS, PodLogs
from pipelines.jobs.volcano_job import GROUP, PLURAL, VERSION, adjust, read_settings, scheduler_options
from pipelines.workflow.environment import API_PATIENCE_SECONDS

NOTE_SECONDS = 300.0  # between two notices that a job still waits
FIRST_NOTE_SECONDS = 15.0
STUCK_SECONDS = 120.0  # an image that can't be pulled may not have been pushed yet
JOBS = f"{PLURAL}.{GROUP}"
# Phases of a job that Volcano still works on; at first there is none.
LIVE = ("", "Pending", "Running", "Restarting", "Completing")


class Volcano(Backend):
    """A Volcano job in the namespace of PECO_NAMESPACE.

    Raises:
        PecoError: a variable is missing or wrong, or there is no cluster.
    """

    poll_seconds = 2.0

    def __init__(self, job: Job, screen: Screen, stops: StopSignals, env: Mapping[str, str]) -> None:
        super().__init__(job, screen, stops)
        self.settings = read_settings(env)
        self.api = Api(self.settings.namespace, stops, API_PATIENCE_SECONDS.integer(env))
        self.runner = Runner("peco", {"kubernetes": lambda name, **_: create_scheduler(name, client=self.api.client)})
        namespace = self.settings.namespace
        self.key = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": PLURAL, "name": job.name}
        self.logs = PodLogs(self.api, self.output, self.note)
        self.cause: pods.End | None = None
        self.ends_at = float("inf")
        self.waiting_since = time.monotonic()
        self.noted = self.waiting_since + FIRST_NOTE_SECONDS - NOTE_SECONDS
        self.stuck_since: float | None = None

    def follow(self) -> int:
        """`Backend.follow`; an unreachable API leaves the job as it is."""
        try:
            return super().follow()
        except Unreachable as error:
            return self.fail(
                f"the cluster's API can't be reached ({error}); job {self.job.name} is left as it is: "
                "run again to find and follow it"
            )

    # Creating or finding

    def start(self) -> None:
        """Create the job, or attach to a live one; one that has ended is replaced."""
        request = None
        while not self.stops.first:
            found = self._get()
            if found is None:
                request = request or self._request()
                if self._create(request):
                    self.note(f"job {self.job.name} created in namespace {self.settings.namespace}")
                    return
            elif found["metadata"].get("deletionTimestamp"):
                self.stops.wait(self.poll_seconds)
            elif _phase(found) in LIVE:
                self._adopt()
                self.note(f"job {self.job.name} already exists ({_phase(found) or 'new'}): following it")
                return
            else:
                self.note(f"job {self.job.name} of an earlier attempt has ended ({_phase(found)}): replacing it")
                self._delete()
        raise StopRequested

    def _request(self) -> Any:
        request = self.runner.dryrun(self.job.app, "kubernetes", scheduler_options(self.job, self.settings))
        plain = self.api.client.sanitize_for_serialization(request.request.resource)
        request.request.resource = adjust(plain, self.job, self.settings)
        return request

    def _create(self, request: Any) -> bool:
        """False if a job of this name has appeared meanwhile."""

        def create() -> bool:
            try:
                self.runner.schedule(request)
            except ValueError as error:  # TorchX's word for a conflict
                if isinstance(error.__cause__, ApiException) and error.__cause__.status == 409:
                    return False
                raise
            return True

        return self.api.call(f"create {JOBS}", create)

    def _get(self) -> dict[str, Any] | None:
        return self.api.call_if_exists(f"get {JOBS}", lambda: self.api.custom.get_namespaced_custom_object(**self.key))

    def _adopt(self) -> None:
        if self.settings.owner:
            patch = {"metadata": {"ownerReferences": [self.settings.owner]}}
            self.api.call(
                f"patch {JOBS}", lambda: self.api.custom.patch_namespaced_custom_object(**self.key, body=patch)
            )

    def _delete(self) -> None:
        # Foreground: the job is gone only when its pods are.
        self.api.call_if_exists(
            f"delete {JOBS}",
            lambda: self.api.custom.delete_namespaced_custom_object(**self.key, propagation_policy="Foreground"),
        )

    # Following

    def poll(self) -> int | None:
        """Show new lines and the reason why the job waits; the exit status once it has ended."""
        found = self._get()
        current = self._pods()
        self.logs.show()
        if found is None:
            return self.fail(f"job {self.job.name} was deleted by someone else; run again")
        phase = _phase(found)
        self.cause = self.cause or pods.first_end(current)
        if phase == "Completed":
            self.logs.drain()
            return 0
        if self.cause and self.cause.kind != "evicted":
            self.logs.drain(self.cause.pod)
            return self._ended(self.cause)
        if phase in LIVE:
            return self._waiting(found, current)
        # A preempted job is saving its work: its last lines and its end are worth the grace period.
        grace = self.job.grace + LOG_SECONDS if phase == "Terminating" else 0
        self.ends_at = min(self.ends_at, time.monotonic() + grace)
        if time.monotonic() < self.ends_at:
            return None
        self.logs.drain()
        return self._ended(self.cause) if self.cause else self._ended_unseen(found)

    def _pods(self) -> list[pods.Pod]:
        """The job's pods; their logs are followed."""

        def read() -> list[pods.Pod]:
            # As plain data: the client's classes refuse objects that differ from its own version of the API.
            response = self.api.core.list_namespaced_pod(
                self.settings.namespace, label_selector=f"volcano.sh/job-name={self.job.name}", _preload_content=False
            )
            return list(json.loads(response.data)["items"])

        found = self.api.call("list pods", read)
        for pod in found:
            self.logs.follow(pod)
        return found

    def _waiting(self, found: Mapping[str, Any], current: list[pods.Pod]) -> int | None:
        """Report now and then why the job doesn't run yet; abort it and return 2 where that is permanent."""
        now = time.monotonic()
        if reason := pods.stuck(current):
            self.stuck_since = self.stuck_since or now
            if now - self.stuck_since >= STUCK_SECONDS:
                self._abort(ignore_stop_for=float(self.job.grace))
                return self.fail(f"job {self.job.name} can't start: {reason}; fix that and run again", 2)
        else:
            self.stuck_since = None
        if current and all(pods.has_started(pod) for pod in current):
            self.noted = now
        elif now - self.noted >= NOTE_SECONDS:
            self.noted = now
            state = found.get("status", {}).get("state", {})
            queued = f"no capacity yet in queue {self.job.resources.queue or 'default'}"
            reason = reason or pods.unscheduled(current) or state.get("message") or state.get("reason") or queued
            waited = f"{now - self.waiting_since:.0f} s"
            self.note(f"job {self.job.name} has been waiting for {waited}: {' '.join(str(reason).split())}")
        return None

    # Ending

    def _ended(self, cause: pods.End) -> int:
        pod, resources = f"pod {cause.pod}", self.job.resources
        if cause.kind == "failed":
            status, message = self.output.failure(cause.pod, cause.status, pod)
            return self.fail(message, status) if message else status
        reason = f" ({cause.reason})" if cause.reason else ""
        return self.fail(
            {
                "evicted": f"{pod} was preempted or evicted{reason}; {RESUME}",
                "time_limit": f"{pod} reached time_limit {resources.time_limit}; raise it (meta: or PECO_TIME_LIMIT) "
                f"and {RESUME}",
                "memory": f"{pod} ran out of memory and was killed; raise memory {resources.memory} (meta: or "
                "PECO_MEMORY), or lower workers, and run again",
            }[cause.kind]
        )

    def _ended_unseen(self, found: Mapping[str, Any]) -> int:
        """The job ended, and no pod is left that shows why."""
        phase = _phase(found)
        if phase.startswith("Abort"):
            return self.fail(f"job {self.job.name} was aborted by someone else; {RESUME}")
        message = found["status"]["state"].get("message")
        return self.fail(
            f"job {self.job.name} ended ({phase}{f': {message}' if message else ''}), its pods were preempted or evicted; "
            f"{RESUME}"
        )

    def cancel(self) -> None:
        """Abort the job and wait for its pods, as long as they may take to save their work."""
        patience = float(self.job.grace + LOG_SECONDS)
        deadline = time.monotonic() + patience
        self.note(f"stopping job {self.job.name}, which saves its work; a second signal ends the waiting")
        try:
            self._abort(ignore_stop_for=patience)
            while time.monotonic() < deadline and not self.stops.second and not all(map(pods.has_ended, self._pods())):
                self.logs.show()
                self.stops.wait(self.poll_seconds, ignore_first=True)
        except (Unreachable, StopRequested) as error:
            self.note(f"the cluster's API can't be reached ({error}): job {self.job.name} may still run")
        if not self.stops.second:
            self.logs.drain()

    def _abort(self, *, ignore_stop_for: float) -> None:
        """Volcano ends the pods of an aborted job with their grace period."""
        self.api.call_if_exists(
            f"update {PLURAL}/status.{GROUP}",
            lambda: self.runner.cancel(f"kubernetes://peco/{self.settings.namespace}:{self.job.name}"),
            # 409: the job has changed between TorchX's reading and writing.
            retry_statuses=(408, 409, 429),
            ignore_stop_for=ignore_stop_for,
        )


def _phase(job: Mapping[str, Any]) -> str:
    return str(job.get("status", {}).get("state", {}).get("phase") or "")
