"""The folder of one run on the shared volume, through which its steps pass on what they need.

    runs/RUN/parameters.json   the run's parameters
    runs/RUN/STAGE.json        the stage's entry of dvc.lock and its metrics
    runs/RUN/STAGE.error       the line with which the step failed last

As parameters of Kubeflow's tasks they would be copied into the run's Workflow at least six times for each step, and of a run whose
Workflow has more than 1 MB Kubeflow reports nothing more.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from peco.core.publishing import write_file
from pipelines.kfp.parameters import Parameters
from pipelines.workflow import environment

Entry = dict[str, Any]  # of dvc.lock, for one stage


@dataclass(frozen=True)
class Result:
    """The result of a finished step, for the ones after it.

    Attributes:
        entry: the stage's entry of dvc.lock; empty if it failed.
        numbers: its scalar metrics.
        failed: the error of an evaluation without which the run continues; else empty.
    """

    entry: Entry
    numbers: dict[str, float]
    failed: str = ""


class RunFolder:
    """The folder of the run with this id.

    Raises:
        PecoError: the id is not one.
    """

    def __init__(self, run: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9-]+", run):
            raise PecoError(f"run {run!r} is not allowed; expected the id that Kubeflow gives a run")
        self.path = Path(environment.WORKSPACES.text()).absolute().with_name("runs") / run

    def write_parameters(self, parameters: Parameters) -> None:
        """Keep the run's parameters for its other steps."""
        self._write("parameters.json", json.dumps(dataclasses.asdict(parameters), indent=1))

    def parameters(self) -> Parameters:
        """The run's parameters.

        Raises:
            PecoError: the folder is gone.
        """
        return Parameters(**self._read("parameters.json"))

    def write_result(self, stage: str, result: Result) -> None:
        """Keep the result of a stage; an error of an earlier attempt is removed."""
        self._write(f"{stage}.json", json.dumps(dataclasses.asdict(result), indent=1))
        if not result.failed:
            (self.path / f"{stage}.error").unlink(missing_ok=True)

    def result(self, stage: str) -> Result:
        """The result of a stage.

        Raises:
            PecoError: this run has none.
        """
        return Result(**self._read(f"{stage}.json"))

    def has(self, stage: str) -> bool:
        """True if the run has a result of the stage."""
        return (self.path / f"{stage}.json").is_file()

    def write_error(self, stage: str, line: str) -> None:
        """Keep the line with which a step failed."""
        self._write(f"{stage}.error", line + "\n")

    def _write(self, name: str, text: str) -> None:
        write_file(self.path / name, text)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise PecoError(
                f"{self.path / name}: no such file; the run's folder was deleted, so submit the run again"
            ) from None
        except ValueError:
            raise PecoError(f"{self.path / name}: damaged; submit the run again") from None
