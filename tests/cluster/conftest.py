"""Fixtures of the tests on a real cluster: namespace and client for all tests, a project with a short training for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Client, Cluster
from objects import Settings
from project import LONG_SECONDS, Project, Proxy, prepare


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """A skipped test is a failure here: what a test needs must be there."""
    report = yield
    if report.skipped:
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The namespace of the tests, set up; removed at the end."""
    if shutil.which("kubectl") is None:
        pytest.exit("kubectl: not found; install it", 2)
    cluster = Cluster(Settings.read())
    try:
        cluster.set_up()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture(scope="session")
def client(cluster: Cluster) -> Client:
    """The client's pod, with a checkout of this project."""
    client = Client(cluster)
    client.set_up()
    return client


@pytest.fixture(scope="session")
def prepared(client: Client) -> Client:
    """The client, with what the projects are copied from."""
    prepare(client)
    return client


@pytest.fixture
def project(prepared: Client, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A project for this test. Its jobs are removed at the end."""
    yield Project.make(prepared, request.node.name)
    prepared.cluster.delete("jobs.batch.volcano.sh", "--all", "--cascade=foreground")


@pytest.fixture(scope="session")
def lock(prepared: Client) -> str:
    """dvc.lock of the tokenizer, trained without a cluster and without a break."""
    project = Project.make(prepared, "reference")
    status, lines = project.repro(PECO_SCHEDULER="local_cwd").end(LONG_SECONDS)
    assert status == 0, lines
    return project.lock()


@pytest.fixture
def closed_queue(cluster: Cluster) -> Iterator[str]:
    """A queue that takes no jobs."""
    name = f"{cluster.settings.namespace}-closed"
    cluster.make_queue(name, {"cpu": "1"})
    cluster.close_queue(name)
    yield name
    cluster.delete("queue", name)


@pytest.fixture
def no_quota(cluster: Cluster) -> Iterator[None]:
    """The namespace takes no more jobs."""
    patch = '{{"spec": {{"hard": {{"count/jobs.batch.volcano.sh": "{}"}}}}}}'
    cluster.kubectl("patch", "resourcequota", "peco", "--patch", patch.format(0))
    yield
    cluster.kubectl("patch", "resourcequota", "peco", "--patch", patch.format(50))


@pytest.fixture
def proxy(client: Client) -> Iterator[Proxy]:
    """A proxy to the API."""
    proxy = Proxy(client)
    yield proxy
    proxy.cut()
