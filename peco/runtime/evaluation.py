"""Common parts of the evaluations: their switches, the weights they start from, details next to their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco.core.numbers import rounded
from peco.core.publishing import write_json
from peco.runtime.stage import Skipped, StageRun

DETAILS = "details.json"


@dataclass(frozen=True)
class Start:
    """Initial weights of an evaluated model.

    Attributes:
        name: part of the names of its trainings and pictures.
        prefix: prefix of its metrics.
        pretrained: True for the pre-trained backbone, False for its architecture at random initialisation.
    """

    name: str
    prefix: str
    pretrained: bool


STARTS = (Start("pretrained", "", True), Start("random", "random_", False))


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
