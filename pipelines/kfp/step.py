"""What one step of the Kubeflow pipeline does in its pod: run one stage of a commit through DVC, or collect the experiment.

A step fetches what the stage needs, lets DVC take the results from the run-cache or compute them, pushes them, and hands on the
stage's lock entry. `pipelines.kfp.workspace` says where it does so and which variables it reads. It can be killed at any moment: its
retry goes on in the same workspace. Status: 0, 2 after a line `error: …`, 128 + the signal where it was stopped.
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
from peco.report.template import STYLE
from pipelines.kfp import workspace
from pipelines.kfp.workspace import Entry, Workspace
from pipelines.workflow.git import git, without_secrets
from pipelines.workflow.graph import load_graph
from pipelines.workflow.processes import Stopped, run_dvc

EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
# What DVC says to a person at a terminal.
NOISE = re.compile(r"\s*$|To (track|enable) |\t(git add|dvc config) |Use `dvc push`|(Generat|Updat)ing lock file")


class Metrics(Protocol):
    """What Kubeflow shows as numbers."""

    def log_metric(self, metric: str, value: float) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a step went. Seconds are those of the stage's command, and of the step before and after it."""

    stage: str
    computed: bool
    seconds: float
    before: float
    after: float

    def __str__(self) -> str:
        how = f"computed in {self.seconds:.1f} s" if self.computed else "taken from the run-cache"
        return f"step {self.stage}: {how}; overhead {self.before:.1f} s before, {self.after:.1f} s after"

    @classmethod
    def parse(cls, line: str) -> Outcome | None:
        """The outcome that a line of a step's log states, if it does."""
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
    metrics: Metrics,
    page: str,
    lock: str,
    parameters: str,
    computed: str,
) -> None:
    """Run one stage. The last five are its outputs: an object, and paths of files to write.

    Args:
        stage: its name in dvc.yaml
        repository: address of the git repository
        revision: full hash of a commit in it
        params: base64 of params.yaml
        locks: lock entries of the stages it depends on, as their steps gave them
        metrics: receives the scalar metrics
        page: HTML: the report, or charts and numbers of the stage
        lock: the stage's lock entry, for the steps after it
        parameters: JSON of the stage's own parameters
        computed: whether the stage ran, as against its results being taken from a run before

    Raises:
        SystemExit: it failed or was stopped.
    """
    begun = psutil.Process().create_time()  # so that starting Python counts
    with _ending(stage), workspace.git_credentials():
        with workspace.prepared(stage, repository, revision, params, decode_entries(locks)) as place:
            watch = _Watch(stage)
            _fetch(place)
            if run_dvc(["repro", "--single-item", "--pull", stage], cwd=place.path, show=watch):
                raise PecoError("not finished; the reason stands above. Fix it and retry: it goes on from there")
            entry = place.entry()
            reproduced = time.time()
            if run_dvc(["push", "--run-cache", stage], cwd=place.path, show=_show):
                raise PecoError(
                    "finished, but its results can't be pushed; the reason stands above. Fix it and retry: it only pushes"
                )
            numbers = _numbers(place)
            for name, value in numbers.items():
                metrics.log_metric(name, value)
            _write(page, _page(place, numbers))
            _write(parameters, json.dumps(_leaves(place.parameters)))
            _write(computed, json.dumps(watch.started is not None))
            _write(lock, encode_entry(stage, entry))
        started = watch.started or reproduced
        ended = max(started, watch.ended or reproduced)
        outcome = Outcome(stage, watch.started is not None, ended - started, started - begun, time.time() - ended)
        print(outcome, flush=True)


