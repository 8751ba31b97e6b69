"""One stage as a Volcano job: started or found, followed to its end, cancelled when asked to."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from typing import Any

from torchx.runner import Runner

from peco.core.stopping import StopSignals
from pipelines.jobs import pods
from pipelines.jobs.job import Job
from pipelines.jobs.kube import Api, Stopped, Unreachable
from pipelines.jobs.logs import Screen
from pipelines.jobs.output import Output, failure
from pipelines.jobs.pod_log import PodLog
from pipelines.jobs.volcano_job import GROUP, PLURAL, VERSION, Place, adjust, options, place
from pipelines.workflow.environment import API_PATIENCE_SECONDS

POLL_SECONDS = 2.0
NOTE_SECONDS = 300.0  # between two words on why a job still waits
FIRST_NOTE_SECONDS = 15.0
STUCK_SECONDS = 120.0  # an image that can't be pulled may be on its way
LOG_SECONDS = 10.0  # for the last lines of a pod that has ended
JOBS = f"{PLURAL}.{GROUP}"
# Phases of a job that goes on by itself; it has none at first.
LIVE = ("", "Pending", "Running", "Restarting", "Completing")


def run(job: Job, screen: Screen, stops: StopSignals, env: Mapping[str, str]) -> int:
    """Run the job and return the exit status.

    Raises:
        PecoError: a variable is missing or wrong, or the cluster refuses.
    """
    at = place(env)
    api = Api(at.namespace, stops, API_PATIENCE_SECONDS.integer(env))
    return _Run(job, at, api, screen, stops).run()


class _Run:
    def __init__(self, job: Job, at: Place, api: Api, screen: Screen, stops: StopSignals) -> None:
        from kubernetes import client
        from torchx.schedulers.kubernetes_scheduler import create_scheduler

        self.job, self.at, self.api, self.screen, self.stops = job, at, api, screen, stops
        self.jobs = client.CustomObjectsApi(api.client)
        self.runner = Runner("peco", {"kubernetes": lambda name, **_: create_scheduler(name, client=api.client)})
        self.key = {"group": GROUP, "version": VERSION, "namespace": at.namespace, "plural": PLURAL}
        self.root = f"/apis/{GROUP}/{VERSION}/namespaces/{at.namespace}/{PLURAL}/{job.name}"
        self.output = Output(screen, several=job.app.roles[0].entrypoint == "bash")
        self.lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.logs: dict[str, PodLog] = {}
        self.unread: set[str] = set()  # pods of which was told that their log can't be read
        self.seen: dict[str, pods.Pod] = {}  # each pod as it was last
        self.waiting_since = time.monotonic()
        self.noted = self.waiting_since + FIRST_NOTE_SECONDS - NOTE_SECONDS
        self.stuck_since: float | None = None

    def run(self) -> int:
        try:
            self._start()
            return self._follow()
        except Stopped:
            return self._cancel()
        except Unreachable as error:
            return self._fail(
                f"the cluster's API can't be reached ({error}); job {self.job.name} is left as it is: "
                "run again, and it is found and followed"
            )

    # Starting or finding

    def _start(self) -> None:
        """Create the job, or attach to the one that is there and goes on; one that has ended is replaced."""
        body = None
        while not self.stops.first:
            found = self._get()
            if found is None:
                body = body or self._request()
                if self._create(body):
                    self._note(f"job {self.job.name} created in namespace {self.at.namespace}")
                    return
            elif found["metadata"].get("deletionTimestamp"):
                self.stops.wait(POLL_SECONDS)
            elif _phase(found) in LIVE:
                self._adopt()
                self._note(f"job {self.job.name} is there already ({_phase(found) or 'new'}): following it")
                return
            else:
                self._note(f"job {self.job.name} of an earlier attempt has ended ({_phase(found)}): replacing it")
                self._delete()
        raise Stopped

    def _request(self) -> Any:
        request = self.runner.dryrun(self.job.app, "kubernetes", options(self.job, self.at))
        plain = self.api.client.sanitize_for_serialization(request.request.resource)
        request.request.resource = adjust(plain, self.job, self.at)
        return request

    def _create(self, request: Any) -> bool:
        """False where there is one of the name by now."""
        from kubernetes.client.exceptions import ApiException

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
        from kubernetes.client.exceptions import ApiException

        try:
            return self.api.get(self.root, f"get {JOBS}")
        except ApiException:
            return None

    def _adopt(self) -> None:
        if self.at.owner:
            patch = {"metadata": {"ownerReferences": [self.at.owner]}}
            self.api.call(
                f"patch {JOBS}",
                lambda: self.jobs.patch_namespaced_custom_object(**self.key, name=self.job.name, body=patch),
            )

    def _delete(self) -> None:
        from kubernetes.client.exceptions import ApiException

        def delete() -> None:
            # Foreground: the job is gone only when its pods are.
            try:
                self.jobs.delete_namespaced_custom_object(
                    **self.key, name=self.job.name, propagation_policy="Foreground"
                )
            except ApiException as error:
                if error.status != 404:
                    raise

        self.api.call(f"delete {JOBS}", delete)

    # Following

    def _follow(self) -> int:
        cause: pods.End | None = None
        until = float("inf")
        while True:
            found = self._get()
            current = self._pods()
            self._show()
            if self.stops.first:
                return self._cancel()
            if found is None:
                return self._fail(f"job {self.job.name} was deleted by someone else; run again to start it anew")
            phase = _phase(found)
            cause = cause or pods.first_end(current)
            if phase == "Completed":
                self._drain(list(self.logs))
                return 0
            if cause and cause.kind != "taken":
                self._drain([cause.pod])
                return self._ended(cause)
            if phase not in LIVE:
                # A preempted job is saving its work: what it says, and its end, are worth the grace.
                until = min(until, time.monotonic() + (self.job.grace + LOG_SECONDS if phase == "Terminating" else 0))
                if time.monotonic() >= until:
                    self._drain(list(self.logs))
                    return self._ended(cause) if cause else self._ended_unseen(found)
            elif (message := self._wait(found, current)) is not None:
                self._abort(ignore_stop_for=float(self.job.grace))
                self._fail(message)
                return 2
            self.stops.wait(POLL_SECONDS)

    def _pods(self) -> list[pods.Pod]:
        """The job's pods; the log of each is followed from its start on."""
        path = f"/api/v1/namespaces/{self.at.namespace}/pods"
        found = self.api.get(path, "list pods", labelSelector=f"volcano.sh/job-name={self.job.name}")
        for pod in found["items"]:
            name = pods.name(pod)
            self.seen[name] = pod
            if name not in self.logs and pods.has_started(pod):
                container = pod["spec"]["containers"][0]["name"]
                self.logs[name] = PodLog(self.api.client, self.at.namespace, name, container, self.lines)
                self.logs[name].start()
            if name in self.logs and pods.has_ended(pod):
                self.logs[name].finished.set()
        return list(found["items"])

    def _show(self) -> None:
        while not self.lines.empty():
            self.output.add(*_one(self.lines.get()))
        for name, log in self.logs.items():
            if log.refused:
                raise self.api.refused("get pods/log", log.refused)
            if log.trouble and name not in self.unread:
                self.unread.add(name)
                self._note(f"the log of pod {name} can't be read ({log.trouble}); its lines are shown once it can")

    def _drain(self, names: list[str]) -> None:
        """Show what is still to come from these pods, which have ended."""
        deadline = time.monotonic() + LOG_SECONDS
        for name in names:
            if name in self.logs:
                self.logs[name].finished.set()
                self.logs[name].join(max(0.0, deadline - time.monotonic()))
        self._show()

    def _wait(self, found: Mapping[str, Any], current: list[pods.Pod]) -> str | None:
        """Say now and then why the job doesn't run yet; what to end it with where that is for good."""
        now = time.monotonic()
        if reason := pods.stuck(current):
            self.stuck_since = self.stuck_since or now
            if now - self.stuck_since >= STUCK_SECONDS:
                return f"job {self.job.name} can't start: {reason}; fix that and run again"
        else:
            self.stuck_since = None
        if current and all(pods.has_started(pod) for pod in current):
            self.noted = now
        elif now - self.noted >= NOTE_SECONDS:
            self.noted = now
            state = found.get("status", {}).get("state", {})
            queued = f"waits for room in queue {self.job.given.queue or 'default'}"
            why = reason or pods.unscheduled(current) or state.get("message") or state.get("reason") or queued
            self._note(
                f"job {self.job.name} waits since {now - self.waiting_since:.0f} s: {' '.join(str(why).split())}"
            )
        return None

    # Ending

    def _ended(self, cause: pods.End) -> int:
        if cause.kind == "taken":
            why = f" ({cause.reason})" if cause.reason else ""
            return self._fail(
                f"pod {cause.pod} was preempted or evicted{why}; run again, it goes on from the last checkpoint"
            )
        if cause.kind == "time":
            return self._fail(
                f"pod {cause.pod} ran into time_limit {self.job.given.time_limit}; raise it (meta: or PECO_TIME_LIMIT) "
                "and run again, it goes on from the last checkpoint"
            )
        if cause.kind == "memory":
            return self._fail(
                f"pod {cause.pod} was killed for want of memory; raise memory {self.job.given.memory} (meta: or "
                "PECO_MEMORY), or lower workers, and run again"
            )
        status, text = failure(self.job, self.output, cause.pod, cause.status, f"pod {cause.pod}")
        if text:
            self.screen.note(text)
        return status

    def _ended_unseen(self, found: Mapping[str, Any]) -> int:
        """The job ended, and no pod is left to say why."""
        phase = _phase(found)
        if phase.startswith("Abort"):
            return self._fail(f"job {self.job.name} was aborted by someone else; run again, it goes on from there")
        message = found["status"]["state"].get("message")
        return self._fail(
            f"job {self.job.name} ended ({phase}{f': {message}' if message else ''}), its pods were preempted or evicted; "
            "run again, it goes on from the last checkpoint"
        )

    def _cancel(self) -> int:
        """End the job, wait for its pods as long as they may take to save, and return the status of the signal."""
        assert self.stops.first
        patience = float(self.job.grace + LOG_SECONDS)
        deadline = time.monotonic() + patience
        self._note(f"stopping job {self.job.name}, which saves what it has; a second signal ends the waiting")
        try:
            self._abort(ignore_stop_for=patience)
            while time.monotonic() < deadline and not self.stops.second and not all(map(pods.has_ended, self._pods())):
                self._show()
                self.stops.wait(POLL_SECONDS, ignore_first=True)
        except (Unreachable, Stopped) as error:
            self._note(f"the cluster's API can't be reached ({error}): job {self.job.name} may still run")
        if not self.stops.second:
            self._drain(list(self.logs))
        return 128 + self.stops.first

    def _abort(self, *, ignore_stop_for: float) -> None:
        """Volcano ends the pods of an aborted job with their grace."""
        from kubernetes.client.exceptions import ApiException

        def abort() -> None:
            try:
                self.runner.cancel(f"kubernetes://peco/{self.at.namespace}:{self.job.name}")
            except ApiException as error:
                if error.status != 404:
                    raise

        # 409: the job has changed between TorchX's reading and writing.
        self.api.call(f"update {PLURAL}/status.{GROUP}", abort, again=(408, 409, 429), ignore_stop_for=ignore_stop_for)

    def _note(self, text: str) -> None:
        self.screen.note(f"{self.job.stage}: {text}")

    def _fail(self, text: str) -> int:
        self.screen.note(f"error: {self.job.stage}: {text}")
        return 1


def _phase(job: Mapping[str, Any]) -> str:
    return str(job.get("status", {}).get("state", {}).get("phase") or "")


def _one(item: tuple[str, str]) -> tuple[str, list[str]]:
    return item[0], [item[1]]
