"""`make pipeline-compile` and `make pipeline-submit`: the graph of a commit as a Kubeflow pipeline, written to a file or started.

    python -m pipelines.submit compile --out pipeline.yaml
    python -m pipelines.submit submit --set tokenizer.perceptual.weight=0 --sweep seed=0,1,2 --wait

Everything is checked before anything is created. Each run has a name, which is that of the DVC experiment it becomes, and a label
made of the commit and the parameters, by which a run that was submitted before is found again.

Environment:
    KFP_HOST, KFP_NAMESPACE, KFP_TOKEN, KFP_SERVICE_ACCOUNT: where runs are started, and as whom
        (see pipelines/kfp/client.py)
    PECO_IMAGE: image of steps and jobs; pipelines/kfp/compile.py lists what else says where they run
    GIT_REMOTE: the git remote that the cluster reads (origin)
    PECO_REMOTE, PECO_REMOTE_ENDPOINT: the DVC remote, where it is another one than the repository's
    SWEEP_LIMIT: points that a sweep may have (100)
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
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
from pipelines.kfp import revision, schedule
from pipelines.kfp.client import Kubeflow, NoAnswerError, RefusedError
from pipelines.kfp.follow import Followed, follow
from pipelines.kfp.plan import Point, free_name, graph_of, inputs, load, plan
from pipelines.kfp.revision import Revision
from pipelines.kfp.schedule import Schedule
from pipelines.workflow import overrides
from pipelines.workflow.graph import Graph, load_graph

SETTLE_SECONDS = 2.0  # after which a run whose answer was lost can be found
OVER = ("FAILED", "CANCELED", "CANCELING")  # such a run may be submitted again


class Submission:
    """The runs of one call, and the installation they go to.

    Args:
        kubeflow: the installation, checked.
        found: the commit.
        force: whether to submit what runs or has succeeded already.
    """

    def __init__(self, kubeflow: Kubeflow, found: Revision, *, force: bool) -> None:
        self.kubeflow = kubeflow
        self.found = found
        self.force = force
        self._experiment: str | None = kubeflow.find_experiment(found.repository)

    def start(self, point: Point, spec: Mapping[str, Any]) -> Followed:
        """Start a run and print its address; one that runs or has succeeded already is named instead.

        Raises:
            PecoError: Kubeflow refuses, or gives no answer.
        """
        earlier = [] if self._experiment is None else self.kubeflow.find_runs(self._experiment, point.label)
        alive = [run for run in earlier if run.state not in OVER]
        if alive and not self.force:
            run_id, name = str(alive[0].run_id), str(alive[0].display_name)
            state = "has succeeded" if alive[0].state == "SUCCEEDED" else "was submitted"
            print(f"{name} {state} already: {self.kubeflow.run_address(run_id)} (FORCE=1 submits it again)")
        else:
            names = {str(run.display_name) for run in alive} | self.found.experiments
            point = dataclasses.replace(point, name=free_name(point.name, names))
            run_id, name = self._create(point, spec), point.name
            print(f"{name}: {self.kubeflow.run_address(run_id)}")
        return Followed(run_id, name, stage_names(spec))

    def repeat(self, point: Point, spec: Mapping[str, Any], when: Schedule) -> None:
        """Start a recurring run and print its address; one that is there already is named instead.

        Raises:
            PecoError: Kubeflow refuses, or gives no answer.
        """
        earlier = [] if self._experiment is None else self.kubeflow.find_schedules(self._experiment, point.label)
        if earlier and not self.force:
            address = self.kubeflow.schedule_address(earlier[0].recurring_run_id)
            print(f"{earlier[0].display_name} is scheduled already: {address} (FORCE=1 schedules it again)")
            return
        arguments = arguments_of(self.found, point)
        experiment = self._experiment_id()
        try:
            made = self.kubeflow.create_schedule(experiment, point.name, self._describe(point), spec, arguments, when)
        except NoAnswerError as error:
            raise _unsure(error) from None
        print(f"{point.name}, {when}: {self.kubeflow.schedule_address(made)}")

    def _create(self, point: Point, spec: Mapping[str, Any]) -> str:
        experiment = self._experiment_id()
        arguments = arguments_of(self.found, point)
        try:
            return self.kubeflow.create_run(experiment, point.name, self._describe(point), spec, arguments)
        except NoAnswerError as error:
            # It may have been started all the same: then it is the run of this name and label.
            time.sleep(SETTLE_SECONDS)
            try:
                runs = self.kubeflow.find_runs(experiment, point.label)
            except NoAnswerError:
                runs = []
            started = [str(run.run_id) for run in runs if run.display_name == point.name and run.state not in OVER]
            if not started:
                raise _unsure(error) from None
            return started[0]

    def _experiment_id(self) -> str:
        """The experiment that all runs of this repository belong to; the first run creates it."""
        if self._experiment is None:
            try:
                self._experiment = self.kubeflow.create_experiment(self.found.repository)
            except (NoAnswerError, RefusedError):  # it is there if another call was quicker, or the answer was lost
                self._experiment = self.kubeflow.find_experiment(self.found.repository)
                if self._experiment is None:
                    raise
        return self._experiment

    def _describe(self, point: Point) -> str:
        return f"commit {self.found.sha}; {' '.join(point.settings) or 'parameters as committed'}; {point.label}"


def _unsure(error: PecoError) -> PecoError:
    return PecoError(f"{error}; run the same command again: what was started all the same is found, not started twice")


def arguments_of(found: Revision, point: Point) -> dict[str, str]:
    """The parameters of the pipeline."""
    return {
        "repository": found.url,
        "revision": found.sha,
        "params": base64.b64encode(point.params.encode()).decode(),
        "experiment": point.name,
    }


def stage_names(spec: Mapping[str, Any]) -> dict[str, str]:
    """The stage's name by the name of its task, and by itself: Kubeflow shows either."""
    tasks = spec.get("pipeline_spec", spec)["root"]["dag"]["tasks"]
    names = {key: task["taskInfo"]["name"] for key, task in tasks.items()}
    return {**names, **{name: name for name in names.values()}}


