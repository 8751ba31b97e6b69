"""Follow runs in the terminal until they end: one line for each change of a stage's state."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peco.core.errors import PecoError
from pipelines.kfp.client import Kubeflow, NoAnswerError

POLL_SECONDS = 5.0
# Time without an answer after which following ends.
PATIENCE_SECONDS = 600.0
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
UNKNOWN = (None, "RUNTIME_STATE_UNSPECIFIED")


@dataclass
class Followed:
    """A run and its states as last reported.

    Attributes:
        stages: the stage's name by the name of its task in Kubeflow.
    """

    run_id: str
    name: str
    stages: Mapping[str, str]
    states: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    def changes(self, run: Any) -> list[tuple[str, str]]:
        """The stages whose state has changed since the last call, with their states."""
        changed = []
        for task in _tasks(run):
            stage = self.stages.get(task.display_name)
            if stage and task.state not in UNKNOWN and self.states.get(stage) != task.state:
                self.states[stage] = task.state
                changed.append((stage, str(task.state)))
        return changed

    def failure(self, run: Any) -> str:
        """The step that failed and its error, or the error of the run if no step failed."""
        tasks = _tasks(run)
        for task in tasks:
            if (stage := self.stages.get(task.display_name)) and task.state == "FAILED":
                return f"step {stage} failed: {_error(task, tasks) or 'see its log'}"
        return _message(run.error) or "no step failed; see the page of the run"


def follow(kubeflow: Kubeflow, runs: Sequence[Followed]) -> int:
    """Print each change of the runs until all have ended.

    Returns:
        0 if all succeeded, else 1.

    Raises:
        PecoError: Kubeflow refuses an answer (the token is no longer valid, a run was deleted), or gives none for PATIENCE_SECONDS.
    """
    status = 0
    last_answer = time.monotonic()
    while True:
        for followed in [run for run in runs if not run.ended]:
            try:
                run = kubeflow.get_run(followed.run_id)
            except NoAnswerError as error:
                if time.monotonic() - last_answer > PATIENCE_SECONDS:
                    raise PecoError(f"{error}; the run continues: {kubeflow.run_address(followed.run_id)}") from None
                break
            last_answer = time.monotonic()
            for stage, state in followed.changes(run):
                print(f"{time.strftime('%H:%M:%S')}  {followed.name}  {stage}: {state.lower()}", flush=True)
            if run.state in ENDED:
                followed.ended = True
                status = max(status, _conclude(followed, run))
        if all(run.ended for run in runs):
            return status
        time.sleep(POLL_SECONDS)


def _conclude(followed: Followed, run: Any) -> int:
    if run.state in ("SUCCEEDED", "SKIPPED"):
        print(f"{time.strftime('%H:%M:%S')}  {followed.name}: succeeded", flush=True)
        return 0
    reason = "cancelled" if run.state == "CANCELED" else followed.failure(run)
    print(f"error: {followed.name}: {reason}", file=sys.stderr)
    return 1


def _tasks(run: Any) -> list[Any]:
    return list((run.run_details and run.run_details.task_details) or ())


def _error(task: Any, tasks: Sequence[Any]) -> str:
    """The error of the tasks below a task, where the error of its pod is, or else its own."""
    below = [_error(other, tasks) for other in tasks if other.parent_task_id and other.parent_task_id == task.task_id]
    history = [_message(status.error) for status in reversed(task.state_history or ())]
    return next((text for text in (*below, _message(task.error), *history) if text), "")


def _message(error: Any) -> str:
    text = " ".join(str(error.message or "").split()) if error else ""
    return text if len(text) <= 500 else text[:500] + "…"
