"""One stage as a Slurm job: submitted or found, followed to its end, cancelled on request.

The work folder and the repository must be on a file system that all nodes share. `queue` is the partition,
`priority` the QOS; `node_selector`, `tolerations` and `shared_memory` have no meaning here. sbatch also reads its own variables
(SBATCH_ACCOUNT, SBATCH_CONSTRAINT, …).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import TypeVar

from torchx.runner import Runner
from torchx.schedulers.slurm_scheduler import create_scheduler
from torchx.specs import Resource, macros

from peco.core import workfiles
from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.jobs.backend import RESUME, Backend, Lost, StopRequested
from pipelines.jobs.job import Job
from pipelines.jobs.logs import Screen, Tail, drop_old
from pipelines.jobs.slurm_calls import Full, NoAnswer, call, submit

T = TypeVar("T")

PATIENCE_SECONDS = 300.0  # with Slurm's daemons while they don't answer
LATE_SECONDS = 30.0  # the delay that accounting may have
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
LIVE = (*WAITING, "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")
# Ends that may pass.
LOST = {"BOOT_FAIL": "got a node that didn't boot", "NODE_FAIL": "lost a node", "PREEMPTED": "was preempted"}
FAILURES = {
    "CANCELLED": f"was cancelled by someone else; {RESUME}",
    "DEADLINE": f"reached its deadline; {RESUME}",
    "OUT_OF_MEMORY": "ran out of memory and was killed; raise memory (resources in params.yaml, or PECO_MEMORY) and run again",
}
# Slurm's own line about it. Without cgroups it is the only sign: the job's state is FAILED.
MEMORY_KILL = re.compile(rb"slurmstepd\S*: .*(exceeded (job )?memory limit|oom.kill)", re.IGNORECASE)
SEARCHED_BYTES = 2**16  # at the end of a file
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class Slurm(Backend):
    """A Slurm job of the current user."""

    shortest_poll_seconds = 0.5
    poll_seconds = 5.0

    def __init__(self, job: Job, screen: Screen, stops: StopSignals) -> None:
        self.role = job.app.roles[0]
        self.folder = workfiles.root().resolve() / "logs" / self.role.name
        super().__init__(job, screen, stops)

    def reset(self) -> None:
        """Forget the job that was followed."""
        super().reset()
        self.id = ""
        self.state = "RUNNING"  # until Slurm reports another one
        self.tails: list[tuple[str, Tail]] = []

    def start(self) -> None:
        """Submit the job, or find the one of its name that waits or runs.

        Raises:
            PecoError: Slurm refuses the job.
            Lost: Slurm doesn't answer for too long.
        """
        if self.id and self.state in LIVE:  # Slurm was away
            return
        self.reset()
        noted = False
        while not self.id:
            try:
                # A submission without an answer may have been accepted, so each attempt looks for the job first.
                self.id = self._retry(lambda: self._find() or self._submit(), "nothing was submitted: run again")
            except Full as error:
                if not noted:
                    self.note(f"{error}; waiting until other jobs have ended")
                noted = True
                self._pause(self.poll_seconds * 20)
        for node in range(self.role.num_replicas):
            for end in ("out", "err"):
                path = self.folder / f"slurm-{self.id}-{node}.{end}"
                self.tails.append((f"node {node}", Tail(path, error=False, rank=None)))

    def _find(self) -> str | None:
        command = ("squeue", "--noheader", "--me", f"--name={self.job.name}-0", "--format=%i %T")
        for line in call(*command).splitlines():
            number, _, state = line.strip().partition(" ")
            if state in LIVE:
                number = number.split("+")[0]  # a part of a job of several nodes
                self.note(f"job {number} ({self.job.name}) already exists ({state}): following it")
                return number
        return None

    def _submit(self) -> str:
        """Submit the job and return its number.

        Raises:
            PecoError: Slurm refuses it.
            StopRequested: a stop signal came before.
            Full: the user, account or QOS has as many jobs as allowed.
            NoAnswer: the controller doesn't answer.
        """
        if self.stops.first:
            raise StopRequested
        resources = self.job.resources
        self.role.resource = Resource(cpu=resources.cpu, gpu=resources.gpus, memMB=_megabytes(resources.memory))
        minutes = -(-resources.seconds // 60)
        config = {"time": str(minutes), "partition": resources.queue, "qos": resources.priority}
        for name, value in self.role.env.items():
            if "," in value:
                raise PecoError(f"{name}={value}: Slurm takes no comma in a variable; change it")
        self.folder.mkdir(parents=True, exist_ok=True)
        drop_old(self.folder)
        try:
            runner = Runner("peco", {"slurm": create_scheduler})
            request = runner.dryrun(self.job.app, "slurm", {key: value for key, value in config.items() if value})
            for node, replica in enumerate(request.request.replicas.values()):
                replica.name = f"{self.job.name}-{node}"
                # Only the user or the pipeline's step starts a job again.
                replica.sbatch_opts.pop("requeue")
                replica.sbatch_opts["no-requeue"] = None
                replica.sbatch_opts["output"] = f"{self.folder}/slurm-%j.log"  # the script's own lines
                stem = f"{self.folder}/slurm-{macros.app_id}-{node}"
                replica.srun_opts |= {"output": f"{stem}.out", "error": f"{stem}.err"}
            handle, messages = submit(runner, request)
        except OSError as error:
            raise PecoError(f"sbatch: the job can't be submitted ({error})") from None
        for line in messages:
            self.screen.note(line)
        # With several clusters sbatch adds the cluster's name.
        number = handle.rpartition("/")[2].split(";")[0]
        self.note(f"job {number} ({self.job.name}) submitted")
        return number

    def poll(self) -> int | None:
        """Show new lines; the exit status once the job has ended.

        Raises:
            PecoError: Slurm doesn't know the job.
            Lost: the job was preempted or lost a node, or Slurm doesn't answer for too long.
        """
        unknown_since: float | None = None
        while not (found := self._retry(self._look, f"job {self.id} is left as it is: run again to follow it")):
            unknown_since = unknown_since or time.monotonic()
            if time.monotonic() - unknown_since > LATE_SECONDS:
                raise PecoError(f"job {self.id}: neither squeue nor sacct knows it; is accounting switched on?")
            self._pause(time.monotonic() - unknown_since)
        self.state, code = found
        self._show()
        if self.state in LIVE:
            return None
        return 0 if self.state == "COMPLETED" else self._failed(code)

    def _look(self) -> tuple[str, int] | None:
        """State and exit status of the job; None where both squeue and sacct answer and neither knows it.

        Raises:
            NoAnswer: Slurm's daemons don't answer, or accounting doesn't know yet how the job ended.
        """
        away: NoAnswer | None = None
        states: list[str] = []
        try:
            states = call("squeue", "--noheader", f"--jobs={self.id}", "--format=%T").split()
        except NoAnswer as error:
            away = error
        if live := [state for state in states if state in LIVE]:
            return live[0], 0
        known = self._accounted()  # by the other daemon, which may answer while squeue's doesn't
        if known and known[0] not in LIVE:
            return known
        if away:
            raise away
        if known or states:
            raise NoAnswer(f"sacct doesn't know yet how job {self.id} ended")
        return None

    def _accounted(self) -> tuple[str, int] | None:
        """State and exit status of a live part of the job, or else of the one that failed first, or of the first.

        Raises:
            NoAnswer: the daemon doesn't answer.
        """
        found = []
        options = ("--noheader", "--parsable2", "--allocations", f"--jobs={self.id}", "--format=State,ExitCode")
        for line in call("sacct", *options).splitlines():
            state, _, code = line.partition("|")
            number, _, ended_by = code.partition(":")
            signal_status = 128 + int(ended_by) if int(ended_by or 0) else 0
            found.append((state.split()[0].rstrip("+"), int(number or 0) or signal_status))
        live = [part for part in found if part[0] in LIVE]
        failed = [part for part in found if part[0] not in ("COMPLETED", "CANCELLED")]
        return next(iter(live or failed or found), None)

    def _retry(self, query: Callable[[], T], advice: str) -> T:
        """The result of a query, repeated until Slurm answers.

        Raises:
            Lost: it doesn't answer for too long; `advice` is for the user.
            StopRequested: a stop signal came before it answered.
        """
        started = time.monotonic()
        announced = False
        while True:
            try:
                return query()
            except NoAnswer as error:
                waited = time.monotonic() - started
                if waited > PATIENCE_SECONDS:
                    raise Lost(f"Slurm doesn't answer ({error})", advice) from None
                if waited > LATE_SECONDS and not announced:
                    self.note(f"Slurm doesn't answer ({error}); retrying for up to {PATIENCE_SECONDS:.0f} s")
                    announced = True
            self._pause(time.monotonic() - started)

    def _pause(self, waited: float) -> None:
        self.stops.wait(self.interval(waited))
        if self.stops.first:
            raise StopRequested

    def cancel(self) -> None:
        """Let the job save its work and wait for its end; kill it after its grace period, or at a second signal."""
        if not self.id:
            return
        self.note(f"stopping job {self.id}, which saves its work; a second signal ends it at once")
        kill_at: float | None = None  # end of the grace period; None until scancel has succeeded
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while self.state in LIVE:
            now, hurried = time.monotonic(), self.stops.second
            kill = hurried or (kill_at is not None and now > kill_at)
            if kill or kill_at is None:
                # A waiting job takes no signal, it is cancelled; a running one gets this grace period, not the cluster's.
                options = () if kill or self.state in WAITING else ("--signal=TERM",)
                try:
                    call("scancel", *options, self.id)
                    if kill:
                        return
                    kill_at = now + self.job.grace
                    give_up_at = kill_at + PATIENCE_SECONDS
                except NoAnswer as error:
                    if hurried or now > give_up_at:
                        advice = f"job {self.id} may still run; end it by `scancel {self.id}`"
                        self.note(f"Slurm doesn't answer ({error}): {advice}")
                        return
            self.stops.wait(self.poll_seconds if kill_at is None else min(self.poll_seconds, 1.0), ignore_first=True)
            with contextlib.suppress(NoAnswer):  # only scancel has to get through
                if found := self._look():
                    self.state = found[0]
            self._show()

    def _failed(self, code: int) -> int:
        if self.state == "TIMEOUT":
            return self.fail(f"job {self.id} reached time_limit {self.job.resources.time_limit}; raise it and {RESUME}")
        if self.state in LOST:
            raise Lost(f"job {self.id} {LOST[self.state]}")
        if self.state == "FAILED" and self._out_of_memory():
            self.state = "OUT_OF_MEMORY"
        if self.state in FAILURES:
            return self.fail(f"job {self.id} {FAILURES[self.state]}")
        nodes = [node for node, _ in self.tails]
        node = next((node for node in nodes if self.output.exit_code(node, 0)), nodes[0])
        origin = f"job {self.id}, {node}"
        if self.output.was_stopped(node, code or 1):
            raise Lost(f"{origin} was stopped from outside")
        status, message = self.output.failure(node, code or 1, origin)
        return self.fail(f"{message}\n  its logs are in {self.folder}", status) if message else status

    def _out_of_memory(self) -> bool:
        """True if Slurm's daemon on a node has written that it killed the job for its memory."""
        for path in (*self.folder.glob(f"slurm-{self.id}-*.err"), self.folder / f"slurm-{self.id}.log"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - SEARCHED_BYTES))
                if MEMORY_KILL.search(file.read()):
                    return True
        return False

    def _show(self) -> None:
        for node, tail in self.tails:
            self.output.add(node, [line.text for line in tail.read(last=self.state not in LIVE)])


def _megabytes(memory: str) -> int:
    """An amount in Kubernetes' notation as Slurm's megabytes (of 2**20 bytes)."""
    match = re.fullmatch(r"(\d+)([KMGT]i)", memory)
    assert match, memory  # checked with the parameters
    return max(1, int(match[1]) * UNITS[match[2]] // UNITS["Mi"])