def collect(repository: str, revision: str, params: str, locks: list[str], experiment: str, *, commit: str) -> None:
    """Make the run a DVC experiment: a commit on top of `revision` with params.yaml and dvc.lock, pushed under its ref.

    Args:
        repository, revision, params: as for `main`
        locks: the lock entries of all stages
        experiment: its name
        commit: path of the file to write the commit's hash to

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
            raise PecoError(f"the steps give other stages than dvc.yaml at {revision[:7]} has: {', '.join(missing)}")
        lock = workspace.lock_text({name: entries[name] for name in order})
        (root / "dvc.lock").write_text(lock, encoding="utf-8")
        git("add", "--force", "--", "params.yaml", "dvc.lock", cwd=root)
        tree = git("write-tree", cwd=root).strip()
        names = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _IDENTITY.items()}
        env = {name: os.environ.get(name) or value for name, value in names.items()}
        made = git("commit-tree", tree, "-p", revision, "-m", f"Experiment {experiment}", cwd=root, env=env).strip()
        made = _publish(root, repository, f"refs/exps/{revision[:2]}/{revision[2:]}/{experiment}", made, tree)
        _write(commit, made)
        print(f"experiment {experiment}: {made}", flush=True)


_IDENTITY = {"NAME": "peco", "EMAIL": "peco@localhost"}


def check_name(experiment: str) -> None:
    """Raises PecoError where git or DVC would refuse the name of an experiment."""
    if not EXPERIMENT.fullmatch(experiment) or experiment.endswith(".lock"):
        raise PecoError(f"experiment {experiment!r} is not allowed; use letters, digits, `-`, `_` and `.`")


def _publish(root: Path, repository: str, ref: str, made: str, tree: str) -> str:
    """Push the commit under the ref and return it, or the one that is there with the same content, from an earlier try."""
    try:
        git("push", "--quiet", "--", repository, f"{made}:{ref}", cwd=root)
        return made
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
        raise PecoError(f"{ref.rpartition('/')[2]} is another experiment already; submit again under another name")
    return git("rev-parse", "FETCH_HEAD", cwd=root).strip()


def encode_entry(stage: str, entry: Entry) -> str:
    """A lock entry as a pipeline parameter: packed, since all of them together go through one command line."""
    return base64.b64encode(zlib.compress(json.dumps([stage, entry]).encode(), 9)).decode()


def decode_entries(texts: list[str]) -> dict[str, Entry]:
    """Lock entries by stage.

    Raises:
        PecoError: one is no text of `encode_entry`.
    """
    try:
        pairs = [json.loads(zlib.decompress(base64.b64decode(text, validate=True))) for text in texts]
        return {stage: dict(entry) for stage, entry in pairs}
    except (binascii.Error, zlib.error, ValueError, TypeError):
        raise PecoError("the parameter `locks` holds no lock entries of earlier steps; submit the run again") from None


@contextlib.contextmanager
def _ending(name: str) -> Iterator[None]:
    """Turn errors and stops into one line and a status."""

    def end(number: signal.Signals) -> None:
        if not stop.second:
            raise Stopped(number)

    stop = StopSignals(end)
    print(f"step {name}", flush=True)
    try:
        with stop:
            yield
    except (PecoError, OSError) as error:  # a volume that is full, or not this user's
        print(f"error: {name}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.status if isinstance(error, Stopped) else 2)


def _fetch(place: Workspace) -> None:
    """Bring the stage's inputs into the workspace, whole ones too where a killed step left a part."""
    targets = place.fetched()
    if targets and run_dvc(["pull", "--force", *targets], cwd=place.path, show=_show):
        raise PecoError(
            f"its inputs ({', '.join(targets)}) can't be fetched; the reason stands above. Fix it and retry"
        )


class _Watch:
    """Shows DVC's lines and notes when the stage's command started and ended."""

    def __init__(self, stage: str) -> None:
        self.started: float | None = None
        self.ended: float | None = None
        self._start = f"Running stage '{stage}':"

    def __call__(self, line: str) -> None:
        if line.startswith(self._start):
            self.started = time.time()
        elif not (NOISE.match(line) or line.startswith("> ")):
            self.ended = time.time()  # the launcher writes its last line when the stage has ended
        _show(line)


def _show(line: str) -> None:
    if not NOISE.match(line):
        print(line, end="", flush=True)


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _numbers(place: Workspace) -> dict[str, float]:
    """Scalars of the stage's metrics, `a.b` for nested ones."""

    found: dict[str, Any] = {}
    for out in place.stage.outs:
        if out.endswith(".json"):
            found |= _leaves(json.loads((place.path / out).read_text(encoding="utf-8")))
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Values by their dotted names. Kubeflow knows no null, neither as a parameter nor in one."""
    if not isinstance(value, dict):
        return {name: "null" if value is None else value}
    return {
        key: leaf
        for inner, item in value.items()
        for key, leaf in _leaves(item, f"{name}.{inner}" if name else str(inner)).items()
    }


def _page(place: Workspace, numbers: dict[str, float]) -> str:
    """The stage's own page, or one with its curves and numbers."""
    for out in place.stage.outs:
        if out.endswith(".html"):
            return (place.path / out).read_text(encoding="utf-8")
    figures = []
    for file in sorted(file for out in place.stage.outs for file in (place.path / out).glob("*.tsv")):
        header, *rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        points = [(float(row[0]), float(row[1])) for row in rows]
        if any(math.isfinite(y) for _, y in points):
            chart = line_chart(points, label=f"{place.stage.name}: {header[1]}", x_label=header[0])
            figures.append(f"<figure><figcaption><b>{html.escape(header[1])}</b></figcaption>{chart}</figure>")
    rows_ = [f"<tr><th>{html.escape(name)}</th><td>{value:.6g}</td></tr>" for name, value in numbers.items()]
    title = html.escape(place.stage.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f'<body><h1>{title}</h1><div class="grid">{"".join(figures)}</div><table>{"".join(rows_)}</table></body></html>\n'
    )
