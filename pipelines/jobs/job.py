"""The job of a stage on a cluster: its name and its TorchX app."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from torchx.specs import AppDef

from peco.core import workfiles
from peco.core.environment import (
    ALLOW_PIPE,
    CHECKPOINT_SECONDS,
    CHECKPOINT_STEPS,
    DEVICE,
    METRICS_PORT,
    PROGRESS,
    TRACKING,
    WORK,
)
from peco.core.errors import PecoError
from peco.core.resources import Resources
from pipelines import components
from pipelines.workflow.environment import GRACE_SECONDS, IMAGE, JOB_KEY
from pipelines.workflow.git import git
from pipelines.workflow.graph import Stage, lookup

JOB_METRICS_PORT = 8001
# Variables that a stage itself reads, and those that reading from a bucket needs besides credentials. None is a secret.
PASSED = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_URI",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    ALLOW_PIPE.name,
    CHECKPOINT_SECONDS.name,
    CHECKPOINT_STEPS.name,
    DEVICE.name,
    TRACKING.name,
)
NAME_LENGTH = 63  # of a DNS label


@dataclass(frozen=True)
class Job:
    """The job to run on a cluster."""

    stage: str  # as DVC calls it
    name: str
    app: AppDef
    resources: Resources
    grace: int  # seconds

    @property
    def multi_process(self) -> bool:
        """True if torchrun starts the processes."""
        return bool(self.app.roles[0].entrypoint == "bash")


def job_name(stage: Stage, resources: Resources, env: Mapping[str, str]) -> str:
    """`peco-<role>-<key>`, safe in DNS and short enough for the names of the job's pods.

    Raises:
        PecoError: PECO_JOB_KEY is wrong, or it is unset and there is no commit to derive a key from.
    """
    key = JOB_KEY.text(env) or _key(stage)
    if not re.fullmatch(r"[a-z0-9]{1,40}", key):
        raise PecoError(f"{JOB_KEY.name}: {key!r} is not allowed; expected up to 40 lower-case letters and digits")
    task = re.sub(r"[^a-z0-9]", "", stage.name.role.lower())
    length = NAME_LENGTH - len(f"peco--{key}-{task}-{resources.nodes}-0")
    label = stage.name.label[: max(length, 0)].strip("-")
    if not label:
        raise PecoError(f"{stage.name}: its name is too long for a job's; shorten it")
    return f"peco-{label}-{key}"


def heartbeat_path(name: str) -> Path:
    """The file that the launcher of a job touches."""
    return workfiles.root().resolve() / f"{name}.alive"


def _key(stage: Stage) -> str:
    """Hash of commit, changed files, stage and parameters: a run after a change must not attach to an earlier job."""
    try:
        commit, changes = git("rev-parse", "HEAD"), git("diff", "HEAD")
    except PecoError:
        raise PecoError(f"no commit to name the job by; commit the repository, or set {JOB_KEY.name}") from None
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params = {key: lookup(values, key) for key in stage.params}
    payload = json.dumps([commit, hashlib.sha256(changes.encode()).hexdigest(), stage.name, params], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


def build_app(stage: Stage, resources: Resources, env: Mapping[str, str], *, port: int = components.PORT) -> AppDef:
    """The stage's component with its resources and the environment that it needs on a cluster."""
    processes = resources.processes or resources.gpus or 1
    variables = {name: env[name] for name in PASSED if env.get(name)}
    variables |= {
        "PYTHONPATH": os.getcwd(),
        "PYTHONUNBUFFERED": "1",
        WORK.name: str(workfiles.root().resolve()),
        PROGRESS.name: "plain",
        METRICS_PORT.name: str(JOB_METRICS_PORT),
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[${rank}]: ",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE_SECONDS.text(env),
    }
    threads = resources.threads or max(1, resources.cpu // processes)
    image = IMAGE.text(env) or components.IMAGE
    app = components.stage(
        stage.name, j=f"{resources.nodes}x{processes}", threads=threads, workers=resources.workers, image=image,
        env=variables, port=port,
    )  # fmt: skip
    [role] = app.roles
    role.port_map["metrics"] = JOB_METRICS_PORT
    if role.entrypoint == "bash":
        # The signals that stop a job go to its first process: that must be torchrun, not a shell that ignores them.
        role.args = [*role.args[:-1], f"exec {role.args[-1]}"]
    return app
