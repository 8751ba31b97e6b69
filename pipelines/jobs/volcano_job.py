"""The Volcano job of a stage: what TorchX makes, and what has to be different.

Environment:
    PECO_NAMESPACE, PECO_IMAGE: where the job runs, and from which image
    PECO_VOLUME_CLAIM, PECO_VOLUME_PATH: the shared volume, and where it is mounted, here and in the job (/peco)
    PECO_SERVICE_ACCOUNT: service account of the job's pods, which get no token (the namespace's default one)
    PECO_JOB_SECRET: a secret whose keys become environment variables of the job, for images that are read from a bucket
    PECO_POD_NAME, PECO_POD_UID: the pod that owns the job: where that goes, the job goes
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from pipelines.jobs.job import Job

GROUP, VERSION, PLURAL = "batch.volcano.sh", "v1alpha1", "jobs"
# The image's user and group (k8s/Dockerfile), to whom the files on the shared volume belong.
USER = 10001
# Between the end that the ranks are given and the one that Kubernetes enforces: torchrun has to end after its ranks.
SPARE_SECONDS = 15


@dataclass(frozen=True)
class Place:
    """Where a job runs."""

    namespace: str
    image: str
    claim: str
    path: str
    service_account: str
    secret: str
    owner: dict[str, Any] | None


def place(env: Mapping[str, str]) -> Place:
    """Read the environment.

    Raises:
        PecoError: a variable is missing, or the current directory is not on the shared volume.
    """
    for name, meaning in (
        ("PECO_NAMESPACE", "the namespace the job runs in"),
        ("PECO_IMAGE", "the image it runs from"),
        ("PECO_VOLUME_CLAIM", "the claim of the volume this directory is on"),
    ):
        if not env.get(name):
            raise PecoError(f"{name}: not set; PECO_SCHEDULER=kubernetes needs {meaning}")
    path = env.get("PECO_VOLUME_PATH") or "/peco"
    work = Path(env.get("PECO_WORK") or ".work").resolve()
    for folder, name in ((Path.cwd(), "the current directory"), (work, "PECO_WORK")):
        if not folder.is_relative_to(Path(path).resolve()):
            raise PecoError(f"{name} ({folder}) is not on the shared volume; the job sees only PECO_VOLUME_PATH={path}")
    if bool(env.get("PECO_POD_NAME")) != bool(env.get("PECO_POD_UID")):
        raise PecoError("PECO_POD_NAME, PECO_POD_UID: set both, or none")
    owner: dict[str, Any] | None = None
    if env.get("PECO_POD_NAME"):
        owner = {"apiVersion": "v1", "kind": "Pod", "name": env["PECO_POD_NAME"], "uid": env["PECO_POD_UID"]}
        owner |= {"controller": False, "blockOwnerDeletion": False}
    return Place(
        namespace=env["PECO_NAMESPACE"],
        image=env["PECO_IMAGE"],
        claim=env["PECO_VOLUME_CLAIM"],
        path=path,
        service_account=env.get("PECO_SERVICE_ACCOUNT") or "default",
        secret=env.get("PECO_JOB_SECRET") or "",
        owner=owner,
    )


def options(job: Job, at: Place) -> dict[str, Any]:
    """What TorchX's scheduler is to be told."""
    return {
        "namespace": at.namespace,
        "queue": job.given.queue or "default",
        "service_account": at.service_account,
        "priority_class": job.given.priority or None,
        "validate_spec": False,  # it would ask the cluster in a dry run
        "reserved_millicpu": 0,
        "reserved_memmb": 0,
    }


def adjust(resource: Mapping[str, Any], job: Job, at: Place) -> dict[str, Any]:
    """The job to submit, made of TorchX's (as plain data)."""
    # TorchX makes up a name and writes it into the metadata, labels, variables and the id of the rendezvous.
    plain = json.dumps(resource).replace(resource["metadata"]["name"], job.name)
    body: dict[str, Any] = json.loads(plain)
    body["metadata"] |= {"namespace": at.namespace, "labels": {"app.kubernetes.io/part-of": "peco", **_labels(job)}}
    if at.owner:
        body["metadata"]["ownerReferences"] = [at.owner]
    spec = body["spec"]
    spec["minAvailable"] = len(spec["tasks"])  # all or none
    # Only the pipeline's step starts a job again: an ended pod, failed or evicted, ends the job. (0 would become 3.)
    spec["maxRetry"] = 1
    spec["policies"] = [{"event": event, "action": "TerminateJob"} for event in ("PodFailed", "PodEvicted")]
    # Volcano's own policy shuts out everything but the job's pods, Prometheus too; k8s/base has one that doesn't.
    spec["plugins"]["svc"].append("--disable-network-policy")
    for task in spec["tasks"]:
        _adjust_pod(task["template"], job, at)
    return body


def _labels(job: Job) -> dict[str, str]:
    return {"peco.stage": job.app.roles[0].name}


def _adjust_pod(pod: dict[str, Any], job: Job, at: Place) -> None:
    given = job.given
    pod["metadata"]["labels"] |= {"app.kubernetes.io/part-of": "peco", **_labels(job)}
    spec = pod["spec"]
    [container] = spec["containers"]
    spec |= {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": given.seconds,
        "terminationGracePeriodSeconds": job.grace + SPARE_SECONDS,
        "nodeSelector": given.selector,
        "tolerations": given.tolerated,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # else each start walks through the whole volume
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": given.shared_memory}},
            {"name": "peco", "persistentVolumeClaim": {"claimName": at.claim}},
        ],
    }
    amounts = {"cpu": str(given.cpu), "memory": given.memory}
    if given.gpus:
        amounts["nvidia.com/gpu"] = str(given.gpus)
    container |= {
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "peco", "mountPath": at.path}],
        "workingDir": os.getcwd(),
    }
    if at.secret:
        container["envFrom"] = [{"secretRef": {"name": at.secret}}]
