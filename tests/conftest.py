"""Settings of all tests, and fixtures of several files."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

# Imported where they are used: other tests start without their packages.
if TYPE_CHECKING:
    from cluster_launcher import Launcher
    from kfp_api import KfpApi
    from kfp_project import Project
    from kubernetes_api import KubernetesApi

pytest.register_assert_rewrite(
    "annotated_folders", "layout_cases", "webdataset_cases"
)  # failures there show both values

# `make test` runs as many tests at a time as there are cores. Threads beyond that wait for each other most of the time.
os.environ |= {"OMP_NUM_THREADS": "1", "PECO_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
os.environ["DVC_NO_ANALYTICS"] = "1"  # no test uses the network; repositories made here have DVC's defaults


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of whole chains, which take minutes: begun last, one would run alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("chain")}
    items.sort(key=lambda item: item.path not in long)


def pytest_runtest_setup() -> None:
    """Give kfp a quick look-up of a caller's name.

    Its own reads the source of all frames, at each setting of each task. Below pytest that are minutes for one pipeline.
    """
    if "kfp.dsl.pipeline_task" in sys.modules:
        task = importlib.import_module("kfp.dsl.pipeline_task")
        task.inspect = SimpleNamespace(stack=lambda: [None, (None, None, None, sys._getframe(2).f_code.co_name)])


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """The stand-in of a cluster's API, with the variables of a launcher."""
    import cluster_launcher

    with cluster_launcher.served(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def start(api: KubernetesApi, capsys: pytest.CaptureFixture[str]) -> Launcher:
    """The launcher of a stage on that cluster."""
    import cluster_launcher

    return cluster_launcher.Launcher(api, capsys)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of a repository with a DVC remote, for copies."""
    import kfp_project

    home = tmp_path_factory.mktemp("template")
    kfp_project.make_template(home)
    return home


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A clone whose commits are on its remote, in the current directory."""
    import kfp_project

    return kfp_project.copy_template(template, tmp_path / "home", monkeypatch)


@pytest.fixture
def kubeflow(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    """A Kubeflow that the environment names."""
    import kfp_project

    with kfp_project.served(monkeypatch) as server:
        yield server
