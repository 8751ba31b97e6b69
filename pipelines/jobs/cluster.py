"""One stage as a job on a cluster, through TorchX: a Volcano job (PECO_SCHEDULER=kubernetes) or a Slurm job (PECO_SCHEDULER=slurm).

The job's name follows from what it computes, so a stage that is run again finds its job if it still exists, and attaches to it.
The lines of all ranks appear as they are written; a stop ends the job; the exit status is that of `pipelines.launch`.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Mapping

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines import components
from pipelines.jobs.backend import Backend
from pipelines.jobs.job import Job, build_app, job_name
from pipelines.jobs.logs import Screen
from pipelines.workflow.environment import GRACE_SECONDS, SCHEDULER
from pipelines.workflow.graph import Stage
from pipelines.workflow.stage_resources import resolve


def run(stage: Stage, screen: Screen, env: Mapping[str, str] = os.environ) -> int:
    """Run a stage as a job, or attach to the one that runs it already, and return the exit status.

    Call it from the main thread: it handles the signals until the job has ended.

    Raises:
        PecoError: something the user can fix: a variable is missing or wrong, or the cluster refuses.
    """
    scheduler = SCHEDULER.text(env)
    if scheduler not in ("kubernetes", "slurm"):
        raise PecoError(f"{SCHEDULER.name}: {scheduler!r} is not allowed; expected local_cwd, kubernetes or slurm")
    resources = resolve(stage, env)
    name = job_name(stage, resources, env)
    # Other jobs share Slurm's nodes: a port derived from the name is rarely in use.
    offset = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10_000
    port = components.PORT if scheduler == "kubernetes" else 20_000 + offset
    job = Job(stage.name, name, build_app(stage, resources, env, port=port), resources, GRACE_SECONDS.integer(env))
    with StopSignals(even_ignored=(signal.SIGINT, signal.SIGTERM)) as stops:
        backend: Backend
        try:
            if scheduler == "kubernetes":
                from pipelines.jobs.volcano import Volcano  # imports a client that others may lack

                backend = Volcano(job, screen, stops, env)
            else:
                from pipelines.jobs.slurm import Slurm

                backend = Slurm(job, screen, stops)
            return backend.follow()
        finally:
            screen.close()
