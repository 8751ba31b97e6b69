"""The graph of dvc.yaml as a Kubeflow pipeline: one task a stage, fed by the lock entries of those it depends on, and `collect`.

Kubeflow caches nothing here, DVC does; and a task's retries are the only ones. Parameters of the pipeline are what `pipelines.kfp.step`
takes: repository, revision, params (base64 of params.yaml) and experiment (a name).
"""

# kfp reads the annotations of components at run time: no `from __future__ import annotations` here.

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from pipelines.workflow import resources
from pipelines.workflow.graph import Graph, Stage

NAME = "peco"
COLLECT = "collect"
# A step moves data and waits; what trains is the job that it starts.
STEP = {"cpu_request": "250m", "cpu_limit": "2", "memory_request": "1Gi", "memory_limit": "4Gi"}
STEP_SECONDS = 7 * 24 * 3600  # beside the stage's own time limit: to fetch, to push, to wait in the queue for GPUs
COLLECT_SECONDS = 1800
USER = 10001  # of the image (k8s/Dockerfile), to whom the files on the shared volume belong
CREDENTIALS = "/var/run/secrets/peco/git"
STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
POLICIES = ("IfNotPresent", "Always", "Never")
# What else of the environment goes to the steps, beside the resources that `pipelines.workflow.resources` reads.
SETTINGS = (
    "PECO_API_PATIENCE_SECONDS", "PECO_CHECKPOINT_SECONDS", "PECO_CHECKPOINT_STEPS",
    "PECO_DEVICE", "PECO_GRACE_SECONDS", "PECO_JOB_SECRET", "PECO_METRICS_PORT",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Where a pipeline runs, and with what. Names of secrets and claims are those of k8s/."""

    image: str = "peco"
    pull_policy: str = "IfNotPresent"
    scheduler: str = "kubernetes"  # of the stages' jobs
    service_account: str = "peco-job"  # of the stages' jobs
    volume_claim: str = "peco"  # empty: no pods, the pipeline runs on this machine
    volume_path: str = "/peco"
    workspaces: str = ""  # by default, this and the next are folders of the volume
    cache: str = ""
    remote: str = ""  # empty: the repository's own
    remote_endpoint: str = ""
    storage_secret: str = "peco-storage"  # keys as the variables of the same names; may be missing
    git_read_secret: str = "peco-git-read"  # basic or SSH authentication; may be missing
    git_write_secret: str = "peco-git-write"  # the same, for `collect` alone
    settings: Mapping[str, str] = field(default_factory=dict)  # PECO_… that go to the steps as they are

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Target":
        """PECO_IMAGE, PECO_VOLUME_CLAIM and so on, one variable a field; an empty one counts as unset.

        Raises:
            PecoError: PECO_PULL_POLICY is none.
        """
        own = {item.name: f"PECO_{item.name.upper()}" for item in dataclasses.fields(cls) if item.name != "settings"}
        given = {name: env[variable] for name, variable in own.items() if env.get(variable)}
        if given.get("pull_policy", POLICIES[0]) not in POLICIES:
            raise PecoError(f"PECO_PULL_POLICY={given['pull_policy']}: not allowed; expected {', '.join(POLICIES)}")
        return cls(**given, settings={name: value for name, value in env.items() if value and _is_setting(name)})

    def env(self) -> dict[str, str]:
        """What the steps find in their environment."""
        found = {
            "PECO_SCHEDULER": self.scheduler,
            "PECO_WORKSPACES": self.workspaces or f"{self.volume_path}/workspaces",
            "PECO_CACHE": self.cache or f"{self.volume_path}/cache",
            "PECO_REMOTE": self.remote,
            "PECO_REMOTE_ENDPOINT": self.remote_endpoint,
            **self.settings,
        }
        if self.volume_claim:
            found |= {
                "PECO_IMAGE": self.image,
                "PECO_SERVICE_ACCOUNT": self.service_account,
                "PECO_VOLUME_CLAIM": self.volume_claim,
                "PECO_VOLUME_PATH": self.volume_path,
                "PECO_GIT_CREDENTIALS": CREDENTIALS,
                # A pod that may not write elsewhere can still keep DVC's notes on files, which are of no use to others.
                "HOME": "/tmp",
                "DVC_SITE_CACHE_DIR": "/tmp/dvc",
            }
        return {name: value for name, value in found.items() if value}


def _is_setting(name: str) -> bool:
    keys = [
        "PECO_NPROC" if item.name == "processes" else f"PECO_{item.name.upper()}"
        for item in dataclasses.fields(Resources)
    ]
    return name in SETTINGS or any(name == key or name.startswith(f"{key}_") for key in keys)


# The bodies of these two run in the steps' pods, as text: they see nothing of this module.


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
    """The pipeline of a graph; the texts are defaults of its parameters.

    Raises:
        PecoError: `meta:` or the environment asks for a wrong resource.
    """
    given = {stage.name: resources.resolve(stage, target.settings) for stage in graph.stages.values()}

    def pipeline(
        repository: str = repository, revision: str = revision, params: str = params, experiment: str = experiment
    ) -> None:
        common = {"repository": repository, "revision": revision, "params": params}
        tasks: dict[str, dsl.PipelineTask] = {}
        for stage in _ordered(graph):
            before = [name for name in tasks if (stage.name, name) in graph.edges]
            locks = [tasks[name].outputs["lock"] for name in before]
            task = _component(run_stage, stage.name, target)(stage=stage.name, locks=locks, **common)
            tasks[stage.name] = task
            asked = given[stage.name]
            _equip(task, stage.name, target, retries=asked.retries, seconds=asked.seconds + STEP_SECONDS)
        locks = [task.outputs["lock"] for task in tasks.values()]
        last = _component(collect, COLLECT, target)(locks=locks, experiment=experiment, **common)
        retries = max((asked.retries for asked in given.values()), default=0)
        _equip(last, COLLECT, target, retries=retries, seconds=COLLECT_SECONDS, writes=True)

    return dsl.pipeline(pipeline, name=NAME, description="The stages of dvc.yaml, and the experiment that they make.")


def compile(path: Path | str, graph: Graph, target: Target, **defaults: str) -> None:
    """Write the pipeline of `build` as Kubeflow IR, YAML by its suffix. Raises as `build`."""
    compiler.Compiler().compile(build(graph, target, **defaults), str(path))


def edges(ir: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The edges between stages, as `Graph.edges` has them, read from what flows between the tasks of a compiled pipeline."""
    tasks = ir["root"]["dag"]["tasks"]
    names = {task: entry["taskInfo"]["name"] for task, entry in tasks.items()}
    return {
        (names[task], names[value["taskOutputParameter"]["producerTask"]])
        for task, entry in tasks.items()
        if names[task] != COLLECT
        for value in entry.get("inputs", {}).get("parameters", {}).values()
        if "taskOutputParameter" in value
    }


def _ordered(graph: Graph) -> list[Stage]:
    """The stages, each after those it depends on, else in the order of dvc.yaml."""
    found: list[Stage] = []

    def visit(name: str) -> None:
        if graph[name] not in found:
            for other in graph.stages:
                if (name, other) in graph.edges:
                    visit(other)
            found.append(graph[name])

    for name in graph.stages:
        visit(name)
    return found


def _component(function: Any, name: str, target: Target) -> Any:
    """A component of its own for each task, so that tasks are named after stages, not after the function."""
    component = dsl.component(function, base_image=target.image, packages_to_install=[], install_kfp_package=False)
    component.component_spec.name = StageName(name).label
    return component


def _equip(
    task: dsl.PipelineTask, name: str, target: Target, *, retries: int, seconds: int, writes: bool = False
) -> None:
    """What a task needs beside its inputs."""
    task.set_display_name(name)
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
    kubernetes.use_field_path_as_env(task, "PECO_POD_NAME", "metadata.name")
    kubernetes.use_field_path_as_env(task, "PECO_POD_UID", "metadata.uid")
    kubernetes.use_field_path_as_env(task, "PECO_NAMESPACE", "metadata.namespace")
    kubernetes.use_secret_as_env(task, target.storage_secret, {key: key for key in STORAGE_KEYS}, optional=True)
    secret = target.git_write_secret if writes else target.git_read_secret
    kubernetes.use_secret_as_volume(task, secret, CREDENTIALS, optional=True)
