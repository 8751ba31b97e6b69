"""One stage as a Volcano job: created or found, followed to its end, aborted on request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from kubernetes.client.exceptions import ApiException
from torchx.runner import Runner
from torchx.schedulers.kubernetes_scheduler import create_scheduler

from peco.core import heartbeat
from peco.core.environment import HEARTBEAT
from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.jobs import capacity, pods
from pipelines.jobs.backend import RESUME, Backend, Lost, StopRequested
from pipelines.jobs.job import Job, heartbeat_path
from pipelines.jobs.kube import Api, Unreachable
from pipelines.jobs.logs import Screen
from pipelines.jobs.pod_log import LOG_SECONDS, PodLogs
from pipelines.jobs.volcano_job import GROUP, PLURAL, VERSION, adjust, read_settings, scheduler_options
from pipelines.jobs.waiting import Waiting
from pipelines.workflow.environment import API_PATIENCE_SECONDS

JOBS = f"{PLURAL}.{GROUP}"
# Phases of a job that Volcano still works on; at first there is none.
LIVE = ("", "Pending", "Running", "Restarting", "Completing")
SAVING = ("Aborting", "Terminating")
REMOVE_SECONDS = 10.0  # of attempts to remove a job that has ended; one attempt after a stop signal


class Volcano(Backend):
    """A Volcano job in the namespace of PECO_NAMESPACE.

    Raises:
        PecoError: a variable is missing or wrong, or there is no cluster.
    """

    shortest_poll_seconds, poll_seconds = 0.25, 2.0

    def __init__(self, job: Job, screen: Screen, stops: StopSignals, env: Mapping[str, str]) -> None:
        self.settings = read_settings(env)
        self.api = Api(self.settings.namespace, stops, API_PATIENCE_SECONDS.integer(env), self.note)
        self.runner = Runner("peco", {"kubernetes": lambda name, **_: create_scheduler(name, client=self.api.client)})
        namespace = self.settings.namespace
        self.key = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": PLURAL, "name": job.name}
        self.heartbeat = heartbeat_path(job.name)
        if self.settings.owner:
            job.app.roles[0].env[HEARTBEAT.name] = str(self.heartbeat)
        self.exists = False  # as far as this launcher has seen
        super().__init__(job, screen, stops)

    def reset(self) -> None:
        """Forget the job that was followed."""
        super().reset()
        self.uid = ""  # of the job that is followed; empty until it is known, and after its end
        self.logs = PodLogs(self.api, self.output, self.note)
        self.runs = False
        self.cause: pods.End | None = None
        self.ends_at = float("inf")
        self.waiting = Waiting(self.api, self.job, self.note)

    def follow(self) -> int:
        """`Backend.follow`, with a heartbeat for the job's processes."""
        with heartbeat.beating(self.heartbeat):
            return super().follow()

    # Creating or finding

    def start(self) -> None:
        """Create the job, or attach to a live one; one that has ended is replaced."""
        with self._losing():
            self._start()

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """Turns an API that is away for too long into Lost."""
        try:
            yield
        except Unreachable as error:
            then = "ends with a checkpoint unless it is followed" if self.settings.owner else "is left as it is"
            follow = f"job {self.job.name} {then}: run again to find and follow it"
            raise Lost(
                f"the cluster's API can't be reached ({error})", follow if self.exists else "run again"
            ) from None

    def _start(self) -> None:
        request = None
        late = time.monotonic() + self.job.grace + LOG_SECONDS
        while not self.stops.first:
            found = self._get()
            if found is None:
                if request is None:
                    capacity.refuse_impossible(self.api, self.job.resources)
                    request = self._request()
                if self._create(request):
                    self.exists = True
                    self.reset()
                    self.note(f"job {self.job.name} created in namespace {self.settings.namespace}")
                    return
            elif "deletionTimestamp" in found["metadata"]:
                if time.monotonic() >= late:
                    late = float("inf")
                    self._report_stuck_pods()
                self.stops.wait(self.shortest_poll_seconds)
            elif found["metadata"]["uid"] == self.uid:
                return  # it may have ended while the API was away
            elif _phase(found) in LIVE:
                self.exists = True
                self.reset()
                self._adopt()
                self.note(f"job {self.job.name} already exists ({_phase(found) or 'new'}): following it")
                return
            else:
                self.note(f"job {self.job.name} of an earlier attempt has ended ({_phase(found)}): replacing it")
                self._delete()
        raise StopRequested

    def _report_stuck_pods(self) -> None:
        names = " ".join(pods.name(pod) for pod in self._list_pods())
        self.note(
            f"job {self.job.name} is being removed, but pods are left of it ({names}); if their node is lost: "
            f"kubectl --namespace {self.settings.namespace} delete pod --force {names}"
        )

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

    def _delete(self, **options: Any) -> None:
        # Foreground: the job is gone only when its pods are.
        self.api.call_if_exists(
            f"delete {JOBS}",
            lambda: self.api.custom.delete_namespaced_custom_object(**self.key, propagation_policy="Foreground"),
            **options,
        )

    # Following

    def poll(self) -> int | None:
        """Show new lines and the reason why the job waits; the exit status once it has ended, which removes the job."""
        with self._losing():
            return self._poll()

    def _poll(self) -> int | None:
        found = self._get()
        current = self._pods()
        self.logs.show()
        if found is None:
            return self.fail(f"job {self.job.name} was deleted by someone else; {RESUME}")
        phase, removed = _phase(found), "deletionTimestamp" in found["metadata"]
        self.uid = found["metadata"]["uid"]
        if not self.runs and current and all(map(pods.has_started, current)):
            self.runs, self.begun = True, time.monotonic()
        self.cause = self.cause or pods.first_end(current)
        done = len(current) == self.job.app.roles[0].num_replicas and all(map(pods.has_succeeded, current))
        if done or phase == "Completed":
            self._finish()
            return 0
        if self.cause and self.cause.kind != "evicted":
            self._finish(self.cause.pod)
            return self._ended(self.cause)
        if phase in LIVE and not removed:
            problem = self.waiting.problem(found, current)
            return self._give_up(problem) if problem else None
        # A preempted, aborted or removed job is saving its work: its last lines and its end are worth the grace period.
        self.ends_at = min(self.ends_at, time.monotonic() + self.job.grace + LOG_SECONDS)
        saving = removed or phase in SAVING or not all(map(pods.has_ended, current))
        if saving and time.monotonic() < self.ends_at:
            return None
        self._finish()
        if removed or phase.startswith("Abort"):
            action = "deleted" if removed else "aborted"
            return self.fail(f"job {self.job.name} was {action} by someone else; {RESUME}")
        return self._ended(self.cause) if self.cause else self._ended_unseen(found)

    def _pods(self) -> list[pods.Pod]:
        """The job's pods; their logs are followed."""
        found = self._list_pods()
        for pod in found:
            self.logs.follow(pod)
        return found

    def _list_pods(self) -> list[pods.Pod]:
        selector = f"volcano.sh/job-name={self.job.name}"
        listing = partial(self.api.core.list_namespaced_pod, self.settings.namespace, label_selector=selector)
        return self.api.items("list pods", listing)

    # Ending

    def _give_up(self, problem: str) -> int:
        """End a job that can't start."""
        self._abort(ignore_stop_for=float(self.job.grace))
        self._finish()
        return self.fail(problem)

    def _finish(self, *names: str) -> None:
        """Show the last lines of these pods, by default of all, and remove the job: it is of no use once its log is shown.

        A job that can't be removed now is removed by Kubernetes (volcano_job.FINISHED_SECONDS).
        """
        self.uid = ""
        if self.logs.drain(*names):
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(PecoError, Unreachable, StopRequested):
            self._delete(ignore_stop_for=0.0 if self.stops.first else REMOVE_SECONDS)

    def _ended(self, cause: pods.End) -> int:
        pod, resources = f"pod {cause.pod}", self.job.resources
        if cause.kind == "failed":
            if self.output.was_stopped(cause.pod, cause.status):
                raise Lost(f"{pod} was stopped from outside")
            if cause.reason:  # its container did not run
                return self.fail(f"{pod} failed ({cause.reason}); correct that and run again")
            status, message = self.output.failure(cause.pod, cause.status, pod)
            return self.fail(message, status) if message else status
        if cause.kind == "evicted":
            raise Lost(f"{pod} was preempted or evicted" + (f" ({cause.reason})" if cause.reason else ""))
        if cause.kind == "rejected":
            raise Lost(f"{pod} was refused by its node ({cause.reason})")
        return self.fail(
            {
                "storage": f"{pod} was evicted for exceeding its own limit ({cause.reason}); raise it (of the "
                "volume shm: PECO_SHARED_MEMORY, or shared_memory in params.yaml), or write less, and run again",
                "time_limit": f"{pod} reached time_limit {resources.time_limit}; raise it (resources in params.yaml, or "
                f"PECO_TIME_LIMIT) and {RESUME}",
                "memory": f"{pod} ran out of memory and was killed; raise memory {resources.memory} "
                "(resources in params.yaml, or PECO_MEMORY), or lower workers, and run again",
            }[cause.kind]
        )

    def _ended_unseen(self, found: Mapping[str, Any]) -> int:
        """The job ended, and no pod is left that shows why."""
        phase = _phase(found)
        message = found["status"]["state"].get("message")
        raise Lost(
            f"job {self.job.name} ended ({phase}{f': {message}' if message else ''}), its pods were preempted or evicted"
        )

    def cancel(self) -> None:
        """Abort the job and wait for its pods, as long as they may take to save their work."""
        patience = float(self.job.grace + LOG_SECONDS)
        deadline = time.monotonic() + patience
        try:
            if not self._abort(ignore_stop_for=patience):
                return
            # After the call: where the parent of this process was stopped, too, there may be less than a second for it.
            self.note(f"stopping job {self.job.name}, which saves its work; a second signal ends the waiting")
            while time.monotonic() < deadline and not self.stops.second and not all(map(pods.has_ended, self._pods())):
                self.logs.show()
                self.stops.wait(self.shortest_poll_seconds, ignore_first=True)
            if not self.stops.second:
                self.logs.drain()
        except (Unreachable, StopRequested) as error:
            self.note(f"the cluster's API can't be reached ({error}): job {self.job.name} may still run")
        finally:
            self._remove()  # also if nobody reads the output any more: Kubernetes keeps aborted jobs for ever

    def _abort(self, *, ignore_stop_for: float) -> bool:
        """Volcano ends the pods of an aborted job with their grace period. False where there is no job."""
        aborted = {"status": {"state": {"phase": "Aborted"}}}
        found = self.api.call_if_exists(
            f"patch {PLURAL}/status.{GROUP}",
            lambda: self.api.custom.patch_namespaced_custom_object_status(**self.key, body=aborted),
            retry_statuses=(408, 409, 429),  # 409: the job changes at the same time
            ignore_stop_for=ignore_stop_for,
        )
        return found is not None


def _phase(job: Mapping[str, Any]) -> str:
    return str(job.get("status", {}).get("state", {}).get("phase") or "")
