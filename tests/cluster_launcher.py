"""The launcher of one stage with the stand-in of the API, for the tests of what a real cluster can't be made to do.

The stand-in's refusals are those of a real cluster (tests/record_refusals.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
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
from pipelines.jobs import backend, cluster, kube, pod_log, volcano, waiting
from pipelines.jobs.logs import Screen
from pipelines.workflow.graph import Stage

Json = dict[str, Any]
NAME = "peco-tokenizer-0123456789abcdef"
CREATED = f"tokenizer: job {NAME} created in namespace peco"
WORDS: dict[str, Any] = json.loads((Path(__file__).parent / "recorded" / "refusals.json").read_text())
ONE = Resources(threads=2)
TIME = "2026-01-01T00:00:00Z"
LATE_SECONDS = 60.0


@contextlib.contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """The stand-in, the variables of a launcher in `folder`, and short pauses."""
    for name in [name for name in os.environ if name.startswith("PECO_") and name != "PECO_TEST_SCHEMAS"]:
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(volcano.Volcano, "shortest_poll_seconds", 0.03)
    monkeypatch.setattr(volcano.Volcano, "poll_seconds", 0.03)
    for module, name in (
        (backend, "RETRY_SECONDS"),
        (kube, "FIRST_DELAY"),
        (kube, "PENDING_DELAY"),
        (pod_log, "RETRY_SECONDS"),
        (waiting, "EVENT_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.03)
    for module in (volcano, pod_log):
        monkeypatch.setattr(module, "LOG_SECONDS", 3.0)
    # Silence of the API is reported in the tests of it alone: a slow machine may need seconds for an answer.
    monkeypatch.setattr(kube, "NOTICE_SECONDS", LATE_SECONDS)
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


def owner(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a pod of this name the owner of the jobs, as that of a step is."""
    monkeypatch.setenv("PECO_POD_NAME", name)
    monkeypatch.setenv("PECO_POD_UID", f"uid-of-{name}")


class Launcher:
    """The launcher of the stage `tokenizer`.

    Attributes:
        notes: its own lines, as soon as they are shown.
    """

    def __init__(self, api: KubernetesApi, capsys: pytest.CaptureFixture[str]) -> None:
        self.notes: list[str] = []
        self._api, self._capsys = api, capsys

    def __call__(
        self, resources: Resources = ONE, scenario: Callable[[], object] = lambda: None
    ) -> tuple[int, list[str]]:
        """`run`; the exit status, and the lines on stderr but for the one on the job's creation."""
        status, _, lines = self.run(resources, scenario)
        return status, [line for line in lines if line != CREATED]

    def run(
        self, resources: Resources = ONE, scenario: Callable[[], object] = lambda: None
    ) -> tuple[int, str, list[str]]:
        """Run the launcher while `scenario` runs in a thread. A scenario that fails, or takes too long, stops the launcher.

        Returns:
            The exit status, stdout, and the lines on stderr.
        """
        stage = Stage(StageName("tokenizer"), ("x",), (), ("seed",), (), dataclasses.asdict(resources), "train")
        failed: list[BaseException] = []
        over = threading.Event()

        def stop() -> None:
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

        def guarded() -> None:
            try:
                scenario()
            except BaseException as error:
                failed.append(error)
                stop()

        thread = threading.Thread(target=guarded, daemon=True)
        late = threading.Timer(LATE_SECONDS, stop)
        self._capsys.readouterr()
        thread.start()
        late.start()
        try:
            status = cluster.run(stage, _Noted(self.notes), os.environ)
        except PecoError as error:
            # As pipelines.launch does.
            status = 2
            print(f"error: {error}", file=sys.stderr)
        finally:
            over.set()
            late.cancel()
        thread.join(10)
        if failed:
            raise failed[0]
        out, err = self._capsys.readouterr()
        return status, out, err.splitlines()


class _Noted(Screen):
    """The launcher's output, whose own lines are kept."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self._notes = notes

    def note(self, text: str) -> None:
        super().note(text)
        self._notes.append(text)


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
