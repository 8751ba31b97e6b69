"""`make pipeline-compile` and `make pipeline-submit`: the graph of a commit as a Kubeflow pipeline, written to a file or started.

    python -m pipelines.submit compile --out pipeline.yaml
    python -m pipelines.submit submit --set tokenizer.perceptual.weight=0 --sweep seed=0,1,2 --wait

Everything is checked before anything is created. Each run has a name, which its DVC experiment gets too, and a label made of the
commit and the parameters, by which a run that was submitted before is found again.

Environment:
    KFP_HOST, KFP_NAMESPACE, KFP_TOKEN, KFP_SERVICE_ACCOUNT: address of Kubeflow, namespace, token and account of the runs
        (pipelines/kfp/client.py)
    PECO_IMAGE: image of steps and jobs; pipelines/kfp/target.py lists the other variables of a target
    GIT_REMOTE: the git remote that the cluster reads (origin)
    PECO_REMOTE, PECO_REMOTE_ENDPOINT: another DVC remote than the repository's
    SWEEP_LIMIT: maximum number of points of a sweep (100)
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from peco.core.errors import PecoError
from peco.core.params import load_params, parse_params
from peco.core.stage_name import StageName
from pipelines.kfp import revision, schedule
from pipelines.kfp.client import Kubeflow, NoAnswerError, RefusedError, Version
from pipelines.kfp.follow import Followed, Step, follow
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.plan import PlannedRun, committed_parameters, free_name, graph_of, inputs, load, plan
from pipelines.kfp.revision import Revision
from pipelines.kfp.schedule import Schedule
from pipelines.workflow import overrides, variables
from pipelines.workflow.environment import IMAGE, SWEEP_LIMIT
from pipelines.workflow.graph import Graph, load_graph

# Time after which a run can be found if the answer to its creation was lost.
SETTLE_SECONDS = 2.0
# A run in one of these states may be submitted again.
UNSUCCESSFUL = ("FAILED", "CANCELED", "CANCELING")


class Submission:
    """Submits the runs of one call to an installation.

    Args:
        kubeflow: the installation, checked.
        found: the commit.
        env: environment variables.
        force: also submit runs that are running or have succeeded already.
    """

    def __init__(self, kubeflow: Kubeflow, found: Revision, env: Mapping[str, str], *, force: bool) -> None:
        self.kubeflow = kubeflow
        self.found = found
        self.env = env
        self.force = force
        self._experiment: str | None = kubeflow.find_experiment(found.repository)

    def start(self, planned: PlannedRun, pipeline: str) -> Followed:
        """Start a run and print its address, or that of an equal run that is running or has succeeded already.

        Raises:
            PecoError: Kubeflow refuses, or gives no answer.
        """
        earlier = [] if self._experiment is None else self.kubeflow.find_runs(self._experiment, planned.label)
        alive = [run for run in earlier if run.state not in UNSUCCESSFUL]
        if alive and not self.force:
            run_id, name = str(alive[0].run_id), str(alive[0].display_name)
            state = "has already succeeded" if alive[0].state == "SUCCEEDED" else "was already submitted"
            print(f"{name} {state}: {self.kubeflow.run_address(run_id)} (FORCE=1 submits it again)")
        else:
            names = {str(run.display_name) for run in alive} | self.found.experiments
            planned = dataclasses.replace(planned, name=free_name(planned.name, names))
            run_id, name = self._create(planned, pipeline), planned.name
            print(f"{name}: {self.kubeflow.run_address(run_id)}")
        return Followed(run_id, name, steps(pipeline), self.env)

    def repeat(self, planned: PlannedRun, pipeline: str, when: Schedule) -> None:
        """Start a recurring run and print its address, or that of an equal one that exists already.

        Raises:
            PecoError: Kubeflow refuses, such as a wrong cron expression, or gives no answer.
        """
        earlier = [] if self._experiment is None else self.kubeflow.find_schedules(self._experiment, planned.label)
        if earlier and not self.force:
            address = self.kubeflow.schedule_address(earlier[0].recurring_run_id)
            print(f"{earlier[0].display_name} is already scheduled: {address} (FORCE=1 schedules it again)")
            return
        arguments = arguments_of(planned)
        experiment, version = self._experiment_id(), self._version(pipeline)
        try:
            created = self.kubeflow.create_schedule(
                experiment, planned.name, self._describe(planned), version, arguments, when
            )
        except NoAnswerError as error:
            raise _unknown(error) from None
        except RefusedError as error:
            raise PecoError(f"SCHEDULE: {error}") from None
        print(f"{planned.name}, {when}: {self.kubeflow.schedule_address(created)}")

    def _create(self, planned: PlannedRun, pipeline: str) -> str:
        experiment, version = self._experiment_id(), self._version(pipeline)
        arguments = arguments_of(planned)
        try:
            return self.kubeflow.create_run(experiment, planned.name, self._describe(planned), version, arguments)
        except NoAnswerError as error:
            # It may have been created: then it is the run of this name and label.
            time.sleep(SETTLE_SECONDS)
            try:
                runs = self.kubeflow.find_runs(experiment, planned.label)
            except NoAnswerError:
                runs = []
            started = [
                str(run.run_id) for run in runs if run.display_name == planned.name and run.state not in UNSUCCESSFUL
            ]
            if not started:
                raise _unknown(error) from None
            return started[0]

    def _version(self, pipeline: str) -> Version:
        """The version of this pipeline, registered under the repository's name; it is uploaded if there is none.

        A version is named after its commit and, since image and resources are a part of it, a hash of its text.
        """
        pipeline_id = self._pipeline_id()
        name = f"{self.found.short}-{hashlib.sha256(pipeline.encode()).hexdigest()[:8]}"
        if version := self.kubeflow.find_version(pipeline_id, name):
            return version
        description = f"commit {self.found.sha} of {self.found.url}; image {IMAGE.text(self.env)}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pipeline.yaml"
            file.write_text(pipeline, encoding="utf-8")
            try:
                return self.kubeflow.upload_version(file, pipeline_id, name, description)
            except (NoAnswerError, RefusedError):  # it exists if another call was faster, or the answer was lost
                if version := self.kubeflow.find_version(pipeline_id, name):
                    return version
                raise

    def _pipeline_id(self) -> str:
        name = StageName(self.found.repository).label or "peco"
        if (found := self.kubeflow.find_pipeline(name)) is not None:
            return found
        try:
            return self.kubeflow.create_pipeline(
                name, f"The stages of dvc.yaml of {self.found.url}, a version per commit."
            )
        except (NoAnswerError, RefusedError):  # as for a version
            if (found := self.kubeflow.find_pipeline(name)) is not None:
                return found
            raise

    def _experiment_id(self) -> str:
        """The id of the experiment of this repository's runs; the first run creates it."""
        if self._experiment is None:
            try:
                self._experiment = self.kubeflow.create_experiment(self.found.repository)
            except (NoAnswerError, RefusedError):  # it exists if another call was faster, or the answer was lost
                self._experiment = self.kubeflow.find_experiment(self.found.repository)
                if self._experiment is None:
                    raise
        return self._experiment

    def _describe(self, planned: PlannedRun) -> str:
        return f"commit {self.found.sha}; {' '.join(planned.settings) or 'parameters as committed'}; {planned.label}"


