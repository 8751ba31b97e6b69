"""The Volcano job of a stage: TorchX's, with what this workflow changes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco.core.environment import WORK
from peco.core.errors import PecoError
from pipelines.components import POD_SECURITY
from pipelines.jobs.job import Job
from pipelines.workflow import environment, kubernetes_names

GROUP, VERSION, PLURAL = "batch.volcano.sh", "v1alpha1", "jobs"
# Added to the ranks' grace period before Kubernetes kills the pod: torchrun ends after its ranks.
SPARE_SECONDS = 15
# A job that has ended is removed by its launcher, or after this time if that was killed.
FINISHED_SECONDS = 3600


@dataclass(frozen=True)
class JobSettings:
    """The part of a job that depends on the cluster."""

    namespace: str
    image: str
    pull_policy: str
    claim: str
    path: str  # of the shared volume, here and in the pods
    service_account: str
    secret: str
    certificates: str  # config map with the key ca.crt
    owner: dict[str, Any] | None  # reference to the pod with which the job is deleted


def read_settings(env: Mapping[str, str]) -> JobSettings:
    """The settings from the environment.

    Raises:
        PecoError: a variable is missing or wrong, or the current directory is not on the shared volume.
    """
    for variable, meaning in (
        (environment.NAMESPACE, "the namespace the job runs in"),
        (environment.IMAGE, "the image it runs from"),
        (environment.VOLUME_CLAIM, "the claim of the volume this directory is on"),
    ):
        if not variable.is_set(env):
            raise PecoError(f"{variable.name}: not set; {environment.SCHEDULER.name}=kubernetes needs {meaning}")
    path = environment.VOLUME_PATH.text(env)
    for folder, name in ((Path.cwd(), "the current directory"), (Path(WORK.text(env)).resolve(), WORK.name)):
        if not folder.is_relative_to(Path(path).resolve()):
            raise PecoError(
                f"{name} ({folder}) is not on the shared volume; the job sees only {environment.VOLUME_PATH.name}={path}"
            )
    if environment.POD_NAME.is_set(env) != environment.POD_UID.is_set(env):
        raise PecoError(f"{environment.POD_NAME.name}, {environment.POD_UID.name}: set both, or neither")
    owner: dict[str, Any] | None = None
    if environment.POD_NAME.is_set(env):
        owner = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": environment.POD_NAME.text(env),
            "uid": environment.POD_UID.text(env),
        }
        owner |= {"controller": False, "blockOwnerDeletion": False}
    return JobSettings(
        namespace=kubernetes_names.namespace(environment.NAMESPACE, env),
        image=kubernetes_names.image(environment.IMAGE, env),
        pull_policy=kubernetes_names.pull_policy(env),
        claim=kubernetes_names.object_name(environment.VOLUME_CLAIM, env),
        path=path,
        service_account=kubernetes_names.object_name(environment.SERVICE_ACCOUNT, env) or "default",
        secret=kubernetes_names.object_name(environment.JOB_SECRET, env),
        certificates=kubernetes_names.object_name(environment.CA_CONFIGMAP, env),
        owner=owner,
    )


def scheduler_options(job: Job, settings: JobSettings) -> dict[str, Any]:
    """Options of TorchX's scheduler."""
    return {
        "namespace": settings.namespace,
        "queue": job.resources.queue or "default",
        "service_account": settings.service_account,
        "priority_class": job.resources.priority or None,
        "validate_spec": False,  # it would ask the cluster in a dry run
        "reserved_millicpu": 0,
        "reserved_memmb": 0,
    }


def adjust(resource: Mapping[str, Any], job: Job, settings: JobSettings) -> dict[str, Any]:
    """The job to submit, made from TorchX's (as plain data)."""
    # TorchX generates a name and writes it into the metadata, labels, variables and the id of the rendezvous.
    plain = json.dumps(resource).replace(resource["metadata"]["name"], job.name)
    body: dict[str, Any] = json.loads(plain)
    body["metadata"] |= {"namespace": settings.namespace, "labels": _labels(job)}
    if settings.owner:
        body["metadata"]["ownerReferences"] = [settings.owner]
    spec = body["spec"]
    spec["minAvailable"] = len(spec["tasks"])  # all or none
    # Only the launcher starts a job again: an ended pod, failed or evicted, ends the job. (0 would become 3.)
    spec["maxRetry"] = 1
    spec["ttlSecondsAfterFinished"] = FINISHED_SECONDS
    spec["policies"] = [{"event": event, "action": "TerminateJob"} for event in ("PodFailed", "PodEvicted")]
    # Volcano's own policy blocks all but the job's pods, even Prometheus; k8s/base has one that doesn't.
    spec["plugins"]["svc"].append("--disable-network-policy")
    for task in spec["tasks"]:
        _adjust_pod(task["template"], job, settings)
    return body


def _labels(job: Job) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "peco", "peco.stage": job.app.roles[0].name}


def _adjust_pod(pod: dict[str, Any], job: Job, settings: JobSettings) -> None:
    resources = job.resources
    pod["metadata"]["labels"] |= _labels(job)
    spec = pod["spec"]
    [container] = spec["containers"]
    spec |= {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Process 1 of a container ignores SIGTERM until it has a handler, which a stage has only after its imports.
        "shareProcessNamespace": True,
        "activeDeadlineSeconds": resources.seconds,
        "terminationGracePeriodSeconds": job.grace + SPARE_SECONDS,
        "nodeSelector": resources.selector,
        "tolerations": resources.tolerated,
        # Without the policy each start walks through the whole volume.
        "securityContext": POD_SECURITY | {"fsGroupChangePolicy": "OnRootMismatch"},
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": resources.shared_memory}},
            {"name": "peco", "persistentVolumeClaim": {"claimName": settings.claim}},
        ],
    }
    capabilities = {"drop": ["ALL"]}
    if resources.capabilities:
        capabilities["add"] = resources.capabilities.split(",")
    container |= {
        "imagePullPolicy": settings.pull_policy,
        "resources": {"requests": resources.amounts, "limits": resources.amounts},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": capabilities},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "peco", "mountPath": settings.path}],
        "workingDir": os.getcwd(),
    }
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    if settings.certificates:
        spec["volumes"].append({"name": "ca", "configMap": {"name": settings.certificates}})
        container["volumeMounts"].append({"name": "ca", "mountPath": environment.CA_FOLDER, "readOnly": True})
        container["env"] += [{"name": name, "value": path} for name, path in environment.CA_VARIABLES.items()]
