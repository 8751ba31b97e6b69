"""The experiments that DVC keeps on a commit, as Git references with their metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peco.core.errors import PecoError
from pipelines.experiments.tables import FILES, ExperimentMetrics
from pipelines.workflow.git import experiment_ref, git


def finished(commit: str) -> set[str]:
    """Names of the experiments on this commit."""
    return set(git("for-each-ref", "--format=%(refname:lstrip=4)", experiment_ref(commit, "")).split())


def read_metrics(name: str, commit: str) -> ExperimentMetrics:
    """Those metrics of an experiment on this commit that the tables need.

    Raises:
        PecoError: there is no such experiment, or a file is missing or unreadable.
    """
    import dvc.api
    from dvc.exceptions import DvcException

    revision = git("for-each-ref", "--format=%(objectname)", experiment_ref(commit, name)).strip()
    if not revision:
        raise PecoError(f"experiment {name}: not found on commit {commit[:7]}")
    metrics: dict[str, Mapping[str, Any]] = {}
    for path in FILES:
        try:
            # By the revision: DVC finds a name ambiguous that experiments on two commits have.
            metrics[path] = json.loads(dvc.api.read(path, rev=revision))
        except (DvcException, OSError, ValueError) as error:
            raise PecoError(
                f"experiment {name}: can't read {path}: {' '.join(str(error).split())}; `dvc exp remove {name}`, then run again"
            ) from None
    return metrics
