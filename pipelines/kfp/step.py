"""One step of the Kubeflow pipeline, in its pod: run one stage of a commit through DVC, or collect the experiment.

A step fetches the stage's inputs, lets DVC compute the results or take them from the run-cache, pushes them, and leaves the stage's
lock entry in the folder of the run (pipelines/kfp/run_folder.py). It works in a workspace (pipelines/kfp/workspace.py lists its
variables). It can be killed at any moment: the retry resumes in the same workspace.

Exit status, after a line `error: …`: 0; 2; 75 if the cluster ended the stage's job or couldn't be reached, so that the run may be
retried; 128 + the signal if it was stopped.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil  # type: ignore[import-untyped]

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.kfp import workspace
from pipelines.kfp.page import headlines, numbers, page
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.run_folder import Result, RunFolder
from pipelines.kfp.workspace import Workspace
from pipelines.workflow import failures
from pipelines.workflow.git import experiment_ref, git, without_secrets
from pipelines.workflow.graph import load_graph
from pipelines.workflow.processes import Stopped, run_dvc

EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
IDENTITY = {"NAME": "peco", "EMAIL": "peco@localhost"}  # author of experiments, unless git's variables name another
# DVC's hints for a person at a terminal.
NOISE = re.compile(r"\s*$|To (track|enable) |\t(git add|dvc config) |Use `dvc push`|(Generat|Updat)ing lock file")
# Kubernetes keeps the text of this file as the message of the container that ended; elsewhere there is none.
TERMINATION_LOG = Path("/dev/termination-log")
MESSAGE_LENGTH = 2000  # characters; Kubernetes keeps 4096 bytes


class MetricsArtifact(Protocol):
    """kfp's artifact for the numbers that Kubeflow shows."""

    def log_metric(self, metric: str, value: float) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """The result of a step, with the seconds that the stage's command took, and the step before and after it."""

    stage: str
    computed: bool
    seconds: float
    before: float
    after: float

    def __str__(self) -> str:
        result = f"computed in {self.seconds:.1f} s" if self.computed else "taken from the run-cache"
        return f"step {self.stage}: {result}; overhead {self.before:.1f} s before, {self.after:.1f} s after"

    @classmethod
    def parse(cls, line: str) -> Outcome | None:
        """The outcome in a line of a step's log, None if it has none."""
        pattern = r"step (\S+): (?:computed in ([\d.]+) s|taken .*); overhead ([\d.]+) s before, ([\d.]+) s after\s*"
        if match := re.fullmatch(pattern, line):
            return cls(match[1], match[2] is not None, float(match[2] or 0), float(match[3]), float(match[4]))
        return None


class StageFailedError(PecoError):
    """The stage failed; its launcher has printed why.

    Attributes:
        reason: the launcher's line, or this error's own if it printed none.
        status: of the step.
    """

    def __init__(self, reason: str, status: int) -> None:
        advice = "Retry the run" if status == os.EX_TEMPFAIL else "Fix it and retry"
        super().__init__(f"not finished; see the reason above. {advice}: the stage resumes")
        self.reason = reason or str(self)
        self.status = status


def main(run: str, stage: str, *, parameters: Parameters | None = None, page_path: str = "") -> None:
    """Run one stage.

    Args:
        run: the id of the run.
        stage: its name in dvc.yaml.
        parameters: those of the run, for a stage that depends on no other: it keeps them for the stages after it.
        page_path: where to write the stage's HTML page; empty for none.

    Raises:
        SystemExit: it failed or was stopped.
    """
    # The start of Python counts too.
    begun = psutil.Process().create_time()
    with _ending(run, stage), workspace.git_credentials(), _without_evaluation(run, stage):
        folder = RunFolder(run)
        if parameters is not None:
            folder.write_parameters(parameters)
        with workspace.prepared(stage, folder.parameters(), folder) as prepared:
            watch = _Watch(stage)
            _fetch(prepared)
            if run_dvc(["repro", "--single-item", "--pull", stage], cwd=prepared.path, show=watch):
                raise watch.failure()
            entry = prepared.entry()
            reproduced = time.time()
            if reason := _transfer(["push", "--run-cache", stage], prepared.path):
                raise PecoError(
                    f"finished, but its results can't be pushed ({reason}); fix it and retry: it only pushes"
                )
            scalars = numbers(prepared.stage, prepared.path)
            if page_path:
                _write(page_path, page(prepared.stage, prepared.path, scalars, prepared.parameters))
            folder.write_result(stage, Result(entry, scalars))
        started = watch.started or reproduced
        ended = max(started, watch.ended or reproduced)
        outcome = Outcome(stage, watch.started is not None, ended - started, started - begun, time.time() - ended)
        print(outcome, flush=True)


