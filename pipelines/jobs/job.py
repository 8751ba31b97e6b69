"""The job of a stage on a cluster: its name, and its TorchX app."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torchx.specs import AppDef

from peco.core import workfiles
from peco.core.errors import PecoError
from peco.core.resources import Resources
from pipelines import components
from pipelines.workflow.environment import GRACE_SECONDS, IMAGE, JOB_KEY
from pipelines.workflow.git import git
from pipelines.workflow.graph import Stage

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


@dataclass(frozen=True)
class Job:
    """What a cluster is to run."""

    stage: str  # as DVC calls it
    name: str
    app: AppDef
    given: Resources
    grace: int  # seconds


def job_name(stage: Stage, given: Resources, env: Mapping[str, str]) -> str:
    """`peco-<role>-<key>`, safe in DNS and short enough for the names of the job's pods.

    Raises:
        PecoError: PECO_JOB_KEY is wrong, or there is none and no commit to make one from.
    """
    key = JOB_KEY.text(env) or _key(stage)
    if not re.fullmatch(r"[a-z0-9]{1,40}", key):
        raise PecoError(f"PECO_JOB_KEY={key}: not allowed; expected up to 40 lower-case letters and digits")
    task = re.sub(r"[^a-z0-9]", "", stage.name.role.lower())
    room = NAME_LENGTH - len(f"peco--{key}-{task}-{given.nodes}-0")
    role = stage.name.role.lower().replace("_", "-")[: max(room, 0)].strip("-")
    if not role:
        raise PecoError(f"{stage.name}: its name is too long for a job's; shorten it")
    return f"peco-{role}-{key}"


def _key(stage: Stage) -> str:
    """Commit, changed files, stage and parameters: a run after a change must not attach to the job from before it."""
    try:
        commit, changes = git("rev-parse", "HEAD"), git("diff", "HEAD")
    except PecoError:
        raise PecoError("no commit to name the job by; commit the repository, or set PECO_JOB_KEY") from None
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params = {key: _value(values, key) for key in stage.params}
    told = json.dumps([commit, hashlib.sha256(changes.encode()).hexdigest(), stage.name, params], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part] if isinstance(values, dict) else None
    return values


def build_app(stage: Stage, given: Resources, env: Mapping[str, str], *, port: int = components.PORT) -> AppDef:
    """The component with what the stage is given and the environment it needs on a cluster.

    Raises:
        PecoError: a role has a name that breaks rendezvous.
    """
    processes = given.processes or given.gpus or 1
    variables = {name: env[name] for name in PASSED if env.get(name)}
    variables |= {
        "PYTHONPATH": os.getcwd(),
        "PYTHONUNBUFFERED": "1",
        "PECO_WORK": str(workfiles.root().resolve()),
        "PECO_PROGRESS": "plain",
        "PECO_METRICS_PORT": str(METRICS_PORT),
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[${rank}]: ",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE_SECONDS.text(env),
    }
    threads = given.threads or max(1, given.cpu // processes)
    image = IMAGE.text(env) or components.IMAGE
    app = components.stage(
        stage.name, j=f"{given.nodes}x{processes}", threads=threads, workers=given.workers, image=image, env=variables,
        port=port,
    )  # fmt: skip
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
