"""One stage as a Slurm job: submitted or found, followed to its end, cancelled when asked to.

The folder of working files and the repository must be on a file system that all nodes share. `queue` is the partition,
`priority` the QOS; `node_selector`, `tolerations` and `shared_memory` have no meaning here. What sbatch reads from its own
variables (SBATCH_ACCOUNT, SBATCH_CONSTRAINT, …) it takes from there.
"""

from __future__ import annotations

import re
import subprocess
import time

from torchx.runner import Runner
from torchx.specs import Resource, macros

from peco import workfiles
from peco.errors import PecoError
from pipelines.cluster.job import Job, Output, Stops, failure
from pipelines.logs import Screen, Tail

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300.0  # with a controller that doesn't answer
LATE_SECONDS = 30.0  # files of a shared file system, and accounting, may be late
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
LIVE = (*WAITING, "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def run(job: Job, screen: Screen, stops: Stops) -> int:
    """Run the job and return the exit status.

    Raises:
        PecoError: Slurm's commands are missing, or refuse.
    """
    return _Run(job, screen, stops).run()


class _Run:
    def __init__(self, job: Job, screen: Screen, stops: Stops) -> None:
        self.job, self.screen, self.stops = job, screen, stops
        self.role = job.app.roles[0]
        self.output = Output(screen, several=self.role.entrypoint == "bash")
        self.folder = workfiles.root().resolve() / "logs" / self.role.name
        self.id = ""
        self.tails: list[tuple[str, Tail]] = []

    def run(self) -> int:
        self.id = self._find() or self._submit()
        for node in range(self.role.num_replicas):
            for end in ("out", "err"):
                path = self.folder / f"slurm-{self.id}-{node}.{end}"
                self.tails.append((f"node {node}", Tail(path, error=False, rank=None)))
        return self._follow()

    def _find(self) -> str | None:
        """Number of the job of this name that waits or runs."""
        listing = _slurm("squeue", "--noheader", "--me", f"--name={self.job.name}-0", "--format=%i %T")
        for line in listing.splitlines():
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
        asked = 0.0
        status = 0
        while True:
            state, code = self._state()
            self._show(last=state not in LIVE)
            if state not in LIVE:
                break
            if self.stops.first and not asked:
                asked = time.monotonic()
                self._note(f"stopping job {self.id}, which saves what it has; a second signal ends it at once")
                # A job that waits takes no signal but its end; one that runs gets its own grace, not the cluster's.
                _slurm("scancel", *(() if state in WAITING else ("--signal=TERM",)), self.id)
            if asked and (self.stops.again or time.monotonic() - asked > self.job.grace):
                _slurm("scancel", self.id)
                return 128 + (self.stops.first or 0)
            self.stops.wait(POLL_SECONDS if not asked else min(POLL_SECONDS, 1.0), through=bool(asked))
        if self.stops.first:
            return 128 + self.stops.first
        if state != "COMPLETED":
            status = self._failed(state, code)
        return status

    def _state(self) -> tuple[str, int]:
        """State and exit status of the job; a controller that doesn't answer is asked again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        late = time.monotonic() + LATE_SECONDS
        while True:
            try:
                # An ended job is unknown to squeue, as an error or as no line.
                states = _slurm("squeue", "--noheader", f"--jobs={self.id}", "--format=%T", tolerant=True).split()
                if live := [state for state in states if state in LIVE]:
                    return live[0], 0
                known = self._accounted()
                if known and known[0] not in LIVE:
                    return known
                if time.monotonic() > late and not states:
                    raise PecoError(f"job {self.id}: neither squeue nor sacct knows it; is accounting switched on?")
            except subprocess.CalledProcessError as error:
                if time.monotonic() > deadline:
                    raise PecoError(
                        f"Slurm doesn't answer ({error}); job {self.id} is left as it is: run again to follow it"
                    ) from None
            self.stops.wait(POLL_SECONDS)

    def _accounted(self) -> tuple[str, int] | None:
        """State and exit status of the part that failed first, or of the first."""
        command = [
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            f"--jobs={self.id}",
            "--format=State,ExitCode",
        ]
        found = []
        for line in _slurm(*command, raising=True).splitlines():
            state, _, code = line.partition("|")
            number, _, ended_by = code.partition(":")
            found.append(
                (state.split()[0].rstrip("+"), int(number or 0) or (128 + int(ended_by) if int(ended_by or 0) else 0))
            )
        bad = [part for part in found if part[0] not in (*LIVE, "COMPLETED", "CANCELLED")]
        return next(iter(bad or found), None)

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


def _slurm(command: str, *arguments: str, tolerant: bool = False, raising: bool = False) -> str:
    """What one of Slurm's commands prints. An error is a PecoError, nothing (`tolerant`), or passed on (`raising`)."""
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=not tolerant)
    except FileNotFoundError:
        raise PecoError(f"{command}: not found; PECO_SCHEDULER=slurm needs Slurm's commands on the PATH") from None
    except subprocess.CalledProcessError as error:
        if raising:
            raise
        raise PecoError(f"{command}: {' '.join(error.stderr.split()) or f'status {error.returncode}'}") from None
    return done.stdout


def _megabytes(memory: str) -> int:
    """Kubernetes' notation as Slurm's megabytes (of 2**20 bytes)."""
    match = re.fullmatch(r"(\d+)([KMGT]i)", memory)
    assert match, memory  # checked with the parameters
    return max(1, int(match[1]) * UNITS[match[2]] // UNITS["Mi"])