def _unknown(error: PecoError) -> PecoError:
    return PecoError(
        f"{error}; it is unknown whether the run was created. Run the same command again: a run that exists is not created twice"
    )


def arguments_of(planned: PlannedRun) -> dict[str, Any]:
    """The parameters of the pipeline."""
    return {**dataclasses.asdict(planned.parameters), "experiment": planned.name}


def steps(pipeline: str) -> dict[str, Step]:
    """The steps of a compiled pipeline by the names of their tasks."""
    ir, *_ = yaml.load_all(pipeline, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    # Kubeflow names Argo's templates after what they set: the pod's one label here, and retries.
    templates = {True: "metadata-0-1-retry-system-container-impl", False: "metadata-0-1-system-container-impl"}
    return {
        key: Step(task["taskInfo"]["name"], templates["retryPolicy" in task])
        for key, task in ir["root"]["dag"]["tasks"].items()
    }


def compiled_once(runs: Sequence[PlannedRun], env: Mapping[str, str], defaults: Parameters) -> list[str]:
    """The compiled pipeline of each run; runs with the same graph share one."""
    compilations: list[tuple[Graph, str]] = []
    for planned in runs:
        if not any(graph == planned.graph for graph, _ in compilations):
            compilations.append((planned.graph, compiled(planned.graph, env, defaults)))
    return [next(pipeline for graph, pipeline in compilations if graph == planned.graph) for planned in runs]


def compiled(graph: Graph, env: Mapping[str, str], defaults: Parameters | None = None) -> str:
    """The pipeline of a graph as Kubeflow's YAML, for the target that the environment describes (pipelines/kfp/target.py).

    Raises:
        PecoError: a value in `meta:` or in the environment is wrong.
    """
    from pipelines.kfp import compile as compiler
    from pipelines.kfp.target import Target

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.compile(path, graph, Target.from_env(env), defaults or compiler.NOTHING)
        return path.read_text(encoding="utf-8")


def compile_pipeline(out: Path, rev: str | None, settings: Sequence[str], env: Mapping[str, str]) -> None:
    """Write the pipeline of a commit, or of the working tree if `rev` is None.

    Raises:
        PecoError: a parameter or setting is wrong, or the file can't be written.
    """
    if rev is None and not settings:
        load_params()
        graph = load_graph()
    else:
        sha = None if rev is None else revision.commit(rev)
        params, stages = (_file(sha, name) for name in ("params.yaml", "dvc.yaml"))
        [point] = overrides.points(settings, [], limit=1)
        changed = overrides.apply(params.decode(), point)
        parse_params(load(changed.encode(), "params.yaml" if rev is None else f"params.yaml of {rev}"))
        graph = graph_of(stages, changed)
    try:
        out.write_text(compiled(graph, env), encoding="utf-8")
    except OSError as error:
        raise PecoError(f"{out}: can't be written ({error.strerror})") from None
    print(f"{out}: {len(graph.stages)} stages")


def _file(sha: str | None, name: str) -> bytes:
    if sha is not None:
        return revision.read(sha, name)
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise PecoError(f"{name}: can't be read ({error.strerror}); run this from the root of the repository") from None


def submit(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Submit the runs of the command line, and follow them with `--wait`; returns the exit status.

    Raises:
        PecoError: something is wrong. The runs whose addresses were printed have been created, and no others.
    """
    when = schedule.parse(arguments.schedule) if arguments.schedule else None
    if when and arguments.wait:
        raise PecoError("WAIT=1: a recurring run has no end to wait for; leave out WAIT or SCHEDULE")
    if not IMAGE.is_set(env):
        raise PecoError(
            f"{IMAGE.name}: not set; name the image of steps and jobs (docs/cluster.md describes how to build it)"
        )
    kubeflow = Kubeflow(env)
    found = revision.published(arguments.rev, env.get("GIT_REMOTE") or "origin")
    planned = plan(found, arguments.set, arguments.sweep, SWEEP_LIMIT.integer(env, low=1))
    revision.check_data(found.sha, dict.fromkeys(path for run in planned for path in inputs(run.graph)), env)
    kubeflow.check()
    pipelines = compiled_once(planned, env, committed_parameters(found))
    submission = Submission(kubeflow, found, env, force=arguments.force)
    if when:
        for run, pipeline in zip(planned, pipelines, strict=True):
            submission.repeat(run, pipeline, when)
        return 0
    runs = [submission.start(run, pipeline) for run, pipeline in zip(planned, pipelines, strict=True)]
    if not arguments.wait:
        return 0
    try:
        status = follow(kubeflow, runs)
    except KeyboardInterrupt:
        addresses = " ".join(kubeflow.run_address(run.run_id) for run in runs if not run.ended)
        print(f"\nNo longer followed, but still running: {addresses}", file=sys.stderr)
        print("The same command follows again; to stop a run, use Terminate on its page.", file=sys.stderr)
        return 130
    if status == 0:
        print(f"`dvc exp pull {found.remote} {' '.join(run.name for run in runs)}` fetches the results.")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.submit", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("compile", help="write the pipeline to a file")
    writing.add_argument("--out", type=Path, default=Path("pipeline.yaml"))
    running = commands.add_parser("submit", help="start the pipeline on Kubeflow")
    for command, default in ((writing, "the working tree"), (running, "HEAD, with nothing uncommitted")):
        command.add_argument("--rev", help=f"the commit whose dvc.yaml and params.yaml are used; default: {default}")
        command.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters to change")
    running.add_argument(
        "--sweep", nargs="*", default=[], metavar="KEY=VALUE,VALUE", help="a run for each point of the grid"
    )
    running.add_argument("--schedule", help="start repeatedly: cron ('0 3 * * *') or an interval (30m, 6h, 1d)")
    running.add_argument("--wait", action="store_true", help="follow until the end; status 1 if a run fails")
    running.add_argument(
        "--force", action="store_true", help="also submit runs that are running or have succeeded already"
    )
    arguments = parser.parse_args(argv)
    try:
        variables.require_known()
        if arguments.command == "compile":
            compile_pipeline(arguments.out, arguments.rev, arguments.set, os.environ)
            return 0
        return submit(arguments, os.environ)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; the same command resumes, and no run is submitted twice", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
