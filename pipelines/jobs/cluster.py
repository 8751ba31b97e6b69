"""One stage as a job on a cluster, through TorchX: a Volcano job (PECO_SCHEDULER=kubernetes) or a Slurm job (PECO_SCHEDULER=slurm).

The job's name follows from what it computes, so a stage that is run again finds its job if it still exists, and attaches to it.
The lines of all ranks appear as they are written; a stop ends the job; the status is that of `pipelines.launch`.

Environment, besides the variables in pipelines/workflow/resources.py:
    PECO_JOB_KEY: identifies the job among those of the stage (a hash of commit, changed files, stage and its parameters)
    PECO_WORK: folder of working files; on a cluster all nodes must see it
    PECO_GRACE_SECONDS: time in which a stopped job may save its work (60)
    pipelines/jobs/volcano_job.py and pipelines/jobs/slurm.py list their own.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Mapping

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines import components
from pipelines.jobs.job import Job, build_app, job_name
from pipelines.jobs.logs import Screen
from pipelines.workflow import resources
from pipelines.workflow.environment import GRACE_SECONDS, SCHEDULER
from pipelines.workflow.graph import Stage


def run(stage: Stage, screen: Screen, env: Mapping[str, str] = os.environ) -> int:
    """Run a stage as a job, or attach to the one that runs it already, and return the exit status.

    Call it from the main thread: it handles the signals until the job has ended.

    Raises:
        PecoError: something the user can fix: a variable is missing or wrong, the cluster refuses.
    """
    scheduler = SCHEDULER.text(env)
    if scheduler not in ("kubernetes", "slurm"):
        raise PecoError(f"{SCHEDULER.name}: {scheduler!r} is not allowed; expected local_cwd, kubernetes or slurm")
    asked = resources.resolve(stage, env)
    name = job_name(stage, asked, env)
    # Nodes of Slurm are shared with other jobs: a port that follows from the name is seldom taken.
    spread = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10_000
    port = components.PORT if scheduler == "kubernetes" else 20_000 + spread
    app = build_app(stage, asked, env, port=port)
    job = Job(stage.name, name, app, asked, GRACE_SECONDS.integer(env))
    with StopSignals(even_ignored=(signal.SIGINT, signal.SIGTERM)) as stops:
        try:
            if scheduler == "kubernetes":
                from pipelines.jobs import volcano

                return volcano.run(job, screen, stops, env)
            from pipelines.jobs import slurm

            return slurm.run(job, screen, stops)
        finally:
            screen.close()
