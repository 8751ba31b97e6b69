"""The graph of dvc.yaml as a Kubeflow pipeline: one task per stage, and `collect` after all of them.

Each task receives the lock entries of the stages that it depends on. Only tasks are retried. Kubeflow caches nothing; DVC does.
The pipeline has the parameters of `pipelines.kfp.step`: repository, revision, params (base64 of params.yaml), experiment (a name).
"""

# kfp reads the annotations of components at run time: no `from __future__ import annotations` here.

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

from peco.core.environment import CHECKPOINT_SECONDS, CHECKPOINT_STEPS, DEVICE, METRICS_PORT
from peco.core.errors import PecoError
from peco.core.stage_name import StageName
from pipelines.components import USER
from pipelines.workflow import environment, stage_resources
from pipelines.workflow.graph import Graph, Stage

NAME = "peco"
COLLECT = "collect"
# A step moves data and waits; the job that it starts does the training.
STEP = {"cpu_request": "250m", "cpu_limit": "2", "memory_request": "1Gi", "memory_limit": "4Gi"}
# Besides the stage's own time limit: for fetching, pushing, and waiting in the queue for GPUs.
STEP_SECONDS = 7 * 24 * 3600
COLLECT_SECONDS = 1800
CREDENTIALS = "/var/run/secrets/peco/git"
STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
PULL_POLICIES = ("IfNotPresent", "Always", "Never")
# The variables that set the fields of a target.
VARIABLES = {
    "image": environment.IMAGE,
    "pull_policy": environment.PULL_POLICY,
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
}
# The variables that the steps receive unchanged, besides those of the resources.
SETTINGS = (
    environment.API_PATIENCE_SECONDS, CHECKPOINT_SECONDS, CHECKPOINT_STEPS, DEVICE, environment.GRACE_SECONDS,
    environment.JOB_SECRET, METRICS_PORT,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The place where a pipeline runs, and its settings. Names of secrets and claims are those of k8s/."""

    image: str = "peco"
    pull_policy: str = environment.PULL_POLICY.default
    # Of the stages' jobs, as the service account.
    scheduler: str = "kubernetes"
    service_account: str = "peco-job"
    # Empty: no pods, the pipeline runs on this machine.
    volume_claim: str = "peco"
    volume_path: str = environment.VOLUME_PATH.default
    # Empty: folders of the volume.
    workspaces: str = ""
    cache: str = ""
    # Empty: the repository's own.
    remote: str = ""
    remote_endpoint: str = ""
    # Its keys are named as the variables; it may be missing.
    storage_secret: str = environment.STORAGE_SECRET.default
    # Basic or SSH authentication; both may be missing. Only `collect` receives the second.
    git_read_secret: str = environment.GIT_READ_SECRET.default
    git_write_secret: str = environment.GIT_WRITE_SECRET.default
    # `PECO_…` variables that the steps receive unchanged.
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Target":
        """The target that the environment describes; an empty variable counts as unset.

        Raises:
            PecoError: PECO_PULL_POLICY is not one of Kubernetes' policies.
        """
        fields = {name: variable.text(env) for name, variable in VARIABLES.items() if variable.is_set(env)}
        if (policy := fields.get("pull_policy", PULL_POLICIES[0])) not in PULL_POLICIES:
            raise PecoError(
                f"{environment.PULL_POLICY.name}: {policy!r} is not allowed; expected {', '.join(PULL_POLICIES)}"
            )
        names = {variable.name for variable in SETTINGS}
        settings = {
            name: value for name, value in env.items() if value and (name in names or stage_resources.is_variable(name))
        }
        return cls(**fields, settings=settings)

    def env(self) -> dict[str, str]:
        """The environment of the steps."""
        variables = {
            environment.SCHEDULER.name: self.scheduler,
            environment.WORKSPACES.name: self.workspaces or f"{self.volume_path}/workspaces",
            environment.CACHE.name: self.cache or f"{self.volume_path}/cache",
            environment.REMOTE.name: self.remote,
            environment.REMOTE_ENDPOINT.name: self.remote_endpoint,
            **self.settings,
        }
        if self.volume_claim:
            variables |= {
                environment.IMAGE.name: self.image,
                environment.SERVICE_ACCOUNT.name: self.service_account,
                environment.VOLUME_CLAIM.name: self.volume_claim,
                environment.VOLUME_PATH.name: self.volume_path,
                environment.GIT_CREDENTIALS.name: CREDENTIALS,
                # The folder that every pod may write to; DVC's state in it need not be shared.
                "HOME": "/tmp",
                "DVC_SITE_CACHE_DIR": "/tmp/dvc",
            }
        return {name: value for name, value in variables.items() if value}


# The bodies of these two run in the steps' pods, as text: they can use no name of this module.


def run_stage(
    stage: str,
    repository: str,
    revision: str,
    params: str,
    locks: list[str],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    lock: dsl.OutputPath(str),  # type: ignore[valid-type]
    parameters: dsl.OutputPath(dict),  # type: ignore[valid-type]
    computed: dsl.OutputPath(bool),  # type: ignore[valid-type]
) -> None:
    from pipelines.kfp import step

    step.main(
        stage, repository, revision, params, locks,
        metrics=metrics, page=page.path, lock=lock, parameters=parameters, computed=computed,
    )  # fmt: skip


def collect(
    repository: str,
    revision: str,
    params: str,
    locks: list[str],
    experiment: str,
    commit: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> None:
    from pipelines.kfp import step

    step.collect(repository, revision, params, locks, experiment, commit=commit)


def build(
    graph: Graph, target: Target, *, repository: str = "", revision: str = "", params: str = "", experiment: str = ""
) -> Any:
    """The pipeline of a graph; the strings are defaults of its parameters.

    Raises:
        PecoError: `meta:` or the environment has a wrong value for a resource.
    """
    requested = {stage.name: stage_resources.resolve(stage, target.settings) for stage in graph.stages.values()}

    def pipeline(
        repository: str = repository, revision: str = revision, params: str = params, experiment: str = experiment
    ) -> None:
        common = {"repository": repository, "revision": revision, "params": params}
        tasks: dict[str, dsl.PipelineTask] = {}
        for stage in _ordered(graph):
            before = [name for name in tasks if (stage.name, name) in graph.edges]
            locks = [tasks[name].outputs["lock"] for name in before]
            task = _component(run_stage, stage.name, target)(stage=str(stage.name), locks=locks, **common)
            tasks[stage.name] = task
            own = requested[stage.name]
            _configure(task, stage.name, target, retries=own.retries, seconds=own.seconds + STEP_SECONDS)
        locks = [task.outputs["lock"] for task in tasks.values()]
        last = _component(collect, COLLECT, target)(locks=locks, experiment=experiment, **common)
        retries = max((own.retries for own in requested.values()), default=0)
        _configure(last, COLLECT, target, retries=retries, seconds=COLLECT_SECONDS, writes=True)

    return dsl.pipeline(
        pipeline, name=NAME, description="The stages of dvc.yaml, and the DVC experiment of their results."
    )


def compile(path: Path | str, graph: Graph, target: Target, **defaults: str) -> None:
    """Write the pipeline of `build` as Kubeflow's IR, in YAML if the suffix is `.yaml`. Raises as `build`."""
    compiler.Compiler().compile(build(graph, target, **defaults), str(path))


def _ordered(graph: Graph) -> list[Stage]:
    """The stages, each after those that it depends on, otherwise in the order of dvc.yaml."""
    ordered: list[Stage] = []

    def visit(name: str) -> None:
        if graph[name] not in ordered:
            for other in graph.stages:
                if (name, other) in graph.edges:
                    visit(other)
            ordered.append(graph[name])

    for name in graph.stages:
        visit(name)
    return ordered


def _component(function: Any, name: str, target: Target) -> Any:
    """A new component for each task, so that tasks are named after stages, not after the function."""
    component = dsl.component(function, base_image=target.image, packages_to_install=[], install_kfp_package=False)
    component.component_spec.name = StageName(name).label
    return component


def _configure(
    task: dsl.PipelineTask, name: str, target: Target, *, retries: int, seconds: int, writes: bool = False
) -> None:
    """Set everything of a task but its inputs."""
    task.set_display_name(str(name))
    task.set_caching_options(False)
    for key, value in target.env().items():
        task.set_env_variable(key, value)
    if not target.volume_claim:
        return
    if retries:
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    task.set_cpu_request(STEP["cpu_request"]).set_cpu_limit(STEP["cpu_limit"])
    task.set_memory_request(STEP["memory_request"]).set_memory_limit(STEP["memory_limit"])
    kubernetes.set_timeout(task, seconds)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.add_pod_label(task, "app.kubernetes.io/component", "peco-step")  # k8s/base/network.yaml
    kubernetes.set_image_pull_policy(task, target.pull_policy)
    kubernetes.mount_pvc(task, target.volume_claim, target.volume_path)
    kubernetes.use_field_path_as_env(task, environment.POD_NAME.name, "metadata.name")
    kubernetes.use_field_path_as_env(task, environment.POD_UID.name, "metadata.uid")
    kubernetes.use_field_path_as_env(task, environment.NAMESPACE.name, "metadata.namespace")
    kubernetes.use_secret_as_env(task, target.storage_secret, {key: key for key in STORAGE_KEYS}, optional=True)
    secret = target.git_write_secret if writes else target.git_read_secret
    kubernetes.use_secret_as_volume(task, secret, CREDENTIALS, optional=True)
