"""The functions that Kubeflow's tasks run by kfp's executor, and the command that starts them in a pod.

    python -m pipelines.kfp.components --executor_input INPUT --function_to_execute FUNCTION

In a pod, tasks without inputs have a command instead of `run_stage` (pipelines/kfp/stage_command.py). On this machine (`make
pipeline-local`) kfp writes the text of a function to a file of its own: so each can use no other name of this module. The stage's
page is left out of the tasks of stages without one (pipelines/kfp/compile.py); it is None there.
"""

# kfp reads the annotations of components at run time: no `from __future__ import annotations` here.

import sys

from kfp import dsl
from kfp.dsl import executor_main


def run_stage(run: str, stage: str, page: dsl.Output[dsl.HTML]) -> None:
    from pipelines.kfp import step

    step.main(run, stage, page_path=page.path if page else "")


def begin(
    run: str,
    stage: str,
    repository: str,
    revision: str,
    preset: str,
    seed: int,
    overrides: str,
    experiment: str,
    page: dsl.Output[dsl.HTML],
) -> None:
    from pipelines.kfp import step
    from pipelines.kfp.parameters import Parameters

    parameters = Parameters(repository, revision, preset, seed, overrides, experiment)
    step.main(run, stage, parameters=parameters, page_path=page.path if page else "")


def collect(
    run: str,
    metrics: dsl.Output[dsl.Metrics],
    commit: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> None:
    from pipelines.kfp import step

    step.collect(run, metrics=metrics, commit=commit)


def main() -> None:
    """Set up the pod's environment and run the function that the arguments name."""
    from peco.core.errors import PecoError
    from pipelines.kfp import pod

    try:
        pod.enter()
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.argv += ["--component_module_path", __file__]
    executor_main.executor_main()


if __name__ == "__main__":
    main()
