"""Settings of the tests on a real Kubeflow Pipelines: skipped where KFP_HOST names none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder without a Kubeflow."""
    if not os.environ.get("KFP_HOST"):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="KFP_HOST: not set; these tests need a Kubeflow Pipelines"))
