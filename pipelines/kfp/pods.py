"""The pods of a run: their names, and why one of them failed or waits, as far as Kubeflow or the cluster say it.

Kubeflow's API has no errors of tasks. Its UI and its API server read pods and logs for their own pages, and a kubeconfig may lead
to the cluster. What can't be read is replaced by a command that shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.kfp.client import Kubeflow
from pipelines.workflow.environment import NAMESPACE

# Of Kubeflow Pipelines standalone.
DEFAULT_NAMESPACE = "kubeflow"
LENGTH = 500  # characters of a reason
TIMEOUT_SECONDS = (3, 10)  # to connect, and between two reads


@dataclass(frozen=True)
class Pod:
    """One pod of a run.

    Attributes:
        run_id: the run.
        name: its name.
        namespace: its namespace, a guess where the environment names none.
    """

    run_id: str
    name: str
    namespace: str

    @classmethod
    def of(cls, run: Any, node: str, template: str, env: Mapping[str, str]) -> Pod | None:
        """The pod of a node of Argo's, such as `root(0).shards(0).executor(0)`; None before Argo has started the run."""
        names = [child.pod_name for task in tasks_of(run) for child in task.child_tasks or () if child.pod_name]
        if not names:
            return None
        workflow = names[0].rpartition("-")[0]
        namespace = env.get("KFP_NAMESPACE") or NAMESPACE.text(env) or DEFAULT_NAMESPACE
        return cls(str(run.run_id), f"{workflow}-{template}-{_fnv(f'{workflow}(0).{node}')}", namespace)

    def state(self, kubeflow: Kubeflow) -> str:
        """Why its main container failed or waits, by the pod itself; empty if it does neither, or can't be read."""
        answer = kubeflow.read("/k8s/pod", {"podname": self.name, "podnamespace": self.namespace})
        return (_state(_json(answer)) or _state(self._from_cluster()))[:LENGTH]

    def failure(self, kubeflow: Kubeflow) -> str:
        """Why it failed, by the pod or else by its log; empty if neither can be read."""
        return self.state(kubeflow) or _last_error(self._log(kubeflow))[:LENGTH]

    def log_command(self) -> str:
        """The command that shows its log."""
        return f"kubectl -n {self.namespace} logs {self.name} -c main"

    def _log(self, kubeflow: Kubeflow) -> str:
        """The log as Kubeflow's UI or its API server reads it; the address depends on the version."""
        query = {"podname": self.name, "podnamespace": self.namespace, "runid": self.run_id}
        own = (
            f"/apis/{version}/runs/{self.run_id}/nodes/{self.name}/log"
            for version in ("v2beta1", "v1beta1", "v1alpha1")
        )
        return next((text for path in ("/k8s/pod/logs", *own) if (text := kubeflow.read(path, query))), "")

    def _from_cluster(self) -> Any:
        """The pod as a kubeconfig shows it, None without one that works."""
        import kubernetes as k8s
        import yaml
        from urllib3.exceptions import HTTPError

        damaged = (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError)  # of a kubeconfig that is not valid
        try:
            try:
                k8s.config.load_kube_config()
            except k8s.config.ConfigException:
                k8s.config.load_incluster_config()
            api = k8s.client.CoreV1Api()
            pod = api.read_namespaced_pod(self.name, self.namespace, _request_timeout=TIMEOUT_SECONDS)
            return api.api_client.sanitize_for_serialization(pod)
        except (k8s.config.ConfigException, k8s.client.ApiException, HTTPError, OSError, *damaged):
            return None


def describe_command(*pods: Pod) -> str:
    """The command that shows what pods of one run wait for."""
    return f"kubectl -n {pods[0].namespace} describe pod {' '.join(pod.name for pod in pods)}"


def tasks_of(run: Any) -> list[Any]:
    """The tasks of a run, each a node of Argo's workflow."""
    return list((run.run_details and run.run_details.task_details) or ())


def _state(pod: Any) -> str:
    """Why the main container of a pod failed or waits; empty if it does neither."""
    if not isinstance(pod, dict):
        return ""
    states = {each["name"]: each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses", ())}
    main = states.get("main", {})
    if message := main.get("terminated", {}).get("message"):
        return " ".join(message.split())
    waiting = main.get("waiting", {})
    if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
        return " ".join(f"{waiting['reason']}: {waiting.get('message', '')}".split())
    conditions = pod.get("status", {}).get("conditions", ())
    unscheduled = [each for each in conditions if each.get("type") == "PodScheduled" and each.get("status") == "False"]
    return " ".join(str(unscheduled[0].get("message", "")).split()) if unscheduled else ""


def _last_error(log: str) -> str:
    """The last error of a step's or a driver's log; empty if there is none."""
    found = ""
    for line in log.splitlines():
        if match := re.match(r"error: (?:[\w@]+: )?(.*)", line):
            if not match[1].startswith("not finished"):  # which refers to the line before it
                found = match[1]
        elif match := re.match(r"F\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] (?!failed to execute component)(.*)", line):
            found = match[1]
    return found


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _fnv(text: str) -> int:
    """The hash by which Argo names nodes and pods: 32-bit FNV-1a."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
