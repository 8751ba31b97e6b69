"""What the pods of a job say about it: why it waits, why it ended. Pods are plain data, as the API gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Pod = Mapping[str, Any]

# Reasons of a waiting container that don't go by themselves.
STUCK = {
    "CreateContainerConfigError": "its container can't be set up",
    "CreateContainerError": "its container can't be made",
    "ErrImageNeverPull": "its image can't be pulled",
    "ErrImagePull": "its image can't be pulled",
    "ImageInspectError": "its image can't be pulled",
    "ImagePullBackOff": "its image can't be pulled",
    "InvalidImageName": "its image has no valid name",
    "RunContainerError": "its container can't be started",
}
# Reasons of a failed pod that have nothing to do with what ran in it.
TAKEN = ("Evicted", "NodeLost", "NodeShutdown", "Preempted", "Preempting", "Shutdown", "Terminated")


@dataclass(frozen=True)
class End:
    """How a pod came to its end."""

    at: datetime
    kind: str  # failed, memory, time, taken
    pod: str
    status: int = 1  # of its container
    reason: str = ""


def name(pod: Pod) -> str:
    return str(pod["metadata"]["name"])


def container(pod: Pod) -> Mapping[str, Any]:
    """State of the pod's container: `{"running": …}` and so on; empty where it isn't known yet."""
    found = pod.get("status", {}).get("containerStatuses") or [{}]
    state: Mapping[str, Any] = found[0].get("state") or {}
    return state


def has_started(pod: Pod) -> bool:
    return "running" in container(pod) or "terminated" in container(pod)


def has_ended(pod: Pod) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def end(pod: Pod) -> End | None:
    """How the pod was ended or is being ended, None while it is well."""
    status = pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return None
    done = container(pod).get("terminated", {})
    disruption: Mapping[str, Any] = next(
        (c for c in status.get("conditions") or () if c["type"] == "DisruptionTarget" and c["status"] == "True"), {}
    )
    deleted = pod["metadata"].get("deletionTimestamp")
    if disruption or deleted or status.get("reason") in TAKEN:
        if disruption.get("lastTransitionTime"):
            at = time(disruption["lastTransitionTime"])
        elif deleted:  # this is when the grace is over
            at = time(deleted) - timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        else:
            at = time(done.get("finishedAt"))
        reason = disruption.get("message") or status.get("message") or disruption.get("reason") or status.get("reason")
        return End(at, "taken", name(pod), reason=str(reason or ""))
    if status.get("phase") != "Failed":
        return None
    kind = "failed"
    if done.get("reason") == "OOMKilled":
        kind = "memory"
    elif status.get("reason") == "DeadlineExceeded":
        kind = "time"
    return End(time(done.get("finishedAt")), kind, name(pod), done.get("exitCode", 1), str(status.get("message") or ""))


def first_end(pods: Iterable[Pod]) -> End | None:
    """The end that brought the others about. Ends of the same second: a failure is the cause of a deletion, not the reverse."""
    ends = [found for pod in pods if (found := end(pod))]
    return min(ends, key=lambda e: (e.at, e.kind == "taken", e.pod)) if ends else None


def stuck(pods: Iterable[Pod]) -> str | None:
    """Why a pod can't start although it has a node, None where each can."""
    for pod in pods:
        waiting = container(pod).get("waiting", {})
        if (reason := waiting.get("reason")) in STUCK:
            return f"{STUCK[reason]} ({' '.join(str(waiting.get('message') or reason).split())})"
    return None


def unscheduled(pods: Iterable[Pod]) -> str | None:
    """Why a pod has no node, in the scheduler's words."""
    for pod in pods:
        for condition in pod.get("status", {}).get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return str(condition.get("message") or condition.get("reason") or "no node yet")
    return None


def time(text: str | None) -> datetime:
    """A time of the API; where it is missing, the last one there is."""
    return datetime.fromisoformat(text) if text else datetime.max.replace(tzinfo=UTC)