def collect(run: str, *, metrics: MetricsArtifact, commit: str) -> None:
    """Make a DVC experiment of the run: a commit on top of its revision with params.yaml and dvc.lock, pushed under its ref.

    Args:
        run: the id of the run.
        metrics: receives the numbers of all stages by which runs are compared.
        commit: path of a file to which the commit's hash is written.

    Raises:
        SystemExit: it failed or was stopped.
    """
    with _ending(run, "collect"), workspace.git_credentials(), tempfile.TemporaryDirectory() as temporary:
        root, folder = Path(temporary), RunFolder(run)
        parameters = folder.parameters()
        revision, experiment = parameters.revision, parameters.experiment
        check_name(experiment)
        workspace.checkout(parameters.repository, revision, root)
        workspace.write_params(parameters, root)
        results = {stage: folder.result(stage) for stage in load_graph(root).stages}
        if failed := [f"{stage} failed: {result.failed}" for stage, result in results.items() if result.failed]:
            raise PecoError(
                f"{'; '.join(failed)}; the report shows it. Fix it and submit the run again: it computes what is missing"
            )
        lock = workspace.lock_text({stage: result.entry for stage, result in results.items()})
        (root / "dvc.lock").write_text(lock, encoding="utf-8")
        git("add", "--force", "--", "params.yaml", "dvc.lock", cwd=root)
        tree = git("write-tree", cwd=root).strip()
        names = {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER") for field, value in IDENTITY.items()}
        env = {name: os.environ.get(name) or value for name, value in names.items()}
        sha = git("commit-tree", tree, "-p", revision, "-m", f"Experiment {experiment}", cwd=root, env=env).strip()
        sha = _publish(root, parameters.repository, experiment_ref(revision, experiment), sha, tree)
        for name, value in headlines({stage: result.numbers for stage, result in results.items()}).items():
            metrics.log_metric(name, value)
        _write(commit, sha)
        print(f"experiment {experiment}: {sha}", flush=True)


def check_name(experiment: str) -> None:
    """Raise PecoError for a name of an experiment that git or DVC would refuse."""
    if not EXPERIMENT.fullmatch(experiment) or experiment.endswith(".lock"):
        raise PecoError(f"experiment {experiment!r} is not allowed; use letters, digits, `-`, `_` and `.`")


def _publish(root: Path, repository: str, ref: str, sha: str, tree: str) -> str:
    """Push the commit under the ref and return it, or the one with the same content that an earlier try has pushed."""
    try:
        git("push", "--quiet", "--", repository, f"{sha}:{ref}", cwd=root)
        return sha
    except PecoError as error:
        refused = error
    try:
        git("fetch", "--quiet", "--depth=1", "--", repository, ref, cwd=root)
    except PecoError:
        raise PecoError(
            f"the experiment can't be pushed to {without_secrets(repository)} ({refused}); check the write "
            "credentials of this step and retry"
        ) from None
    if git("rev-parse", "FETCH_HEAD^{tree}", cwd=root).strip() != tree:
        raise PecoError(f"{ref.rpartition('/')[2]} is already another experiment; submit again under another name")
    return git("rev-parse", "FETCH_HEAD", cwd=root).strip()


@contextlib.contextmanager
def _ending(run: str, name: str) -> Iterator[None]:
    """Turn errors and stops into one line and an exit status."""

    def end(number: signal.Signals) -> None:
        if not stop.second:
            raise Stopped(number)

    stop = StopSignals(end)
    print(f"step {name}", flush=True)
    try:
        with stop:
            yield
    except (PecoError, OSError) as error:  # OSError: a volume that is full, or belongs to another user
        print(f"error: {name}: {error}", file=sys.stderr, flush=True)
        _keep_reason(run, name, error.reason if isinstance(error, StageFailedError) else str(error))
        sys.exit(error.status if isinstance(error, Stopped | StageFailedError) else 2)


@contextlib.contextmanager
def _without_evaluation(run: str, stage: str) -> Iterator[None]:
    """Let the run go on without an evaluation that failed: the others and the report are made, and `collect` fails the run.

    A report that ignores failed tasks, as Kubeflow offers it, would start after a failure of anything else too. An evaluation whose
    job the cluster ended fails its step: the run can be retried.
    """
    try:
        yield
    except StageFailedError as error:
        if not failures.is_evaluation(stage) or error.status == os.EX_TEMPFAIL:
            raise
        print(
            f"error: {stage}: {error.reason}; the run continues without it, and fails at its end",
            file=sys.stderr,
            flush=True,
        )
        _keep_reason(run, stage, error.reason)
        RunFolder(run).write_result(stage, Result({}, {}, error.reason))


def _keep_reason(run: str, name: str, reason: str) -> None:
    """Leave why the step failed where it can be read without its log: the pod's termination message, the folder of the run."""
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(reason[:MESSAGE_LENGTH], encoding="utf-8")
    with contextlib.suppress(PecoError, OSError):
        RunFolder(run).write_error(name, reason)


def _fetch(prepared: Workspace) -> None:
    """Fetch the stage's inputs into the workspace, and again those that a killed step left incomplete."""
    targets = prepared.inputs()
    if targets and (reason := _transfer(["pull", "--force", *targets], prepared.path)):
        raise PecoError(f"its inputs ({', '.join(targets)}) can't be fetched ({reason}); fix it and retry")


def _transfer(arguments: list[str], folder: Path) -> str:
    """Run DVC and return why it failed: its first error, which later ones sum up; empty if it did not fail."""
    errors: list[str] = []

    def show(line: str) -> None:
        if line.startswith("ERROR: "):
            errors.append(line.removeprefix("ERROR: ").strip())
        _show(line)

    status = run_dvc(arguments, cwd=folder, show=show)
    return next(iter(errors), f"DVC ended with status {status}") if status else ""


class _Watch:
    """Callback for DVC's lines: shows them, records when the stage's command started and ended, and why it failed."""

    def __init__(self, stage: str) -> None:
        self.started: float | None = None
        self.ended: float | None = None
        self._stage = stage
        self._start = f"Running stage '{stage}':"
        self._reason = ""
        self._status = 2

    def __call__(self, line: str) -> None:
        if line.startswith(self._start):
            self.started = time.time()
        elif not (NOISE.match(line) or line.startswith("> ")):
            # The launcher writes its last line when the stage has ended.
            self.ended = time.time()
        if line.startswith("error: "):  # a refusal doesn't name the stage
            self._reason = line.removeprefix("error: ").removeprefix(f"{self._stage}: ").strip()
        # DVC itself ends with 255 whatever the launcher's status.
        if (match := re.search(r"failed to run: .*, exited with (\d+)", line)) and int(match[1]) == os.EX_TEMPFAIL:
            self._status = os.EX_TEMPFAIL
        _show(line)

    def failure(self) -> StageFailedError:
        """The error for a `dvc repro` that failed."""
        return StageFailedError(self._reason, self._status)


def _show(line: str) -> None:
    if not NOISE.match(line):
        print(line, end="", flush=True)


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
