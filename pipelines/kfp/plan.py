"""The runs to submit for a commit, its settings and a sweep, with their names and labels."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peco.core import config, schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from pipelines.kfp import parameters, revision
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.revision import Revision
from pipelines.workflow import overrides
from pipelines.workflow.graph import Graph, load_graph, lookup, overlap

NAME_LENGTH = 100


@dataclass(frozen=True)
class PlannedRun:
    """One run to submit.

    Attributes:
        name: of the run and of its DVC experiment.
        label: the same for the same commit and parameters.
        settings: changes to the commit's parameters.
        parameters: those of the pipeline.
        params: the text of params.yaml that its steps make of them.
        graph: the stages with these parameters.
    """

    name: str
    label: str
    settings: tuple[str, ...]
    parameters: Parameters
    params: str
    graph: Graph


def plan(found: Revision, settings: Sequence[str], sweep: Sequence[str], limit: int) -> list[PlannedRun]:
    """One run for each point of the sweep, or a single one without a sweep.

    Raises:
        PecoError: a setting or a parameter that results from it is wrong, or there are more than `limit` points.
    """
    committed, stages = revision.read(found.sha, "params.yaml"), revision.read(found.sha, "dvc.yaml")
    origin = f"params.yaml of commit {found.short}"
    runs: dict[str, PlannedRun] = {}
    for changed in overrides.points(settings, sweep, limit):
        values = load(overrides.apply(committed.decode(), changed).encode(), origin)
        parsed = _parse(values, found)
        others = parameters.split(changed)
        params = parameters.apply(committed.decode(), parsed.seed, others)
        label = hashlib.sha256(f"{found.sha} {schema.fingerprint(parsed)}".encode()).hexdigest()[:16]
        name = free_name(experiment_name(found, changed, label), found.experiments)
        given = Parameters(found.url, found.sha, parsed.preset, parsed.seed, others, name)
        runs[label] = PlannedRun(name, f"submission {label}", changed, given, params, graph_of(stages, params))
    return list(runs.values())


def committed_parameters(found: Revision) -> Parameters:
    """The parameters of the pipeline for a commit without changes."""
    values = load(revision.read(found.sha, "params.yaml"), f"params.yaml of commit {found.short}")
    preset, seed = lookup(values, "preset"), lookup(values, "seed")
    return Parameters(found.url, found.sha, str(preset), int(seed), "", f"run-{found.short}")


def load(params: bytes, origin: str) -> Any:
    """The values of a params.yaml, unchecked. Raises PecoError, naming `origin`, if it is not YAML."""
    try:
        return yaml.safe_load(params.decode())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise PecoError(f"{origin}: not valid YAML; fix it") from None


def _parse(params: object, found: Revision) -> config.Config:
    try:
        return parse_params(params)
    except PecoError as error:
        if found.sha == revision.commit("HEAD"):
            raise
        raise PecoError(
            f"{error} (commit {found.short}; if its own code accepts it, submit from a checkout of it)"
        ) from None


def graph_of(stages: bytes, params: str) -> Graph:
    """The graph of a dvc.yaml with these parameters.

    Raises:
        PecoError: dvc.yaml uses a parameter that is missing, or something that is not supported.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dvc.yaml").write_bytes(stages)
        (Path(folder) / "params.yaml").write_text(params, encoding="utf-8")
        return load_graph(folder)


def experiment_name(found: Revision, settings: Sequence[str], label: str) -> str:
    """A readable name of the commit and its changes that DVC accepts: `run-1a2b3c4-tokenizer.perceptual.weight-0-seed-1`.

    A name that is too long or has other characters ends in a hash.
    """
    text = "-".join(["run", found.short, *(setting.replace("=", "-", 1) for setting in settings)])
    name = re.sub(r"\.{2,}|[^A-Za-z0-9._-]", "-", text).removesuffix(".lock").rstrip(".")
    if name == text and len(name) <= NAME_LENGTH:
        return name
    return f"{name[: NAME_LENGTH - 9]}-{label[:8]}"


def free_name(name: str, taken: Set[str]) -> str:
    """The name, followed by the first number that makes it a new one if it is taken."""
    number = 1
    while (free := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return free


def inputs(graph: Graph) -> list[str]:
    """The dependencies that no stage produces: code and data."""
    outs = [out for stage in graph.stages.values() for out in stage.outs]
    deps = dict.fromkeys(dep for stage in graph.stages.values() for dep in stage.deps)
    return [dep for dep in deps if not any(overlap(dep, out) for out in outs)]