def specs(points: Sequence[Point], env: Mapping[str, str]) -> list[dict[str, Any]]:
    """The compiled pipeline of each point; parameters that change nothing in the graph share one."""
    made: list[tuple[Graph, dict[str, Any]]] = []
    for point in points:
        if not any(graph == point.graph for graph, _ in made):
            made.append((point.graph, load_spec(compiled(point.graph, env))))
    return [next(spec for graph, spec in made if graph == point.graph) for point in points]


def compiled(graph: Graph, env: Mapping[str, str]) -> str:
    """The pipeline of a graph as Kubeflow's YAML, for the cluster that PECO_IMAGE and others describe (`kubeflow.Target`).

    Raises:
        PecoError: the graph or the environment asks for what can't be.
    """
    from pipelines.kfp import compile as kubeflow

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        kubeflow.compile(path, graph, kubeflow.Target.from_env(env))
        return path.read_text(encoding="utf-8")


def load_spec(text: str) -> dict[str, Any]:
    """The YAML as the API takes it: what it says of Kubernetes stands in a document of its own."""
    pipeline, *platform = yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {"pipeline_spec": pipeline, "platform_spec": platform[0]} if platform else dict(pipeline)


def compile_pipeline(out: Path, rev: str | None, settings: Sequence[str], env: Mapping[str, str]) -> None:
    """Write the pipeline of a commit, or without `rev` that of the working tree.

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
    """Submit what the command line asks for, and follow it if asked to; returns the exit status.

    Raises:
        PecoError: something is wrong; nothing was created unless its address was printed.
    """
    when = schedule.parse(arguments.schedule) if arguments.schedule else None
    if when and arguments.wait:
        raise PecoError("WAIT=1: a recurring run has no end to wait for; leave out WAIT or SCHEDULE")
    if not env.get("PECO_IMAGE"):
        raise PecoError("PECO_IMAGE: not set; name the image of steps and jobs (docs/cluster.md says how it is built)")
    kubeflow = Kubeflow(env)
    found = revision.published(arguments.rev, env.get("GIT_REMOTE") or "origin")
    points = plan(found, arguments.set, arguments.sweep, _limit(env))
    revision.check_data(found.sha, dict.fromkeys(path for point in points for path in inputs(point.graph)), env)
    kubeflow.check()
    pipelines = specs(points, env)
    submission = Submission(kubeflow, found, force=arguments.force)
    if when:
        for point, spec in zip(points, pipelines, strict=True):
            submission.repeat(point, spec, when)
        return 0
    runs = [submission.start(point, spec) for point, spec in zip(points, pipelines, strict=True)]
    if not arguments.wait:
        return 0
    try:
        status = follow(kubeflow, runs)
    except KeyboardInterrupt:
        addresses = " ".join(kubeflow.run_address(run.run_id) for run in runs if not run.ended)
        print(f"\nNot followed any more, but running on: {addresses}", file=sys.stderr)
        print("The same command follows again; a run is stopped on its page (Terminate).", file=sys.stderr)
        return 130
    if status == 0:
        print(f"`dvc exp pull {found.remote} {' '.join(run.name for run in runs)}` brings the results here.")
    return status


def _limit(env: Mapping[str, str]) -> int:
    text = env.get("SWEEP_LIMIT") or "100"
    if not text.isdecimal():
        raise PecoError(f"SWEEP_LIMIT={text}: expected a whole number")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.submit", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("compile", help="write the pipeline to a file")
    writing.add_argument("--out", type=Path, default=Path("pipeline.yaml"))
    running = commands.add_parser("submit", help="start the pipeline on Kubeflow")
    for command, default in ((writing, "the working tree"), (running, "HEAD, with nothing uncommitted")):
        command.add_argument("--rev", help=f"the commit whose dvc.yaml and params.yaml are taken; default: {default}")
        command.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters to change")
    running.add_argument(
        "--sweep", nargs="*", default=[], metavar="KEY=VALUE,VALUE", help="a run for each point of the grid"
    )
    running.add_argument("--schedule", help="start again and again: cron ('0 3 * * *') or an interval (30m, 6h, 1d)")
    running.add_argument("--wait", action="store_true", help="follow until the end; status 1 if a run fails")
    running.add_argument("--force", action="store_true", help="submit again what runs or has succeeded already")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "compile":
            compile_pipeline(arguments.out, arguments.rev, arguments.set, os.environ)
            return 0
        return submit(arguments, os.environ)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "error: interrupted; the same command goes on, what was submitted is not submitted twice", file=sys.stderr
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
