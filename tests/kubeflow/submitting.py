"""`make pipeline-submit` in this checkout, and what its runs do on the cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
RUN_SECONDS = 3600.0
RUN_ADDRESS = re.compile(r"(\S+): \S+/runs/details/(\S+)")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = RUN_SECONDS) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(2)
    return found


@dataclass(frozen=True)
class Run:
    """A run of Kubeflow."""

    name: str
    id: str


class Submit:
    """A call of `make pipeline-submit`, whose lines are collected while it runs."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.submit", "submit", *arguments],
            cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1", **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def end(self) -> tuple[int, list[str]]:
        """Wait for its end. Returns the exit status and all lines."""
        status = self._process.wait(RUN_SECONDS)
        self._reader.join()
        return status, self.lines

    def wait_for_line(self, part: str) -> str:
        """The first line that has this part, as soon as it is there."""

        def find() -> str | None:
            ended = self._process.poll() is not None
            found = next((line for line in self.lines if part in line), None)
            assert found or not ended, f"ended without {part!r}: {self.lines}"
            return found

        return str(wait_for(find, part))

    def run(self) -> Run:
        """The first run that it started."""
        line = self.wait_for_line("/runs/details/")
        match = RUN_ADDRESS.match(line)
        assert match, line
        return Run(match[1], match[2])


def kubectl(*arguments: str) -> str:
    """Output of kubectl in the namespace of the runs."""
    namespace = os.environ.get("PECO_NAMESPACE") or os.environ.get("KFP_NAMESPACE") or "kubeflow"
    return subprocess.run(
        ["kubectl", "--namespace", namespace, *arguments], check=True, capture_output=True, text=True
    ).stdout


def items(kind: str, selector: str) -> list[Json]:
    """Objects of the namespace of the runs."""
    return list(json.loads(kubectl("get", kind, f"--selector={selector}", "--output=json"))["items"])


def live_jobs(stage: str) -> list[str]:
    """Names of the stage's Volcano jobs that run."""
    jobs = items("jobs.batch.volcano.sh", f"peco.stage={stage}")
    return [job["metadata"]["name"] for job in jobs if job["status"].get("state", {}).get("phase") == "Running"]


def git(*arguments: str) -> str:
    """Output of git in this checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def pulled_lock(name: str) -> str:
    """dvc.lock of an experiment, pulled by `dvc exp pull`."""
    remote = os.environ.get("GIT_REMOTE") or "origin"
    subprocess.run([sys.executable, "-m", "dvc", "exp", "pull", "--force", remote, name], cwd=ROOT, check=True)
    [line] = [line for line in git("for-each-ref", "refs/exps").splitlines() if line.endswith(f"/{name}")]
    return git("show", f"{line.split()[0]}:dvc.lock")
