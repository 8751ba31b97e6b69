"""Points over seeds as DVC experiments: checked, named, run, and their metrics read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from peco.core import config, schema
from peco.core.errors import PecoError
from peco.core.params import load_params, parse_params
from pipelines.experiments.grids import Point
from pipelines.experiments.tables import FILES, Metrics
from pipelines.workflow import inputs, overrides
from pipelines.workflow.git import git
from pipelines.workflow.processes import run_dvc

PARAMS = Path("params.yaml")
CODE = ("peco", "pipelines", "dvc.yaml", "data")  # what results depend on, beside params.yaml


@dataclass(frozen=True)
class Experiment:
    """A point with a seed."""

    point: Point
    seed: int
    settings: tuple[str, ...]  # all that is put on top of params.yaml
    config: config.Config
    stands: bool  # whether that comes to what stands anyway, but for the seed

    @property
    def title(self) -> str:
        return f"{self.point.title}, seed {self.seed}"


class State(NamedTuple):
    """What experiments start from."""

    commit: str
    changes: str
    params: bytes


def state() -> State:
    return State(commit(), changes(), PARAMS.read_bytes() if PARAMS.is_file() else b"")


def check_unchanged(start: State) -> None:
    """Check that an experiment which is taken from the workspace now is the one that was planned.

    Raises:
        PecoError: it isn't.
    """
    if state() != start:
        raise PecoError("params.yaml or code changed since the start; run again")


def compose(settings: Sequence[str]) -> config.Config:
    """The params.yaml that stands with the user's settings on top.

    Raises:
        PecoError: there is none, or it or a setting is not allowed.
    """
    load_params(PARAMS)
    _check_settings(settings, set())
    return _compose(PARAMS.read_text(encoding="utf-8"), settings)


def plan(points: Sequence[Point], seeds: Sequence[int], settings: Sequence[str]) -> list[Experiment]:
    """Every point with every seed, on top of the params.yaml that stands; what comes to the same is there once.

    Args:
        settings: the user's, for all points.

    Raises:
        PecoError: the parameters don't allow a point, which is named; a setting changes what the points differ in.
    """
    load_params(PARAMS)
    _check_settings(settings, {setting.partition("=")[0] for point in points for setting in point.settings})
    text = PARAMS.read_text(encoding="utf-8")
    found: dict[str, Experiment] = {}
    for seed in dict.fromkeys(seeds):
        common = (f"seed={seed}", *settings)
        stands = fingerprint(_compose(text, common))
        for point in points:
            try:
                composed = _compose(text, (*common, *point.settings))
            except PecoError as error:
                raise PecoError(f"{point.key}: {error}") from None
            key = fingerprint(composed)
            found.setdefault(key, Experiment(point, seed, (*common, *point.settings), composed, stands=key == stands))
    order = {point.key: number for number, point in enumerate(points)}
    return sorted(found.values(), key=lambda experiment: order[experiment.point.key])


def _check_settings(settings: Sequence[str], differing: set[str]) -> None:
    for setting in settings:
        key = overrides.key(setting, "SET")
        if key == "seed":
            raise PecoError(f'SET={setting}: not allowed; SEEDS="0 1 2" names the seeds')
        if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in differing):
            raise PecoError(
                f"SET={setting}: not allowed, since it is what the experiments differ in; change it in params.yaml"
            )


def _compose(text: str, settings: Sequence[str]) -> config.Config:
    return parse_params(yaml.safe_load(overrides.apply(text, settings)))


def fingerprint(parameters: config.Config, changes: str = "") -> str:
    """Short hash of all parameters but those of the hardware, and of what else has changed."""
    values = {key: value for key, value in schema.to_dict(parameters).items() if key != "resources"}
    return schema.fingerprint([values, changes])


def name(kind: str, experiment: Experiment, changes: str) -> str:
    """Name of a DVC experiment: on a commit, the same for the same parameters and code alone."""
    mark = fingerprint(experiment.config, changes)[:8]
    parts = (kind, experiment.config.preset, experiment.point.key, experiment.seed, mark)
    return "-".join(map(str, parts)).replace("_", "-")


def run(name: str, settings: Sequence[str]) -> int:
    """Run one experiment in a temporary folder. Stages that ran before, in another, come from the run-cache.

    Returns:
        DVC's status; where it isn't 0 the stage's own line stands above.

    Raises:
        Stopped: a stop was asked for; all has ended.
    """
    return run_dvc(["exp", "run", "--temp", "--name", name, *_set(settings)])


def queue(name: str, settings: Sequence[str]) -> None:
    """Put one experiment into DVC's queue.

    Raises:
        PecoError: DVC can't do it.
    """
    _dvc("exp", "run", "--queue", "--name", name, *_set(settings))


def _set(settings: Sequence[str]) -> list[str]:
    return [argument for setting in settings for argument in ("-S", setting)]


def finished(commit: str) -> set[str]:
    """Names of the experiments on this commit that are there with their results."""
    return set(git("for-each-ref", "--format=%(refname:lstrip=4)", _ref(commit, "")).split())


def _ref(commit: str, name: str) -> str:
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"


def commit() -> str:
    """Id of the commit that stands, which experiments belong to."""
    return git("rev-parse", "HEAD").strip()


def changes() -> str:
    """What differs from the commit in code and inputs; empty where nothing does."""
    return git("diff", "HEAD", "--", *CODE)


def _dvc(*arguments: str) -> str:
    """What DVC prints.

    Raises:
        PecoError: it fails.
    """
    return _output([sys.executable, "-m", "dvc", *arguments])


def _output(command: list[str]) -> str:
    # In a group of its own: a Ctrl-C must not reach it while it has put the user's changes aside.
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="backslashreplace", check=False, process_group=0
    )
    if result.returncode:
        reason = [line for line in result.stderr.splitlines() if line.strip()]
        shown = " ".join(command[command.index("-m") + 1 :] if "-m" in command[:2] else command)
        raise PecoError(f"{shown}: {reason[0] if reason else 'failed'}")
    return result.stdout


def check_inputs(parameters: config.Config) -> None:
    """Check that experiments, which see what Git knows, will see the tracked inputs.

    Raises:
        PecoError: one is not there, or neither DVC nor Git knows it.
    """
    for key, path in inputs.tracked(parameters).items():
        inputs.require_there(key, path)
        pointer = inputs.tracked_by(path)
        if pointer is None and path.is_dir() and not git("ls-files", "--", str(path)):
            raise PecoError(
                f"{path}: not tracked, so experiments can't see it; run `dvc add {path} && git add {path}.dvc` first"
            )
        unknown = git("ls-files", "--others", "--exclude-standard", "--", str(pointer or path)).split("\n")[0]
        if unknown:
            raise PecoError(f"{unknown}: not in Git, so experiments can't see it; run `git add {unknown}` first")


def read_metrics(name: str, commit: str) -> Metrics:
    """The metrics of an experiment on this commit by file: those that the tables need.

    Raises:
        PecoError: there is no such experiment, or a file is missing or unreadable.
    """
    import dvc.api
    from dvc.exceptions import DvcException

    revision = git("for-each-ref", "--format=%(objectname)", _ref(commit, name)).strip()
    if not revision:
        raise PecoError(f"experiment {name}: there is none on commit {commit[:7]}")
    metrics: dict[str, dict[str, Any]] = {}
    for path in FILES:
        try:
            metrics[path] = json.loads(dvc.api.read(path, rev=revision))
        except (DvcException, OSError, ValueError) as error:
            raise PecoError(
                f"experiment {name}: can't read {path}: {' '.join(str(error).split())}; `dvc exp remove {name}`, then run again"
            ) from None
    return metrics
