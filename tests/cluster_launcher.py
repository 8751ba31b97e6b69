"""The launcher of one stage with the stand-in of the API, for the tests of what a cluster refuses, lacks or doesn't answer.

The stand-in's refusals are those of a real cluster (tests/record_refusals.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_api import KubernetesApi

from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from pipelines.jobs import backend, cluster, kube, volcano, waiting
from pipelines.jobs.logs import Screen
from pipelines.workflow.graph import Stage

Json = dict[str, Any]
NAME = "peco-tokenizer-0123456789abcdef"
WORDS: dict[str, Any] = json.loads((Path(__file__).parent / "recorded" / "refusals.json").read_text())
ONE = Resources()
TIME = "2026-01-01T00:00:00Z"
Launch = Callable[..., tuple[int, list[str]]]


@contextlib.contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """The stand-in, the variables of a launcher in `folder`, and short pauses."""
    for name in [name for name in os.environ if name.startswith("PECO_") and name != "PECO_TEST_SCHEMAS"]:
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(volcano.Volcano, "shortest_poll_seconds", 0.03)
    monkeypatch.setattr(volcano.Volcano, "poll_seconds", 0.03)
    monkeypatch.setattr(backend, "RETRY_SECONDS", 0.03)
    monkeypatch.setattr(kube, "PENDING_DELAY", 0.03)
    monkeypatch.setattr(waiting, "EVENT_SECONDS", 0.03)
    monkeypatch.chdir(folder)
    with KubernetesApi() as server:
        environment = {
            "KUBECONFIG": str(server.kubeconfig(folder / "kubeconfig")),
            "PECO_SCHEDULER": "kubernetes",
            "PECO_JOB_KEY": "0123456789abcdef",
            "PECO_NAMESPACE": "peco",
            "PECO_IMAGE": "registry.example/peco:1",
            "PECO_VOLUME_CLAIM": "peco",
            "PECO_VOLUME_PATH": str(folder),
            "PECO_GRACE_SECONDS": "0",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.faults == []


def launch(
    api: KubernetesApi,
    capsys: pytest.CaptureFixture[str],
    resources: Resources = ONE,
    scenario: Callable[[], object] = lambda: None,
) -> tuple[int, list[str]]:
    """Run the launcher while `scenario` runs in a thread.

    Returns:
        The exit status, and the lines on stderr but for the one on the job's creation.
    """
    stage = Stage(StageName("tokenizer"), ("x",), (), ("seed",), (), dataclasses.asdict(resources), "train")
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            scenario()
        except BaseException as error:
            failed.append(error)
            complete(api)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        status = cluster.run(stage, Screen(), os.environ)
    except PecoError as error:
        # As pipelines.launch does.
        status = 2
        print(f"error: {error}", file=sys.stderr)
    thread.join(10)
    if failed:
        raise failed[0]
    lines = capsys.readouterr().err.splitlines()
    return status, [line for line in lines if not re.fullmatch(r"tokenizer: job \S+ created in namespace peco", line)]


def complete(api: KubernetesApi) -> None:
    """The job runs and ends."""
    job = api.job()
    with api.lock:
        api.admits = True
        if not api.pods:
            api._create_pods(job)
    for pod in api.start():
        api.end(pod)


def has_sent(api: KubernetesApi, part: str, times: int = 1) -> Callable[[], bool]:
    """A condition: so many requests with this part in their path have come."""
    return lambda: sum(part in path for _, path, _ in list(api.requests)) >= times


def leave_event(api: KubernetesApi, reason: str, message: str, *, of_group: bool = False) -> None:
    """An event of the job or of its group, as Volcano leaves it."""
    job = api.job()["metadata"]
    involved = {"name": job["name"], "uid": job["uid"]}
    if of_group:
        involved = {"name": f"{job['name']}-{job['uid']}", "uid": "another"}
    event = {"metadata": {"creationTimestamp": TIME}, "involvedObject": involved, "type": "Warning"}
    with api.lock:
        api.events.append(event | {"reason": reason, "message": message, "lastTimestamp": TIME})
