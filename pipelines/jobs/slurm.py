"""One stage as a Slurm job: submitted or found, followed to its end, cancelled when asked to.

The folder of working files and the repository must be on a file system that all nodes share. `queue` is the partition,
`priority` the QOS; `node_selector`, `tolerations` and `shared_memory` have no meaning here. What sbatch reads from its own
variables (SBATCH_ACCOUNT, SBATCH_CONSTRAINT, …) it takes from there.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

from torchx.runner import Runner
from torchx.specs import Resource, macros

from peco.core import workfiles
from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.jobs.job import Job
from pipelines.jobs.logs import Screen, Tail, drop_old
from pipelines.jobs.output import Output, failure

T = TypeVar("T")

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300.0  # with Slurm's daemons, which may be away
LATE_SECONDS = 30.0  # accounting may be late by so much
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
LIVE = (*WAITING, "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def run(job: Job, screen: Screen, stops: StopSignals) -> int:
    """Run the job and return the exit status.

    Raises:
        PecoError: Slurm's commands are missing, or refuse.
    """
    return _Run(job, screen, stops).run()


class _NoAnswer(Exception):
    """Slurm doesn't say at present, and may later: one line on why."""


class _Run:
    def __init__(self, job: Job, screen: Screen, stops: StopSignals) -> None:
        self.job, self.screen, self.stops = job, screen, stops
        self.role = job.app.roles[0]
        self.output = Output(screen, several=self.role.entrypoint == "bash")
        self.folder = workfiles.root().resolve() / "logs" / self.role.name
        self.id = ""
        self.tails: list[tuple[str, Tail]] = []

    def run(self) -> int:
        found = self._find()
        if not found and self.stops.first:
            return 128 + self.stops.first  # nothing was started
        self.id = found or self._submit()
        for node in range(self.role.num_replicas):
            for end in ("out", "err"):
                path = self.folder / f"slurm-{self.id}-{node}.{end}"
                self.tails.append((f"node {node}", Tail(path, error=False, rank=None)))
        return self._follow()

    def _find(self) -> str | None:
        """Number of the job of this name that waits or runs; None, too, where a stop was asked for before Slurm said."""
        command = ("squeue", "--noheader", "--me", f"--name={self.job.name}-0", "--format=%i %T")
        listing = self._patiently(lambda: _slurm(*command), "nothing was submitted: run again")
        for line in (listing or "").splitlines():
            number, _, state = line.strip().partition(" ")
            if state in LIVE:
                number = number.split("+")[0]  # a part of a job of several nodes
                self._note(f"job {number} ({self.job.name}) is there already ({state}): following it")
                return number
        return None

    def _submit(self) -> str:
        given = self.job.given
        self.role.resource = Resource(cpu=given.cpu, gpu=given.gpus, memMB=_megabytes(given.memory))
        config = {"time": str(-(-given.seconds // 60)), "partition": given.queue or None, "qos": given.priority or None}
        for name, value in self.role.env.items():
            if "," in value:
                raise PecoError(f"{name}={value}: Slurm takes no comma in a variable; change it")
        self.folder.mkdir(parents=True, exist_ok=True)
        drop_old(self.folder)
        try:
            runner = Runner("peco", {"slurm": _scheduler})
            request = runner.dryrun(self.job.app, "slurm", {k: v for k, v in config.items() if v})
            for node, replica in enumerate(request.request.replicas.values()):
                replica.name = f"{self.job.name}-{node}"
                # Only whoever started the job starts it again.
                replica.sbatch_opts.pop("requeue")
                replica.sbatch_opts["no-requeue"] = None
                replica.sbatch_opts["output"] = f"{self.folder}/slurm-%j.log"  # the script's own lines
                stem = f"{self.folder}/slurm-{macros.app_id}-{node}"
                replica.srun_opts |= {"output": f"{stem}.out", "error": f"{stem}.err"}
            handle = runner.schedule(request)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PecoError(f"sbatch: the job can't be submitted ({error}); its own words are above") from None
        # With several clusters sbatch adds the cluster's name.
        number = str(handle).rpartition("/")[2].split(";")[0]
        self._note(f"job {number} ({self.job.name}) submitted")
        return number

    def _follow(self) -> int:
        state, code = "RUNNING", 0  # while Slurm says nothing else
        while True:
            if found := self._state():
                state, code = found
                self._show(last=state not in LIVE)
                if state not in LIVE:
                    break
            if self.stops.first:
                self._cancel(state)
                break
            self.stops.wait(POLL_SECONDS)
        if self.stops.first:
            return 128 + self.stops.first
        return 0 if state == "COMPLETED" else self._failed(state, code)

    def _state(self) -> tuple[str, int] | None:
        """State and exit status of the job, as soon as Slurm tells them; None where a stop was asked for before.

        Raises:
            PecoError: it doesn't tell for too long.
        """
        unknown_since: float | None = None
        while True:
            found = self._patiently(self._look, f"job {self.id} is left as it is: run again to follow it")
            if found or self.stops.first:
                return found
            unknown_since = unknown_since or time.monotonic()
            if time.monotonic() - unknown_since > LATE_SECONDS:
                raise PecoError(f"job {self.id}: neither squeue nor sacct knows it; is accounting switched on?")
            self.stops.wait(POLL_SECONDS)

    def _look(self) -> tuple[str, int] | None:
        """State and exit status of the job; None where both squeue and sacct answer and neither knows it.

        Raises:
            _NoAnswer: Slurm's daemons don't answer, or accounting doesn't know yet how the job ended.
        """
        away: _NoAnswer | None = None
        states: list[str] = []
        try:
            states = _slurm("squeue", "--noheader", f"--jobs={self.id}", "--format=%T").split()
        except _NoAnswer as error:
            away = error
        if live := [state for state in states if state in LIVE]:
            return live[0], 0
        known = self._accounted()  # by the other daemon, which may be there while squeue's is away
        if known and known[0] not in LIVE:
            return known
        if away:
            raise away
        if known or states:
            raise _NoAnswer(f"sacct doesn't know yet how job {self.id} ended")
        return None

    def _accounted(self) -> tuple[str, int] | None:
        """State and exit status of a part that goes on, or else of the one that failed first, or of the first.

        Raises:
            _NoAnswer: the daemon doesn't answer.
        """
        found = []
        options = ("--noheader", "--parsable2", "--allocations", f"--jobs={self.id}", "--format=State,ExitCode")
        for line in _slurm("sacct", *options).splitlines():
            state, _, code = line.partition("|")
            number, _, ended_by = code.partition(":")
            found.append(
                (state.split()[0].rstrip("+"), int(number or 0) or (128 + int(ended_by) if int(ended_by or 0) else 0))
            )
        live = [part for part in found if part[0] in LIVE]
        bad = [part for part in found if part[0] not in ("COMPLETED", "CANCELLED")]
        return next(iter(live or bad or found), None)

    def _patiently(self, ask: Callable[[], T], otherwise: str) -> T | None:
        """Ask until Slurm answers; None where a stop is asked for before it does.

        Raises:
            PecoError: it doesn't answer for too long; `otherwise` is what the user is told to do.
        """
        begun = time.monotonic()
        told = False
        while True:
            try:
                return ask()
            except _NoAnswer as error:
                waited = time.monotonic() - begun
                if waited > PATIENCE_SECONDS:
                    raise PecoError(f"Slurm doesn't answer ({error}); {otherwise}") from None
                if waited > LATE_SECONDS and not told:
                    self._note(f"Slurm doesn't answer ({error}); asking again for up to {PATIENCE_SECONDS:.0f} s")
                    told = True
            self.stops.wait(POLL_SECONDS)
            if self.stops.first:
                return None

    def _cancel(self, state: str) -> None:
        """Have the job save what it has and wait for its end; end it after its grace, or at a second signal.

        Args:
            state: the job's, as far as it is known.
        """
        self._note(f"stopping job {self.id}, which saves what it has; a second signal ends it at once")
        saved_by: float | None = None  # the end of its grace; none while it has not been told
        until = time.monotonic() + PATIENCE_SECONDS  # for scancel to get through
        while state in LIVE:
            now, hurried = time.monotonic(), self.stops.second
            over = hurried or (saved_by is not None and now > saved_by)
            if over or saved_by is None:
                try:
                    # A job that waits takes no signal but its end; one that runs gets its own grace, not the cluster's.
                    _slurm("scancel", *(() if over or state in WAITING else ("--signal=TERM",)), self.id)
                    if over:
                        return
                    saved_by = now + self.job.grace
                    until = saved_by + PATIENCE_SECONDS
                except _NoAnswer as error:
                    if hurried or now > until:
                        self._note(
                            f"Slurm doesn't answer ({error}): job {self.id} may still run; end it by `scancel {self.id}`"
                        )
                        return
            self.stops.wait(POLL_SECONDS if saved_by is None else min(POLL_SECONDS, 1.0), ignore_first=True)
            with contextlib.suppress(_NoAnswer):  # what counts is that scancel gets through
                if found := self._look():
                    state = found[0]
            self._show(last=state not in LIVE)

    def _failed(self, state: str, code: int) -> int:
        again = "run again, it goes on from the last checkpoint"
        reasons = {
            "CANCELLED": f"was cancelled by someone else; {again}",
            "DEADLINE": f"ran into its deadline; {again}",
            "NODE_FAIL": f"lost a node; {again}",
            "OUT_OF_MEMORY": "was killed for want of memory; raise memory (meta: or PECO_MEMORY) and run again",
            "PREEMPTED": f"was preempted; {again}",
            "TIMEOUT": f"ran into time_limit {self.job.given.time_limit}; raise it and {again}",
        }
        if state in reasons:
            self.screen.note(f"error: {self.job.stage}: job {self.id} {reasons[state]}")
            return 1
        failed = [node for node, _ in self.tails if self.output.code(node, 0)]
        node = failed[0] if failed else self.tails[0][0]
        status, text = failure(self.job, self.output, node, code or 1, f"job {self.id}, {node}")
        if text:
            self.screen.note(f"{text}\n  its logs are in {self.folder}")
        return status

    def _show(self, *, last: bool) -> None:
        for node, tail in self.tails:
            self.output.add(node, [line.text for line in tail.read(last=last)])

    def _note(self, text: str) -> None:
        self.screen.note(f"{self.job.stage}: {text}")


def _scheduler(name: str, **_: object) -> object:
    from torchx.schedulers.slurm_scheduler import create_scheduler

    return create_scheduler(name)


def _slurm(command: str, *arguments: str) -> str:
    """What one of Slurm's commands prints; nothing where it doesn't know the job (any more).

    Raises:
        PecoError: there is no such command.
        _NoAnswer: it failed.
    """
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PecoError(f"{command}: not found; PECO_SCHEDULER=slurm needs Slurm's commands on the PATH") from None
    if done.returncode and "Invalid job id" not in done.stderr:
        raise _NoAnswer(f"{command}: {' '.join(done.stderr.split()) or f'status {done.returncode}'}")
    return done.stdout


def _megabytes(memory: str) -> int:
    """Kubernetes' notation as Slurm's megabytes (of 2**20 bytes)."""
    match = re.fullmatch(r"(\d+)([KMGT]i)", memory)
    assert match, memory  # checked with the parameters
    return max(1, int(match[1]) * UNITS[match[2]] // UNITS["Mi"])
