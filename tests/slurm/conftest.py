"""The tests on a real Slurm: `make test-slurm`, on a machine that can submit jobs.

PECO_QUEUE=partition    partition of the jobs; the cluster's default one otherwise
URGENT=partition        a partition whose jobs preempt those of PECO_QUEUE; without it preemption is not tested
DISPOSABLE=1            this user may take a node down, and stop the controller, which runs on this machine
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("sbatch") is None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no Slurm here: sbatch is not on the PATH"))
