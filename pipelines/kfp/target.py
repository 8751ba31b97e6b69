"""The place where a pipeline runs, read from the environment: image, volume, secrets and settings of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from peco.core.environment import ALLOW_PIPE, CHECKPOINT_SECONDS, CHECKPOINT_STEPS, DEVICE, METRICS_PORT, TRACKING
from peco.core.errors import PecoError
from pipelines.kfp import pod
from pipelines.workflow import environment, kubernetes_names, stage_resources

# The variables that set the fields of a target.
VARIABLES = {
    "image": environment.IMAGE,
    "scheduler": environment.SCHEDULER,
    "service_account": environment.SERVICE_ACCOUNT,
    "volume_claim": environment.VOLUME_CLAIM,
    "volume_path": environment.VOLUME_PATH,
    "workspaces": environment.WORKSPACES,
    "cache": environment.CACHE,
    "remote": environment.REMOTE,
    "remote_endpoint": environment.REMOTE_ENDPOINT,
    "storage_secret": environment.STORAGE_SECRET,
    "git_read_secret": environment.GIT_READ_SECRET,
    "git_write_secret": environment.GIT_WRITE_SECRET,
    "step_secret": environment.STEP_SECRET,
    "ca_configmap": environment.CA_CONFIGMAP,
}
# Of these, the names of objects in the cluster.
OBJECTS = (
    "service_account", "volume_claim", "storage_secret", "git_read_secret", "git_write_secret", "step_secret", "ca_configmap",
)  # fmt: skip
# The variables that the steps receive unchanged, besides those of the resources.
SETTINGS = (
    ALLOW_PIPE,
    environment.API_PATIENCE_SECONDS, CHECKPOINT_SECONDS, CHECKPOINT_STEPS, DEVICE, environment.GRACE_SECONDS,
    environment.JOB_SECRET, METRICS_PORT, TRACKING, environment.UMASK,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The place where a pipeline runs, and its settings. Names of secrets and claims are those of k8s/."""

    image: str = "peco"
    pull_policy: str = environment.PULL_POLICY.default
    # Of the stages' jobs, as the service account.
    scheduler: str = pod.DEFAULTS[environment.SCHEDULER.name]
    service_account: str = pod.DEFAULTS[environment.SERVICE_ACCOUNT.name]
    # Empty: no pods, the pipeline runs on this machine.
    volume_claim: str = pod.DEFAULTS[environment.VOLUME_CLAIM.name]
    volume_path: str = environment.VOLUME_PATH.default
    # Empty: folders of the volume.
    workspaces: str = ""
    cache: str = ""
    # Empty: the repository's own.
    remote: str = ""
    remote_endpoint: str = ""
    # Their keys are named as the variables. The first may be missing, the second is empty for none.
    storage_secret: str = environment.STORAGE_SECRET.default
    step_secret: str = ""
    # Certificates to trust; empty for the image's.
    ca_configmap: str = ""
    # Basic or SSH authentication; both may be missing. Only `collect` receives the second.
    git_read_secret: str = environment.GIT_READ_SECRET.default
    git_write_secret: str = environment.GIT_WRITE_SECRET.default
    # `PECO_…` variables that the steps receive unchanged.
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Target:
        """The target that the environment describes; an empty variable counts as unset.

        Raises:
            PecoError: a name, the pull policy or the umask is not one that Kubernetes would take.
        """
        fields = {name: variable.text(env) for name, variable in VARIABLES.items() if variable.is_set(env)}
        if "image" in fields:
            kubernetes_names.image(environment.IMAGE, env)
        for name in OBJECTS:
            if name in fields:
                kubernetes_names.object_name(VARIABLES[name], env)
        kubernetes_names.object_name(environment.JOB_SECRET, env)  # of the settings
        pod.umask(env)
        names = {variable.name for variable in SETTINGS}
        settings = {
            name: value for name, value in env.items() if value and (name in names or stage_resources.is_variable(name))
        }
        target = cls(**fields, pull_policy=kubernetes_names.pull_policy(env), settings=settings)
        target._check_secrets()
        return target

    def secrets(self, *, writes: bool) -> dict[str, str]:
        """The secrets of a step by the folders where they are mounted; `writes` for the one that pushes to the git remote."""
        git = self.git_write_secret if writes else self.git_read_secret
        folders = {pod.GIT_FOLDER: git, pod.STORAGE_FOLDER: self.storage_secret, pod.STEP_FOLDER: self.step_secret}
        return {folder: name for folder, name in folders.items() if name}

    def env(self) -> dict[str, str]:
        """The environment of the steps: what differs from the defaults of a pod, or all of it where there is none."""
        variables = {
            environment.SCHEDULER.name: self.scheduler,
            environment.WORKSPACES.name: self.workspaces,
            environment.CACHE.name: self.cache,
            environment.REMOTE.name: self.remote,
            environment.REMOTE_ENDPOINT.name: self.remote_endpoint,
            **self.settings,
        }
        if self.volume_claim:
            variables |= {
                environment.IMAGE.name: self.image,
                environment.PULL_POLICY.name: self.pull_policy,
                environment.SERVICE_ACCOUNT.name: self.service_account,
                environment.VOLUME_CLAIM.name: self.volume_claim,
                environment.VOLUME_PATH.name: self.volume_path,
                environment.CA_CONFIGMAP.name: self.ca_configmap,
            }
            variables = {name: value for name, value in variables.items() if value != pod.DEFAULTS.get(name)}
        return {name: value for name, value in variables.items() if value}

    def _check_secrets(self) -> None:
        named = ("git_read_secret", "git_write_secret", "storage_secret", "step_secret")
        for first, second in itertools.combinations(named, 2):
            # No step has both secrets of git.
            if getattr(self, first) == getattr(self, second) and second != "git_write_secret":
                raise PecoError(
                    f"{VARIABLES[first].name} and {VARIABLES[second].name} both name {getattr(self, first)}; "
                    "a pod mounts a secret once, so make one for each"
                )
