"""Common parts of the evaluations: their switches, the weights they start from, details next to their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco.core import artifacts, config
from peco.core.numbers import rounded
from peco.core.publishing import write_json
from peco.networks import backbones
from peco.networks.backbones import Backbone
from peco.runtime import paths
from peco.runtime.stage import Skipped, StageRun

DETAILS = "details.json"


@dataclass(frozen=True)
class Start:
    """A backbone that is evaluated.

    Attributes:
        name: part of the names of its trainings and pictures.
        prefix: prefix of its metrics.
        make: makes the timm model.
    """

    name: str
    prefix: str
    make: Backbone

    @property
    def is_result(self) -> bool:
        """True for the pre-trained backbone, whose models are results."""
        return self.name == "pretrained"

    @property
    def is_reference(self) -> bool:
        """True for the network of `evaluate.reference`, which may be of any kind."""
        return self.name == "reference"


def starts(reference: config.Reference, seed: int) -> list[Start]:
    """The pre-trained backbone, the same at random initialisation, and the reference if the parameters name one."""
    found = [
        Start("pretrained", "", backbones.pretrained(paths.BACKBONE, seed)),
        Start("random", "random_", backbones.at_random(paths.BACKBONE, seed)),
    ]
    if reference.source != "none":
        size = artifacts.input_size(paths.BACKBONE)
        found.append(Start("reference", "reference_", backbones.reference(reference, size, seed)))
    return found


def reference_inputs(reference: config.Reference) -> list[Path]:
    """The file or folder of the reference, an input of the evaluations; empty if it has none."""
    return [Path(reference.path)] if reference.source == "path" else []


def require_task(run: StageRun, task: str) -> None:
    """Check that an evaluation is switched on.

    Raises:
        Skipped: `evaluate.tasks` has it off.
    """
    if not getattr(run.config.evaluate.tasks, task):
        raise Skipped(f"switched off (evaluate.tasks.{task})")


def write_details(folder: Path, values: Mapping[str, Any]) -> None:
    """Write results by class, by pair or by code into the folder of pictures.

    They are not among the metrics, since `dvc exp show` has a column for each metric.
    """
    write_json(folder / DETAILS, rounded(dict(values)))
