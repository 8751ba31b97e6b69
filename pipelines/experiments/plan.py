"""Experiments before they run: variants over seeds, checked and named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from peco.core import config, schema
from peco.core.errors import PecoError
from peco.core.params import load_params, parse_params
from pipelines.experiments.grids import Variant
from pipelines.workflow import inputs, overrides
from pipelines.workflow.git import git, head, read_file
from pipelines.workflow.graph import load_graph

PARAMS = Path("params.yaml")
# Results depend on these, on params.yaml, and on what stages read besides.
CODE = ("peco", "pipelines", "dvc.yaml", "data")


@dataclass(frozen=True)
class Experiment:
    """A variant with a seed.

    Attributes:
        settings: all that is put on top of params.yaml.
        config: the parameters with them.
        is_current: True if that equals the current params.yaml with the user's settings, apart from the seed.
    """

    variant: Variant
    seed: int
    settings: tuple[str, ...]
    config: config.Config
    is_current: bool

    @property
    def title(self) -> str:
        return f"{self.variant.title}, seed {self.seed}"


@dataclass(frozen=True)
class Snapshot:
    """The state of the repository that experiments start from. Later edits and commits don't change it.

    Attributes:
        commit: the commit that is checked out, which experiments belong to.
        revision: a commit with the uncommitted changes on top; `commit` if there are none.
        changes: the changes in code and inputs.
        params: text of params.yaml.
    """

    commit: str
    revision: str
    changes: str
    params: str


def take_snapshot() -> Snapshot:
    """Record the commit and the uncommitted changes that Git knows; the workspace stays as it is.

    Raises:
        PecoError: there is no commit, or no params.yaml, or it is not allowed.
    """
    load_params(PARAMS)
    commit = head()
    revision = git("stash", "create").strip() or commit
    read = {dep for stage in load_graph().stages.values() for dep in stage.deps}  # own stages: also scripts elsewhere
    changes = git("--literal-pathspecs", "diff", commit, revision, "--", *dict.fromkeys([*CODE, *sorted(read)]))
    return Snapshot(commit, revision, changes, read_file(revision, f"./{PARAMS}").decode())


def plan(
    snapshot: Snapshot,
    kind: str,
    variants: Callable[[config.Config], Sequence[Variant]],
    seeds: Sequence[int],
    settings: Sequence[str],
    *,
    suffix: str = "",
) -> dict[str, Experiment]:
    """Every variant with every seed, by name. Those with equal parameters are there once.

    Args:
        kind: first part of the names.
        variants: makes them from the current parameters.
        settings: the user's, for all variants.
        suffix: is appended to the title of the variant that equals the current parameters.

    Raises:
        PecoError: the parameters don't allow a variant, which is named; a setting is not allowed, or the variants differ in it.
    """
    _check_settings(settings)
    chosen = variants(_compose(snapshot.params, settings))
    _check_settings(settings, {setting.partition("=")[0] for variant in chosen for setting in variant.settings})
    found: dict[str, Experiment] = {}  # by the parameters
    for seed in dict.fromkeys(seeds):
        common = (f"seed={seed}", *settings)
        current = _fingerprint(_compose(snapshot.params, common))
        for variant in chosen:
            try:
                composed = _compose(snapshot.params, (*common, *variant.settings))
            except PecoError as error:
                raise PecoError(f"{variant.key}: {error}") from None
            key = _fingerprint(composed)
            found.setdefault(key, Experiment(variant, seed, (*common, *variant.settings), composed, key == current))
    order = {variant.key: number for number, variant in enumerate(chosen)}
    named = {}
    for each in sorted(found.values(), key=lambda experiment: order[experiment.variant.key]):
        title = each.variant.title + (suffix if each.is_current else "")
        named[_name(kind, each, snapshot.changes)] = replace(each, variant=replace(each.variant, title=title))
    return named


def _check_settings(settings: Sequence[str], differing: Collection[str] = ()) -> None:
    for setting in settings:
        key = overrides.key(setting, "SET")
        if key == "seed":
            raise PecoError(f'SET={setting}: not allowed; SEEDS="0 1 2" names the seeds')
        if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in differing):
            raise PecoError(f"SET={setting}: not allowed, the experiments differ in it; change it in params.yaml")


def _compose(text: str, settings: Sequence[str]) -> config.Config:
    return parse_params(yaml.safe_load(overrides.apply(text, settings)))


def _fingerprint(parameters: config.Config, changes: str = "") -> str:
    """Short hash of all parameters except those of the hardware, and of changes in the code."""
    values = {key: value for key, value in schema.to_dict(parameters).items() if key != "resources"}
    return schema.fingerprint([values, changes])


def _name(kind: str, experiment: Experiment, changes: str) -> str:
    """Name of a DVC experiment: on a commit, it is the same only for the same parameters and code."""
    mark = _fingerprint(experiment.config, changes)[:8]
    parts = (kind, experiment.config.preset, experiment.variant.key, experiment.seed, mark)
    return "-".join(map(str, parts)).replace("_", "-")


def check_inputs(parameters: config.Config) -> None:
    """Check that Git or DVC has all inputs as they are now: experiments get them from there.

    Raises:
        PecoError: one doesn't exist, is not tracked, or was changed since.
    """
    pointers = {}
    for key, path in inputs.input_paths(parameters).items():
        inputs.require_exists(key, path)
        pointer = inputs.tracked_by(path)
        if pointer is None and path.is_dir() and not git("ls-files", "--", str(path)):
            raise PecoError(
                f"{path}: not tracked, so experiments can't see it; run `dvc add {path} && git add {path}.dvc` first"
            )
        unknown = git("ls-files", "--others", "--exclude-standard", "--", str(pointer or path)).split("\n")[0]
        if unknown:
            raise PecoError(f"{unknown}: not in Git, so experiments can't see it; run `git add {unknown}` first")
        if pointer is not None:
            pointers[str(pointer)] = pointer.with_suffix("")
    for pointer_name, path in pointers.items():
        if _is_changed(pointer_name):
            raise PecoError(f"{path}: changed since `dvc add`, so experiments can't see it; run `dvc add {path}` again")


def _is_changed(pointer: str) -> bool:
    """True if the data of a `.dvc` file differ from DVC's cache; data that are not checked out count as unchanged."""
    command = [sys.executable, "-m", "dvc", "status", "--json", pointer]
    done = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", check=False)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.strip()]
        raise PecoError(f"dvc status {pointer}: {reason[0] if reason else 'failed'}")
    found = [changes for stage in json.loads(done.stdout).values() for changes in stage if isinstance(changes, dict)]
    return any(state != "deleted" for changes in found for state in changes.get("changed outs", {}).values())
