"""Finished experiments as small files, which Git can carry to another machine; it then runs only what is missing.

DVC's own experiments belong to one commit, and their results to one cache. A record has the metrics alone. It counts as long as the
files that a result depends on are the same: parameters and changes (they are in the experiment's name), and by their Git hashes
dvc.yaml, the code that the stages depend on, and the inputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.core.publishing import write_json
from pipelines.experiments.plan import Experiment, Snapshot
from pipelines.experiments.tables import FILES, ExperimentMetrics
from pipelines.workflow import inputs
from pipelines.workflow.git import git
from pipelines.workflow.graph import load_graph


class Records:
    """The records in a folder that count for a snapshot, by the names of the experiments.

    Args:
        folder: it may be missing.
        snapshot: the state of the repository that experiments start from.

    Attributes:
        metrics: those that the tables need.
        others: names of the records that were made with other code or other inputs.

    Raises:
        PecoError: a record can't be read.
    """

    def __init__(self, folder: Path, snapshot: Snapshot) -> None:
        self.folder, self._commit, self._code = folder, snapshot.commit, _code(snapshot)
        self.metrics: dict[str, ExperimentMetrics] = {}
        self.others: list[str] = []
        for path in sorted(folder.glob("*.json")):
            record = _read(path)
            if record["code"] == self._code:
                self.metrics[path.stem] = record["metrics"]
            else:
                self.others.append(path.stem)

    def add(self, name: str, experiment: Experiment, metrics: ExperimentMetrics) -> None:
        """Write a record; one of other code is replaced.

        Raises:
            PecoError: it can't be written.
        """
        self.metrics[name] = metrics
        path = self.folder / f"{name}.json"
        try:
            write_json(
                path,
                {
                    "code": self._code,
                    "commit": self._commit,
                    "settings": list(experiment.settings),
                    "metrics": dict(metrics),
                },
            )
        except OSError as error:
            raise PecoError(f"{path}: can't be written ({error.strerror})") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
        complete = isinstance(record["code"], str) and all(isinstance(record["metrics"][file], dict) for file in FILES)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PecoError(f"{path}: no record of an experiment ({error!r}); remove it, then run again") from None
    if not complete:
        raise PecoError(f"{path}: no record of an experiment; remove it, then run again")
    return record  # type: ignore[no-any-return]


def _code(snapshot: Snapshot) -> str:
    """Hash of the files in Git on which results depend, besides the parameters."""
    stages = load_graph().stages.values()
    given = inputs.input_paths(parse_params(yaml.safe_load(snapshot.params))).values()
    pointers = {str(pointer) for pointer in map(inputs.tracked_by, given) if pointer is not None}
    paths = {"dvc.yaml", *(dep for stage in stages for dep in stage.deps), *pointers}
    return schema.fingerprint(git("--literal-pathspecs", "ls-tree", snapshot.revision, "--", *sorted(paths)))
