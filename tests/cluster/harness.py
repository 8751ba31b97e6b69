"""A namespace of its own on a real cluster, and a pod in it from which the tests run the launcher, as a user or a step does.

The tests need an administrator's KUBECONFIG; the client has only the account `peco-step`. No folder is shared with the cluster.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TypeVar

import pytest
import yaml
from objects import CLAIM, CLIENT, CLUSTER_WIDE, LABEL, ROOT, VOLUME, Json, Settings, client_pod, labelled, manifests

FOLDER = f"{VOLUME}/test"
CHECKOUT = f"{FOLDER}/checkout"
ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
API = "kubernetes.default.svc"

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str | Callable[[], str], seconds: float = 120) -> T:
    """The first true value of `condition`, which is tried twice a second; `what` describes it where it never comes."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what() if callable(what) else what}"
        time.sleep(0.5)
    return found


def find(lines: list[str], pattern: str) -> str:
    """The first line that matches the whole pattern; a failure shows all lines."""
    found = next((line for line in lines if re.fullmatch(pattern, line)), None)
    assert found is not None, "\n".join([f"no line {pattern!r} in:", *lines])
    return found


class Cluster:
    """The cluster that KUBECONFIG names, seen by its administrator, in the namespace of the tests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # kubectl

    def kubectl(self, *arguments: str, input: str | bytes | None = None, check: bool = True) -> str:
        """Output of kubectl in the tests' namespace; with `check`, a failure ends the test."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            ["kubectl", "--namespace", self.settings.namespace, *arguments],
            input=data, capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        error = done.stderr.decode(errors="replace")
        if check:
            assert done.returncode == 0, f"kubectl {shlex.join(arguments)}: {error}"
        return done.stdout.decode(errors="replace")

    def apply(self, *objects: Json) -> None:
        """Create these objects, or change them."""
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> Json:
        """An object; empty if there is none."""
        text = self.kubectl("get", kind, name, "--ignore-not-found", "--output=json")
        return dict(json.loads(text or "{}"))

    def find_all(self, kind: str, selector: str = "") -> list[Json]:
        """The objects of a kind that have these labels."""
        text = self.kubectl("get", kind, f"--selector={selector}", "--output=json")
        return list(json.loads(text)["items"])

    def delete(self, kind: str, name: str, *options: str) -> None:
        """Delete an object, if it exists, and wait until it is gone."""
        self.kubectl("delete", kind, name, "--ignore-not-found", *options)

    # Volcano's jobs

    def phase(self, job: str) -> str:
        """Phase of a Volcano job; empty where there is none."""
        found = self.get("jobs.batch.volcano.sh", job)
        return str(found.get("status", {}).get("state", {}).get("phase") or "")

    def pods(self, job: str) -> list[Json]:
        """The pods of a Volcano job."""
        return self.find_all("pods", f"volcano.sh/job-name={job}")

    def evict(self, pod: str) -> None:
        """Evict a pod, as `kubectl drain` does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{self.settings.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body))

    # Set-up

    def set_up(self) -> None:
        """Make namespace, accounts, queue, claim and the client's pod; what an earlier run has left is removed first."""
        self.remove()
        objects = manifests(self.settings)
        # The namespace must be there before the rest.
        self.apply(*[entry for entry in objects if entry["kind"] in CLUSTER_WIDE])
        self.apply(*[entry for entry in objects if entry["kind"] not in CLUSTER_WIDE])
        wait_for(lambda: self.get("serviceaccount", "peco-step"), "the account peco-step")
        self.apply(client_pod(self.settings))
        wait_for(self._client_is_ready, lambda: f"pod {CLIENT} is ready: {self.get('pod', CLIENT)['status']}", 240)

    def _client_is_ready(self) -> bool:
        conditions = self.get("pod", CLIENT)["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def remove(self) -> None:
        """Remove the namespace, the queue and whatever else belongs to the whole cluster, if the tests made them."""
        name = self.settings.namespace
        for kind in CLUSTER_WIDE:
            found = self.get(kind, name)
            if found and LABEL not in found["metadata"].get("labels", {}):
                pytest.exit(f"{kind} {name} exists, and does not belong to the tests; name another one (NS)", 2)
        for kind in CLUSTER_WIDE:  # the namespace first: its pods are in the queue
            self.delete(kind, name)

    def make_queue(self, name: str, capability: Mapping[str, str]) -> Json:
        """A queue of the tests."""
        self.apply(labelled({
            "apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": name},
            "spec": {"weight": 1, "reclaimable": True, "capability": dict(capability)},
        }))  # fmt: skip
        return wait_for(lambda: self.get("queue", name), f"queue {name}")

    def abort(self, job: str) -> None:
        """Abort a job, as `vcctl job suspend` does."""
        self._command("AbortJob", "batch.volcano.sh/v1alpha1", "Job", "jobs.batch.volcano.sh", job)

    def close_queue(self, name: str) -> None:
        """Close a queue, as `vcctl queue operate --action close` does."""
        self._command("CloseQueue", "scheduling.volcano.sh/v1beta1", "Queue", "queue", name)
        wait_for(lambda: self.get("queue", name).get("status", {}).get("state") == "Closed", f"{name} is closed")

    def _command(self, action: str, version: str, kind: str, resource: str, name: str) -> None:
        """Give Volcano a command, as `vcctl` does."""
        uid = self.get(resource, name)["metadata"]["uid"]
        target = {"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True}
        command = {
            "apiVersion": "bus.volcano.sh/v1alpha1", "kind": "Command", "action": action, "target": target,
            "metadata": {"generateName": f"{name}-", "ownerReferences": [target]},
        }  # fmt: skip
        self.kubectl("create", "-f", "-", input=yaml.safe_dump(command))


class Process:
    """A command that runs in the client's pod."""

    def __init__(self, client: Client, folder: str) -> None:
        self._client, self._folder = client, folder

    def _read(self) -> tuple[int | None, list[str]]:
        # The status first: the log is complete when it is there.
        text = self._client.sh(f"cd {self._folder}; if [ -e status ]; then cat status; fi; echo; cat log")
        status, _, log = text.partition("\n")
        return int(status) if status else None, log.splitlines()

    def runs(self) -> bool:
        """True until it has ended."""
        return self._read()[0] is None

    def lines(self) -> list[str]:
        """Its output so far, of stdout and stderr."""
        return self._read()[1]

    def wait_for_line(self, part: str, seconds: float = 120) -> str:
        """The first line that has this part, as soon as it is there."""

        def find() -> str | None:
            status, lines = self._read()
            if found := next((line for line in lines if part in line), None):
                return found
            assert status is None, f"ended with {status} without {part!r}: {lines}"
            return None

        return str(wait_for(find, lambda: f"{part!r}; the lines: {self.lines()}", seconds))

    def end(self, seconds: float = 240) -> tuple[int, list[str]]:
        """Wait for its end. Returns the exit status and all lines."""

        def ended() -> tuple[int, list[str]] | None:
            status, lines = self._read()
            return None if status is None else (status, lines)

        return wait_for(ended, lambda: f"its end; the lines: {self.lines()}", seconds)

    def kill(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._client.sh(f"kill -{int(number)} $(cat {self._folder}/pid)")


class Client:
    """The client's pod: a checkout of this project on the shared volume, from which launchers are run."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def sh(self, script: str, input: bytes | None = None) -> str:
        """Run a shell script in the pod and return its output."""
        interactive = ["-i"] if input is not None else []
        return self.cluster.kubectl("exec", *interactive, CLIENT, "--", "bash", "-euc", script, input=input)

    def set_up(self) -> None:
        """Copy the files of this project into the pod, and commit them there."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        files = [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name in files:
                archive.add(ROOT / name, name)
        git = "git -c user.name=test -c user.email=test@test"
        self.sh(
            f"rm -rf {FOLDER}; mkdir -p {CHECKOUT}; cd {CHECKOUT}; tar -xz --no-same-owner; "
            f"git init -q; git add --all; {git} commit -qm test",
            input=packed.getvalue(),
        )

    def environment(self, **changes: str) -> dict[str, str]:
        """The variables with which a launcher starts jobs here, and changes to them. An empty value removes one."""
        settings = self.cluster.settings
        variables = {
            "PECO_SCHEDULER": "kubernetes",
            "PECO_NAMESPACE": settings.namespace,
            "PECO_IMAGE": settings.image,
            "PECO_VOLUME_CLAIM": CLAIM,
            "PECO_SERVICE_ACCOUNT": "peco-job",
            "PECO_QUEUE": settings.namespace,
            "PECO_CPU": "1",
            "PECO_MEMORY": "2Gi",
            "PECO_SHARED_MEMORY": "256Mi",
            "PECO_CHECKPOINT_STEPS": "1",
            "DVC_NO_ANALYTICS": "1",
        } | changes
        return {name: value for name, value in variables.items() if value}

    def start(self, project: str, *command: str, **changes: str) -> Process:
        """Start a command in a folder of the pod, with the variables of `environment`."""
        folder = f"/tmp/process-{uuid.uuid4()}"
        variables = [f"{name}={value}" for name, value in self.environment(**changes).items()]
        removed = [part for name, value in changes.items() if not value for part in ("-u", name)]
        full = ["env", *removed, *variables, "PYTHONPATH=.", *command]
        self.sh(f"cd {project}; python {CHECKOUT}/tests/cluster/start.py {folder} {shlex.join(full)}")
        return Process(self, folder)

    def owner(self) -> dict[str, str]:
        """Variables that make this pod the owner of the jobs, as the pod of a step is."""
        uid = self.cluster.get("pod", CLIENT)["metadata"]["uid"]
        return {"PECO_POD_NAME": CLIENT, "PECO_POD_UID": uid}

    def kubeconfig(self, path: str, *, account: str = "peco-step", server: str = "", authority: str = "") -> str:
        """Write a kubeconfig for an account of the namespace into the pod, and return its path."""
        token = self.cluster.kubectl("create", "token", account).strip()
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {
                "server": server or f"https://{API}", "tls-server-name": API,
                "certificate-authority": authority or f"{ACCOUNT_FOLDER}/ca.crt",
            }}],
            "users": [{"name": "test", "user": {"token": token}}],
        }  # fmt: skip
        self.sh(f"cat >{path}", input=yaml.safe_dump(content).encode())
        return path
