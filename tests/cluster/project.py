"""Copies of the checkout in the client's pod, in each of which a short training can run; and a proxy to the API."""

from __future__ import annotations

import hashlib
import signal
from dataclasses import dataclass

from harness import API, CHECKOUT, FOLDER, Client, Process, wait_for

PREPARED = f"{FOLDER}/prepared"
STEPS, EPOCHS = 210, 70.0  # of the tokenizer: about 15 seconds
PREPARE = f"from pathlib import Path; from prepared import prepare; prepare(Path.cwd(), steps={STEPS})"
PROXY_PORT = 7443
LONG_SECONDS = (
    900  # for trainings in the client's pod, which has the CPU time that the jobs leave, and for jobs that wait
)


def prepare(client: Client) -> None:
    """Make a copy of the checkout with the inputs of the tokenizer: shards and a perceptual network."""
    client.sh(f"cp -a {CHECKOUT} {PREPARED}; cd {PREPARED}; PYTHONPATH=.:{CHECKOUT}/tests python -c '{PREPARE}'")


@dataclass(frozen=True)
class Project:
    """A copy of the checkout in which the tokenizer can be trained."""

    client: Client
    folder: str
    key: str

    @staticmethod
    def make(client: Client, name: str) -> Project:
        """A copy of the prepared one, whose job has a name of its own."""
        key = hashlib.sha256(name.encode()).hexdigest()[:12]
        client.sh(f"cp -a {PREPARED} {FOLDER}/{key}")
        return Project(client, f"{FOLDER}/{key}", key)

    @property
    def job(self) -> str:
        """Name of the job of the tokenizer."""
        return f"peco-tokenizer-{self.key}"

    def launch(self, **changes: str) -> Process:
        """Start the launcher of the tokenizer, as DVC does."""
        command = ("python", "-m", "pipelines.launch", "tokenizer")
        return self.client.start(self.folder, *command, **{"PECO_JOB_KEY": self.key} | changes)

    def repro(self, **changes: str) -> Process:
        """Start `make repro` of the tokenizer."""
        command = ("python", "-m", "pipelines.repro", "--single-item", "tokenizer")
        return self.client.start(self.folder, *command, **{"PECO_JOB_KEY": self.key} | changes)

    @property
    def created(self) -> str:
        """The launcher's line for a new job."""
        return f"tokenizer: job {self.job} created in namespace {self.client.cluster.settings.namespace}"

    def lengthen(self) -> None:
        """Make the training longer than any test."""
        self.client.sh(f"cd {self.folder}; sed -i 's/ epochs: {EPOCHS}$/ epochs: 99999.0/' params.yaml")

    def wait_for_checkpoint(self) -> None:
        """Wait until the training has written a checkpoint."""
        find = f"cd {self.folder}; find .work -name checkpoint.pt"
        wait_for(lambda: self.client.sh(f"mkdir -p {self.folder}/.work; {find}"), "a checkpoint")

    def running(self) -> list[str]:
        """Names of the pods of its job that have not ended."""
        pods = self.client.cluster.pods(self.job)
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] not in ("Succeeded", "Failed")]

    def starts(self) -> bool:
        """True once a container of its job has started."""
        statuses = [pod["status"].get("containerStatuses", []) for pod in self.client.cluster.pods(self.job)]
        return any("running" in each["state"] for status in statuses for each in status)

    def lock(self) -> str:
        """Its dvc.lock, which names the hashes of all results."""
        return self.client.sh(f"cat {self.folder}/dvc.lock")


class Proxy:
    """A proxy to the API, in the client's pod, which a test can cut."""

    def __init__(self, client: Client) -> None:
        self.client = client
        # Outside a cluster, as far as the client knows.
        path = client.kubeconfig("/tmp/kubeconfig-proxy", server=f"https://127.0.0.1:{PROXY_PORT}")
        self.variables = {"KUBECONFIG": path, "KUBERNETES_SERVICE_HOST": ""}
        self.connect()

    def connect(self) -> None:
        """Start to forward."""
        script = f"{CHECKOUT}/tests/cluster/tcp_proxy.py"
        self._process = self.client.start(CHECKOUT, "python", script, str(PROXY_PORT), API, "443")
        self._process.wait_for_line("ready")

    def cut(self) -> None:
        """End it with its connections, if it runs: the API refuses connections."""
        if not self._process.runs():
            return
        self._process.kill(signal.SIGKILL)
        self._process.end()
