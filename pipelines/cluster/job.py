"""One stage as a job on a cluster, through TorchX: a Volcano job (PECO_SCHEDULER=kubernetes) or a Slurm job (PECO_SCHEDULER=slurm).

The job has a name that follows from what it computes, so a stage that is run again finds the job that is still there and attaches
to it. The lines of all ranks appear as they are written; a stop ends the job; the status is that of `pipelines.launch`.

Environment, beside what pipelines/resources.py lists:
    PECO_JOB_KEY: what tells this stage's job from another's (a hash of commit, changed files, stage and its parameters)
    PECO_WORK: folder of working files; on a cluster all nodes must see it
    PECO_GRACE_SECONDS: how long a stopped job may take to save its work (60)
    pipelines/cluster/volcano_job.py and pipelines/cluster/slurm.py list their own.
"""

from __future__ import annotations

import collections
import hashlib
import inspect
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from torchx.specs import AppDef

from peco import workfiles
from peco.errors import PecoError
from peco.resources import Resources
from pipelines.graph import Stage
from pipelines.logs import Line, Screen
from pipelines.resources import whole_number

METRICS_PORT = 8001
# What a stage itself reads, and what reading from a bucket needs beside credentials. No secret is among them.
PASSED = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "PECO_CHECKPOINT_SECONDS",
    "PECO_CHECKPOINT_STEPS",
    "PECO_DEVICE",
)
NAME_LENGTH = 63  # of a DNS label
SHOWN_LINES = 20
# One Ctrl-C can arrive twice: from the terminal and from a parent that passes it on.
SAME_STOP_SECONDS = 1.0
_RANK = re.compile(r"\[(\d+)\]: ?(.*)")
_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank")
_ROOT = re.compile(r"^\s*(rank|exitcode)\s*: (-?\d+)")


@dataclass(frozen=True)
class Job:
    """What a cluster is to run."""

    stage: str  # as DVC calls it
    name: str
    app: AppDef
    given: Resources
    grace: int  # seconds


def run(
    stage: Stage,
    component: Callable[..., AppDef],
    given: Resources,
    screen: Screen,
    env: Mapping[str, str] = os.environ,
) -> int:
    """Run a stage as a job, or attach to the one that runs it already, and return the exit status.

    Call it from the main thread: it handles the signals until the job has ended.

    Raises:
        PecoError: something the user can fix: a variable is missing or wrong, the cluster refuses.
    """
    scheduler = env.get("PECO_SCHEDULER")
    if scheduler not in ("kubernetes", "slurm"):
        raise PecoError(f"PECO_SCHEDULER={scheduler}: not allowed; expected local_cwd, kubernetes or slurm")
    name = job_name(stage, given, env)
    # Nodes of Slurm are shared with other jobs: a port that follows from the name is seldom taken.
    port = (
        {}
        if scheduler == "kubernetes"
        else {"port": 20_000 + int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10_000}
    )
    job = Job(stage.name, name, build_app(component, given, env, **port), given, _grace(env))
    with Stops() as stops:
        try:
            if scheduler == "kubernetes":
                from pipelines.cluster import volcano

                return volcano.run(job, screen, stops, env)
            from pipelines.cluster import slurm

            return slurm.run(job, screen, stops)
        finally:
            screen.close()


def job_name(stage: Stage, given: Resources, env: Mapping[str, str]) -> str:
    """`peco-<role>-<key>`, safe in DNS and short enough for the names of the job's pods.

    Raises:
        PecoError: PECO_JOB_KEY is wrong, or there is none and no commit to make one from.
    """
    key = env.get("PECO_JOB_KEY") or _key(stage)
    if not re.fullmatch(r"[a-z0-9]{1,40}", key):
        raise PecoError(f"PECO_JOB_KEY={key}: not allowed; expected up to 40 lower-case letters and digits")
    task = re.sub(r"[^a-z0-9]", "", stage.role.lower())
    room = NAME_LENGTH - len(f"peco--{key}-{task}-{given.nodes}-0")
    role = stage.role.lower().replace("_", "-")[: max(room, 0)].strip("-")
    if not role:
        raise PecoError(f"{stage.name}: its name is too long for a job's; shorten it")
    return f"peco-{role}-{key}"


def _key(stage: Stage) -> str:
    """Commit, changed files, stage and parameters: a run after a change must not attach to the job from before it."""
    try:
        commit, changes = (
            subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
            for arguments in (["rev-parse", "HEAD"], ["diff", "HEAD"])
        )
    except (OSError, subprocess.CalledProcessError):
        raise PecoError("no commit to name the job by; commit the repository, or set PECO_JOB_KEY") from None
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params = {key: _value(values, key) for key in stage.params}
    told = json.dumps([commit.decode(), hashlib.sha256(changes).hexdigest(), stage.name, params], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part] if isinstance(values, dict) else None
    return values


def _grace(env: Mapping[str, str]) -> int:
    return whole_number(env, "PECO_GRACE_SECONDS", 60)


