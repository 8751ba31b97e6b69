"""One step of the Kubeflow pipeline, in its pod: run one stage of a commit through DVC, or collect the experiment.

A step fetches the stage's inputs, lets DVC compute the results or take them from the run-cache, pushes them, and outputs the
stage's lock entry. It works in a workspace (pipelines/kfp/workspace.py lists its variables). It can be killed at any moment: the
retry resumes in the same workspace. Exit status: 0, 2 after a line `error: …`, 128 + the signal if it was stopped.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import html
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from peco.report.charts import line_chart
from peco.report.style import STYLE
from pipelines.kfp import workspace
from pipelines.kfp.workspace import Entry, Workspace
from pipelines.workflow.git import git, without_secrets
from pipelines.workflow.graph import leaves, load_graph
from pipelines.workflow.processes import Stopped, run_dvc

EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
IDENTITY = {"NAME": "peco", "EMAIL": "peco@localhost"}  # author of experiments, unless git's variables name another
# DVC's hints for a person at a terminal.
NOISE = re.compile(r"\s*$|To (track|enable) |\t(git add|dvc config) |Use `dvc push`|(Generat|Updat)ing lock file")


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


def main(
    stage: str,
    repository: str,
    revision: str,
    params: str,
    locks: list[str],
    *,
    metrics: MetricsArtifact,
    page: str,
    lock: str,
    parameters: str,
    computed: str,
) -> None:
    """Run one stage. The last five are its outputs: an object, and paths of files to write.

    Args:
        stage: its name in dvc.yaml.
        repository: address of the git repository.
        revision: full hash of a commit in it.
        params: base64 of params.yaml.
        locks: lock entries of the stages that it depends on, as their steps output them.
        metrics: receives the scalar metrics.
        page: HTML: the report, or charts and numbers of the stage.
        lock: the stage's lock entry, for the steps after it.
        parameters: JSON of the stage's own parameters.
        computed: JSON: true if the stage ran, false if its results come from an earlier run.

    Raises:
        SystemExit: it failed or was stopped.
    """
    # The start of Python counts too.
    begun = psutil.Process().create_time()
    with _ending(stage), workspace.git_credentials():
        with workspace.prepared(stage, repository, revision, params, decode_entries(locks)) as prepared:
            watch = _Watch(stage)
            _fetch(prepared)
            if run_dvc(["repro", "--single-item", "--pull", stage], cwd=prepared.path, show=watch):
                raise PecoError("not finished; see the reason above. Fix it and retry: the stage resumes")
            entry = prepared.entry()
            reproduced = time.time()
            if run_dvc(["push", "--run-cache", stage], cwd=prepared.path, show=_show):
                raise PecoError(
                    "finished, but its results can't be pushed; see the reason above. Fix it and retry: it only pushes"
                )
            numbers = _numbers(prepared)
            for name, value in numbers.items():
                metrics.log_metric(name, value)
            _write(page, _page(prepared, numbers))
            _write(parameters, json.dumps(_parameters(prepared.parameters)))
            _write(computed, json.dumps(watch.started is not None))
            _write(lock, encode_entry(stage, entry))
        started = watch.started or reproduced
        ended = max(started, watch.ended or reproduced)
        outcome = Outcome(stage, watch.started is not None, ended - started, started - begun, time.time() - ended)
        print(outcome, flush=True)


def collect(repository: str, revision: str, params: str, locks: list[str], experiment: str, *, commit: str) -> None:
    """Make a DVC experiment of the run: a commit on top of `revision` with params.yaml and dvc.lock, pushed under its ref.

    Args:
        repository, revision, params: as for `main`.
        locks: the lock entries of all stages.
        experiment: its name.
        commit: path of a file to which the commit's hash is written.

    Raises:
        SystemExit: it failed or was stopped.
    """
    with _ending("collect"), workspace.git_credentials(), tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        check_name(experiment)
        text, entries = workspace.decode_params(params), decode_entries(locks)
        workspace.checkout(repository, revision, root)
        (root / "params.yaml").write_bytes(text)
        order = list(load_graph(root).stages)
        if missing := sorted(set(order) ^ set(entries)):
            raise PecoError(f"the steps' stages differ from those of dvc.yaml at {revision[:7]}: {', '.join(missing)}")
        lock = workspace.lock_text({name: entries[name] for name in order})
        (root / "dvc.lock").write_text(lock, encoding="utf-8")
        git("add", "--force", "--", "params.yaml", "dvc.lock", cwd=root)
        tree = git("write-tree", cwd=root).strip()
        names = {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER") for field, value in IDENTITY.items()}
        env = {name: os.environ.get(name) or value for name, value in names.items()}
        sha = git("commit-tree", tree, "-p", revision, "-m", f"Experiment {experiment}", cwd=root, env=env).strip()
        sha = _publish(root, repository, f"refs/exps/{revision[:2]}/{revision[2:]}/{experiment}", sha, tree)
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


def encode_entry(stage: str, entry: Entry) -> str:
    """A lock entry as a pipeline parameter: compressed, since one command line holds all of them."""
    return base64.b64encode(zlib.compress(json.dumps([stage, entry]).encode(), 9)).decode()


def decode_entries(texts: list[str]) -> dict[str, Entry]:
    """Lock entries by stage.

    Raises:
        PecoError: one doesn't come from `encode_entry`.
    """
    try:
        pairs = [json.loads(zlib.decompress(base64.b64decode(text, validate=True))) for text in texts]
        return {stage: dict(entry) for stage, entry in pairs}
    except (binascii.Error, zlib.error, ValueError, TypeError):
        raise PecoError("the parameter `locks` holds no lock entries of earlier steps; submit the run again") from None


@contextlib.contextmanager
def _ending(name: str) -> Iterator[None]:
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
        sys.exit(error.status if isinstance(error, Stopped) else 2)


def _fetch(prepared: Workspace) -> None:
    """Fetch the stage's inputs into the workspace, and again those that a killed step left incomplete."""
    targets = prepared.inputs()
    if targets and run_dvc(["pull", "--force", *targets], cwd=prepared.path, show=_show):
        raise PecoError(f"its inputs ({', '.join(targets)}) can't be fetched; see the reason above. Fix it and retry")


