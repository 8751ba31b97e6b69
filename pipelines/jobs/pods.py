"""The states of a job's pods: the reasons why it waits or has ended. Pods are plain data, as the API returns them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Pod = Mapping[str, Any]

# Reasons of a waiting container that don't go away by themselves.
STUCK_REASONS = {
    "CreateContainerConfigError": "its container can't be set up",
    "CreateContainerError": "its container can't be created",
    "ErrImageNeverPull": "its image can't be pulled",
    "ErrImagePull": "its image can't be pulled",
    "ImageInspectError": "its image can't be pulled",
    "ImagePullBackOff": "its image can't be pulled",
    "InvalidImageName": "its image has no valid name",
    "RunContainerError": "its container can't be started",
}
# Reasons of a failed pod that have nothing to do with the program that ran in it.
EVICTION_REASONS = ("Evicted", "NodeLost", "NodeShutdown", "Preempted", "Preempting", "Shutdown", "Terminated")
# Reasons of a pod that its node didn't take, which another node may, or the same one later.
_REJECTION = re.compile(r"OutOf.+|UnexpectedAdmissionError|NodeAffinity")
# Kubelet's words about a pod that it evicts for what the pod itself uses, however much room the node has.
_OWN_LIMIT = re.compile(
    "Usage of EmptyDir volume .+ exceeds the limit|Pod ephemeral local storage usage exceeds the total limit|"
    "exceeded its local ephemeral storage limit"
)
# Of ends that are never the consequence of another pod's.
_FIRST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class End:
    """The end of a pod."""

    time: datetime
    kind: str  # failed, memory, time_limit, storage, evicted, rejected
    pod: str
    status: int = 1  # of its container
    reason: str = ""  # of the pod; empty where its container's end explains it


def name(pod: Pod) -> str:
    """Its name."""
    return str(pod["metadata"]["name"])


def container_state(pod: Pod) -> Mapping[str, Any]:
    """State of the pod's container: `{"running": …}` and so on; empty where it isn't known yet."""
    found = pod.get("status", {}).get("containerStatuses") or [{}]
    state: Mapping[str, Any] = found[0].get("state") or {}
    return state


def has_started(pod: Pod) -> bool:
    """True if its container runs or has ended."""
    state = container_state(pod)
    return "running" in state or "terminated" in state


def has_succeeded(pod: Pod) -> bool:
    """True if its container has ended with status 0. The pod's own phase follows a second later."""
    return bool(container_state(pod).get("terminated", {}).get("exitCode") == 0)


def has_ended(pod: Pod) -> bool:
    """True if it has succeeded or failed, or its container has ended: the phase follows a second later."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or "terminated" in container_state(pod)


def end(pod: Pod) -> End | None:
    """The end of a pod that has failed or is being evicted; None for any other."""
    status = pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return None
    terminated = container_state(pod).get("terminated", {})
    disruption: Mapping[str, Any] = next(
        (c for c in status.get("conditions") or () if c["type"] == "DisruptionTarget" and c["status"] == "True"), {}
    )
    deleted = pod["metadata"].get("deletionTimestamp")
    message = " ".join(str(status.get("message") or status.get("reason") or "").split()).rstrip(".")
    if status.get("phase") == "Failed" and not terminated and _REJECTION.fullmatch(str(status.get("reason"))):
        return End(_FIRST, "rejected", name(pod), reason=message)
    if status.get("reason") == "Evicted" and _OWN_LIMIT.search(message):
        return End(_FIRST, "storage", name(pod), reason=message)
    if disruption or deleted or status.get("reason") in EVICTION_REASONS:
        if disruption.get("lastTransitionTime"):
            time = parse_time(disruption["lastTransitionTime"])
        elif deleted:  # the time at which its grace period ends
            time = parse_time(deleted) - timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        else:
            time = parse_time(terminated.get("finishedAt"))
        reason = disruption.get("message") or message or disruption.get("reason")
        return End(time, "evicted", name(pod), reason=str(reason or ""))
    if status.get("phase") != "Failed":
        return None
    kind = "failed"
    if terminated.get("reason") == "OOMKilled":
        kind = "memory"
    elif status.get("reason") == "DeadlineExceeded":
        kind = "time_limit"
    time, code = parse_time(terminated.get("finishedAt")), terminated.get("exitCode", 1)
    return End(time, kind, name(pod), code, "" if terminated else message)


def first_end(pods: Iterable[Pod]) -> End | None:
    """The earliest end, which caused the others. In the same second a failure is the cause of a deletion, not the reverse."""
    ends = [found for pod in pods if (found := end(pod))]
    return min(ends, key=lambda e: (e.time, e.kind == "evicted", e.pod)) if ends else None


def stuck(pods: Iterable[Pod]) -> str | None:
    """The reason why a pod that has a node can't start; None if all can."""
    for pod in pods:
        waiting = container_state(pod).get("waiting", {})
        if (reason := waiting.get("reason")) in STUCK_REASONS:
            return f"{STUCK_REASONS[reason]} ({' '.join(str(waiting.get('message') or reason).split())})"
    return None


def unscheduled(pods: Iterable[Pod]) -> str | None:
    """The scheduler's reason why a pod has no node; None if all have one."""
    for pod in pods:
        for condition in pod.get("status", {}).get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return str(condition.get("message") or condition.get("reason") or "no node yet")
    return None


def parse_time(text: str | None) -> datetime:
    """A time of the API; the latest possible one where it is missing."""
    return datetime.fromisoformat(text) if text else datetime.max.replace(tzinfo=UTC)
