"""The graph of dvc.yaml as a Kubeflow pipeline: one task per stage with the same edges, and `collect` after the last of them.

Tasks pass on nothing through Kubeflow: a step leaves its result in the folder of the run (pipelines/kfp/run_folder.py). A stage
that depends on no other receives the parameters of the pipeline (pipelines/kfp/parameters.py) and keeps them there; the others have
no inputs, which Kubeflow would copy into its record of the run eight times. Kubeflow caches nothing; DVC does.
"""

# kfp reads the annotations of the pipeline at run time: no `from __future__ import annotations` here.

from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

from peco.core.stage_name import StageName
from pipelines.components import USER
from pipelines.kfp import components, stage_command
from pipelines.kfp.page import has_page
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.target import Target
from pipelines.workflow import environment, stage_resources
from pipelines.workflow.graph import Graph, Stage

NAME = "peco"
COLLECT = "collect"
# A step moves data and waits; the job that it starts does the training.
STEP = {"cpu_request": "250m", "cpu_limit": "2", "memory_request": "1Gi", "memory_limit": "4Gi"}
# Besides the stage's own time limit: for fetching, pushing, and waiting in the queue for GPUs.
STEP_SECONDS = 7 * 24 * 3600
COLLECT_SECONDS = 1800
RUN_LABEL = "metadata.labels['pipeline/runid']"  # of every pod
NOTHING = Parameters(repository="", revision="", preset="", seed=0, overrides="", experiment="")


def build(graph: Graph, target: Target, defaults: Parameters = NOTHING) -> Any:
    """The pipeline of a graph, whose parameters have these defaults.

    Raises:
        PecoError: `meta:` or the environment has a wrong value for a resource.
    """
    requested = {stage.name: stage_resources.resolve(stage, target.settings) for stage in graph.stages.values()}

    def pipeline(
        repository: str = defaults.repository,
        revision: str = defaults.revision,
        preset: str = defaults.preset,
        seed: int = defaults.seed,
        overrides: str = defaults.overrides,
        experiment: str = defaults.experiment,
    ) -> None:
        given = {
            "repository": repository, "revision": revision, "preset": preset, "seed": seed, "overrides": overrides,
            "experiment": experiment,
        }  # fmt: skip
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        tasks: dict[str, dsl.PipelineTask] = {}
        for stage in _ordered(graph):
            before = [task for name, task in tasks.items() if (stage.name, name) in graph.edges]
            if before and target.volume_claim:
                task = _container(stage, target)()
                kubernetes.use_field_path_as_env(task, environment.RUN.name, RUN_LABEL)
            else:
                component = _component(components.run_stage if before else components.begin, stage.name, target)
                if not has_page(stage):
                    del component.component_spec.outputs["page"]
                task = component(run=run, stage=str(stage.name), **({} if before else given))
            tasks[stage.name] = task.after(*before)
            _configure(task, stage.name, target, requested[stage.name].seconds + STEP_SECONDS)
        last = [task for name, task in tasks.items() if not any(name == before for _, before in graph.edges)]
        collect = _component(components.collect, COLLECT, target)(run=run).after(*last)
        _configure(collect, COLLECT, target, COLLECT_SECONDS, writes=True)

    return dsl.pipeline(
        pipeline, name=NAME, description="The stages of dvc.yaml, and the DVC experiment of their results."
    )


def compile(path: Path | str, graph: Graph, target: Target, defaults: Parameters = NOTHING) -> None:
    """Write the pipeline of `build` as Kubeflow's IR, in YAML if the suffix is `.yaml`. Raises as `build`."""
    compiler.Compiler().compile(build(graph, target, defaults), str(path))


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
    if target.volume_claim:
        # The image has the function: without this, kfp would put its text into the command.
        component.component_spec.implementation.container.command = ["python3", "-m", components.__name__]
    return component


def _container(stage: Stage, target: Target) -> Any:
    """A new component for a step in a pod that needs no inputs: a command, without kfp's executor."""
    command = ["python3", "-m", stage_command.__name__]

    def plain() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(target.image, command, [str(stage.name)])

    def with_page(page: dsl.Output[dsl.HTML]) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(target.image, command, [str(stage.name), page.path])

    component = dsl.container_component(with_page if has_page(stage) else plain)
    component.component_spec.name = stage.name.label
    return component


def _configure(task: dsl.PipelineTask, name: str, target: Target, seconds: int, *, writes: bool = False) -> None:
    """Set everything of a task but its inputs."""
    task.set_display_name(str(name))
    task.set_caching_options(False)
    for key, value in target.env().items():
        task.set_env_variable(key, value)
    if not target.volume_claim:
        return
    task.set_cpu_request(STEP["cpu_request"]).set_cpu_limit(STEP["cpu_limit"])
    task.set_memory_request(STEP["memory_request"]).set_memory_limit(STEP["memory_limit"])
    kubernetes.set_timeout(task, seconds)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.add_pod_label(task, "app.kubernetes.io/component", "peco-step")  # k8s/base/network.yaml
    kubernetes.set_image_pull_policy(task, target.pull_policy)
    kubernetes.mount_pvc(task, target.volume_claim, target.volume_path)
    for folder, secret in target.secrets(writes=writes).items():
        kubernetes.use_secret_as_volume(task, secret, folder, optional=True)
    if target.ca_configmap:
        kubernetes.use_config_map_as_volume(task, target.ca_configmap, environment.CA_FOLDER)