def build_app(
    component: Callable[..., AppDef], given: Resources, env: Mapping[str, str], *, port: int | None = None
) -> AppDef:
    """The component with what the stage is given and the environment it needs on a cluster.

    Raises:
        PecoError: a role has a name that breaks rendezvous.
    """
    processes = given.processes or given.gpus or 1
    several: dict[str, Any] = {}
    if "j" in inspect.signature(component).parameters:
        several = {"j": f"{given.nodes}x{processes}"} | ({"port": port} if port else {})
    variables = {name: env[name] for name in PASSED if env.get(name)}
    variables |= {
        "PYTHONPATH": os.getcwd(),
        "PYTHONUNBUFFERED": "1",
        "PECO_WORK": str(workfiles.root().resolve()),
        "PECO_PROGRESS": "plain",
        "PECO_METRICS_PORT": str(METRICS_PORT),
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[${rank}]: ",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_grace(env)),
    }
    threads = given.threads or max(1, given.cpu // processes)
    image = env.get("PECO_IMAGE") or "peco"
    app = component(threads=threads, workers=given.workers, image=image, env=variables, **several)
    for role in app.roles:
        if "-" in role.name:
            raise PecoError(
                f"{role.name}: a role's name must have no hyphen, since it becomes part of a variable's name"
            )
        role.port_map["metrics"] = METRICS_PORT
        if role.entrypoint == "bash":
            # The signals that stop a job go to its first process: that must be torchrun, not a shell that ignores them.
            role.args = [*role.args[:-1], f"exec {role.args[-1]}"]
    return app


class Stops:
    """While in use, SIGINT, SIGTERM and SIGHUP are noted instead of ending this process."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.again = False  # a second one asks not to wait
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):  # nohup
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self._at = signal.Signals(number), now
        elif now - self._at > SAME_STOP_SECONDS:
            self.again = True

    def wait(self, seconds: float, *, through: bool = False) -> None:
        """Sleep; a stop, or where that was the first already (`through`) a second one, ends it early."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not (self.again if through else self.first):
            time.sleep(min(left, 0.1))


class Output:
    """The lines of a job: shown with the number of their rank, and what is needed for a word on its failure.

    With one process there are no ranks. With several, what torchrun itself writes is not shown: it is read for the rank that
    failed first, and kept for the case that no rank says anything.
    """

    def __init__(self, screen: Screen, *, several: bool) -> None:
        self._screen, self._several = screen, several
        self._last: dict[str | None, collections.deque[str]] = {}
        self._failed: dict[str, dict[str, int]] = {}
        self.explained = False

    def add(self, node: str, texts: list[str]) -> None:
        """Show what the node has written since."""
        lines = []
        for text in texts:
            match = _RANK.fullmatch(text) if self._several else None
            rank, said = (match[1], match[2]) if match else (None, text)
            mine = rank if rank is not None else node
            self._last.setdefault(mine, collections.deque(maxlen=SHOWN_LINES)).append(said)
            if rank is None and self._several:
                self._read(node, text)
                continue
            cause = said.startswith("error: ")
            self.explained |= cause
            lines.append(Line(said, cause, rank))
        self._screen.show(lines)

    def _read(self, node: str, text: str) -> None:
        found = self._failed.setdefault(node, {})
        if match := _FAILED.search(text):
            found.setdefault("code", int(match[1]))
        if "Root Cause" in text:
            found["root"] = 1
        elif "root" in found and (match := _ROOT.match(text)):
            found.setdefault("rank" if match[1] == "rank" else "code", int(match[2]))

    def code(self, node: str, status: int) -> int:
        """Exit code of the rank of this node that failed first; torchrun itself makes 1 of every one. `status` where unknown."""
        return self._failed.get(node, {}).get("code", status)

    def explain(self, node: str) -> tuple[str, list[str]]:
        """Name of the rank that failed on this node, as far as known, and its last lines."""
        rank = self._failed.get(node, {}).get("rank")
        lines = self._last.get(str(rank)) or self._last.get(node) or ()
        return f"rank {rank}" if rank is not None else "its process", list(lines)


def failure(job: Job, output: Output, node: str, status: int, where: str) -> tuple[int, str | None]:
    """Exit status of a job whose process on `node` failed with `status`, and the error to show where its lines don't say it all."""
    code = output.code(node, status)
    if code == 2 and output.explained:
        return 2, None
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return (
            1,
            f"error: {job.stage}: {where} was stopped from outside; run again, it goes on from its last checkpoint",
        )
    who, lines = output.explain(node)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
    hint = " (out of memory?)" if code in (-signal.SIGKILL, 128 + signal.SIGKILL) else ""
    text = f"error: {job.stage}: {who} of {where} {how}{hint}"
    return 2 if code == 2 else 1, "\n".join(
        [text + ("; its last lines:" if lines else ""), *(f"  {line}" for line in lines)]
    )
