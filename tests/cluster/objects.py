"""The objects of the tests on a cluster: namespace, accounts, queue and claim as in k8s/overlays, and the client's pod."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LABEL = "peco.test"  # marks what the tests made, and may therefore remove
CLUSTER_WIDE = ("Namespace", "Queue", "ClusterRole", "ClusterRoleBinding")  # these get the name of the namespace
CLAIM = "peco"
CLIENT = "peco-client"
VOLUME = "/peco"

Json = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """The variables of `make test-cluster`."""

    image: str  # PECO_IMAGE
    namespace: str  # NS; also the name of the queue and the cluster role
    storage_class: str  # STORAGE_CLASS, one with ReadWriteMany; without it the default one, with ReadWriteOnce

    @staticmethod
    def read(env: Mapping[str, str] = os.environ) -> Settings:
        """The settings; ends the tests where one is missing."""
        if not env.get("PECO_IMAGE"):
            pytest.exit("PECO_IMAGE: not set; name the image of steps and jobs", 2)
        return Settings(env["PECO_IMAGE"], env.get("NS") or "peco-test", env.get("STORAGE_CLASS", ""))


def labelled(entry: Json) -> Json:
    """The object with the label of the tests."""
    entry["metadata"].setdefault("labels", {})[LABEL] = "true"
    return entry


def manifests(settings: Settings) -> list[Json]:
    """The objects of the production overlay, without monitoring, for the tests' namespace, with the small volume of the trial."""

    def render(overlay: str) -> list[Json]:
        done = subprocess.run(
            ["kubectl", "kustomize", str(ROOT / "k8s/overlays" / overlay)], capture_output=True, text=True, check=True
        )
        return [entry for entry in yaml.safe_load_all(done.stdout) if entry]

    def rename(value: Any) -> None:
        """Replace the namespace, wherever it is named."""
        if isinstance(value, dict):
            if value.get("namespace") in ("peco", "kubeflow"):
                value["namespace"] = settings.namespace
            value = list(value.values())
        if isinstance(value, list):
            for part in value:
                rename(part)

    unused = ("ConfigMap", "PodMonitor", "PrometheusRule", "PersistentVolumeClaim")
    objects = [entry for entry in render("production") if entry["kind"] not in unused]
    [claim] = [entry for entry in render("trial") if entry["kind"] == "PersistentVolumeClaim"]
    if settings.storage_class:
        claim["spec"] |= {"storageClassName": settings.storage_class, "accessModes": ["ReadWriteMany"]}
    rename([*objects, claim])
    for entry in objects:
        if entry["kind"] in CLUSTER_WIDE:
            labelled(entry)["metadata"]["name"] = settings.namespace
        if entry["kind"] == "ClusterRoleBinding":
            entry["roleRef"]["name"] = settings.namespace
    return [*objects, claim]


def client_pod(settings: Settings) -> Json:
    """A pod like that of a step, which requests no CPU: on a small cluster the jobs need all."""
    container = {
        "name": "client",
        "image": settings.image,
        # bash collects the children of processes that were killed.
        "command": ["bash", "-c", "trap 'exit 0' TERM; sleep infinity & wait"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "peco", "mountPath": VOLUME}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": CLIENT, "labels": {"app.kubernetes.io/component": "peco-step"}},
        "spec": {
            "serviceAccountName": "peco-step",
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "peco", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
    }  # fmt: skip
