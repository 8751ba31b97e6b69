"""Runs and pods as Kubeflow Pipelines 2.17.0 and Argo Workflows 4.0.5 have shown them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DATE = "2026-01-01T00:00:00Z"
# Of a run, and of a task, that has not ended.
NO_DATE, NO_TASK_DATE = "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z"
WORKFLOW = "peco-8h77p"


def moment(
    state: str, stages: Mapping[str, str] | None = None, *, driver: str = "SUCCEEDED", history: str = ""
) -> dict[str, Any]:
    """A run at one moment, as in the server's answer. A task is a node of Argo's workflow.

    Args:
        state: of the run.
        stages: a word for each task of the pipeline that has a node: OMITTED, PENDING (its pod waits), RUNNING, FAILING (its pod
            has failed, and Argo waits before it says so), FAILED, DRIVER FAILED, SUCCEEDED.
        driver: state of the driver of the run.
        history: earlier states of the run, separated by blanks.
    """
    ended = state in ("SUCCEEDED", "FAILED")
    whole = state if ended else "RUNNING"
    nodes = [
        _node("", whole, "(0)"),
        _node("(0)", whole, "(0).root-driver"),
        _node("(0).root-driver", driver, "(0).root-driver(0)"),
        _node("(0).root-driver(0)", driver, "(0).root"),
    ]
    if driver == "FAILED":
        nodes.append(_node("(0).root", "OMITTED"))
    else:
        nodes += [_node("(0).root", whole, "(0).root(0)"), _node("(0).root(0)", whole)]
    for name, word in (stages or {}).items():
        nodes += _step(f"(0).root(0).{name}", word)
    states = [*history.split(), state]
    return {
        "state": state,
        "state_history": [{"update_time": DATE, "state": each} for each in states],
        "finished_at": DATE if ended else NO_DATE,
        **({} if state == "PENDING" else {"run_details": {"task_details": nodes}}),
    }


def pod_name(node: str, template: str = "metadata-0-1-system-container-impl") -> str:
    """The name that Argo gives the pod of a node of WORKFLOW."""
    return f"{WORKFLOW}-{template}-{_hash(WORKFLOW + '(0).' + node)}"


def failed_pod(message: str = "") -> dict[str, Any]:
    """A step's pod whose main container has failed with this termination message."""
    ended = {"exitCode": 1, "reason": "Error", "startedAt": DATE, "finishedAt": DATE}
    main = {"name": "main", "state": {"terminated": {**ended, **({"message": message} if message else {})}}}
    wait = {"name": "wait", "state": {"terminated": {**ended, "exitCode": 0, "reason": "Completed"}}}
    return {"kind": "Pod", "status": {"phase": "Failed", "containerStatuses": [main, wait]}}


def waiting_pod(reason: str, message: str) -> dict[str, Any]:
    """A step's pod whose main container can't start."""
    main = {"name": "main", "state": {"waiting": {"reason": reason, "message": message}}}
    wait = {"name": "wait", "state": {"running": {"startedAt": DATE}}}
    return {"kind": "Pod", "status": {"phase": "Pending", "containerStatuses": [main, wait]}}


def _step(node: str, word: str) -> list[dict[str, Any]]:
    """The nodes of one task of the pipeline."""
    if word == "OMITTED":
        return [_node(f"{node}-driver", "OMITTED"), _node(node, "OMITTED")]
    if word == "DRIVER FAILED":
        failed = [_node(f"{node}-driver", "FAILED"), _node(f"{node}-driver(0)", "FAILED")]
        return [*failed, _node(node, "OMITTED")]
    whole = "RUNNING" if word in ("PENDING", "FAILING") else word
    pod = "FAILED" if word == "FAILING" else word
    return [
        _node(f"{node}-driver", "SUCCEEDED", f"{node}-driver(0)"),
        _node(f"{node}-driver(0)", "SUCCEEDED", node),
        _node(node, whole, f"{node}(0)"),
        _node(f"{node}(0)", whole, f"{node}(0).executor"),
        _node(f"{node}(0).executor", whole, f"{node}(0).executor(0)"),
        _node(f"{node}(0).executor(0)", pod),
    ]


def _node(name: str, state: str, child: str = "") -> dict[str, Any]:
    """A task in the server's answer: it has no error, no pod of its own, and no state if Argo has left it out."""
    full = WORKFLOW + name
    answer: dict[str, Any] = {
        "run_id": "run-0",
        "task_id": f"task-{_hash(full)}",
        "display_name": full.rpartition(".")[2],
        "create_time": DATE,
        "start_time": DATE,
        "end_time": NO_TASK_DATE if state in ("RUNNING", "PENDING") else DATE,
    }
    if state != "OMITTED":
        answer["state"] = state
        answer["state_history"] = [{"update_time": DATE, "state": state}]
    else:
        answer["state_history"] = [{"update_time": DATE}]
    return {**answer, "child_tasks": [{"pod_name": f"{WORKFLOW}-{_hash(WORKFLOW + child)}"}]} if child else answer


def _hash(text: str) -> int:
    """32-bit FNV-1a, of which Argo makes ids."""
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) % 2**32
    return value