class _Watch:
    """Callback for DVC's lines: shows them, and records when the stage's command started and ended."""

    def __init__(self, stage: str) -> None:
        self.started: float | None = None
        self.ended: float | None = None
        self._start = f"Running stage '{stage}':"

    def __call__(self, line: str) -> None:
        if line.startswith(self._start):
            self.started = time.time()
        elif not (NOISE.match(line) or line.startswith("> ")):
            # The launcher writes its last line when the stage has ended.
            self.ended = time.time()
        _show(line)


def _show(line: str) -> None:
    if not NOISE.match(line):
        print(line, end="", flush=True)


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _numbers(prepared: Workspace) -> dict[str, float]:
    """Scalars of the stage's metrics; a nested one is named `a.b`."""
    found: dict[str, Any] = {}
    for out in prepared.stage.outs:
        if out.endswith(".json"):
            found |= leaves(json.loads((prepared.path / out).read_text(encoding="utf-8")))
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters by their dotted keys. Kubeflow has no null, neither as a parameter nor in one."""
    return {key: "null" if value is None else value for key, value in leaves(values).items()}


def _page(prepared: Workspace, numbers: dict[str, float]) -> str:
    """The HTML page that the stage writes, or else one with its curves and numbers."""
    for out in prepared.stage.outs:
        if out.endswith(".html"):
            return (prepared.path / out).read_text(encoding="utf-8")
    figures = []
    for file in sorted(file for out in prepared.stage.outs for file in (prepared.path / out).glob("*.tsv")):
        header, *rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        points = [(float(row[0]), float(row[1])) for row in rows]
        if any(math.isfinite(y) for _, y in points):
            chart = line_chart(points, label=f"{prepared.stage.name}: {header[1]}", x_label=header[0])
            figures.append(f"<figure><figcaption><b>{html.escape(header[1])}</b></figcaption>{chart}</figure>")
    rows_ = [f"<tr><th>{html.escape(name)}</th><td>{value:.6g}</td></tr>" for name, value in numbers.items()]
    title = html.escape(prepared.stage.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f'<body><h1>{title}</h1><div class="grid">{"".join(figures)}</div><table>{"".join(rows_)}</table></body></html>\n'
    )
