"""Follow runs in the terminal until they end: one line for each change of a stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peco.core.errors import PecoError
from pipelines.kfp.client import Kubeflow, NoAnswerError

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # without an answer
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
UNKNOWN = (None, "RUNTIME_STATE_UNSPECIFIED")


@dataclass
class Followed:
    """A run and what has been said of it.

    Attributes:
        stages: the stage's name by the name of its task in Kubeflow.
    """

    run_id: str
    name: str
    stages: Mapping[str, str]
    states: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    def changes(self, run: Any) -> list[tuple[str, str]]:
        """The stages whose state is another than when last asked, with their states."""
        changed = []
        for task in _tasks(run):
            stage = self.stages.get(task.display_name)
            if stage and task.state not in UNKNOWN and self.states.get(stage) != task.state:
                self.states[stage] = task.state
                changed.append((stage, str(task.state)))
        return changed

    def failure(self, run: Any) -> str:
        """Which step failed, and of what; of the run itself where no step did."""
        tasks = _tasks(run)
        for task in tasks:
            if (stage := self.stages.get(task.display_name)) and task.state == "FAILED":
                return f"step {stage} failed: {_error(task, tasks) or 'its log says why'}"
        return _message(run.error) or "no step failed; the page of the run says more"


def follow(kubeflow: Kubeflow, runs: Sequence[Followed]) -> int:
    """Print what happens to the runs until all have ended.

    Returns:
        0 where all succeeded, else 1.

    Raises:
        PecoError: Kubeflow refuses to say more (the token is no longer valid, a run was deleted), or gives no answer for long.
    """
    status = 0
    heard = time.monotonic()
    while True:
        for followed in [run for run in runs if not run.ended]:
            try:
                run = kubeflow.get_run(followed.run_id)
            except NoAnswerError as error:
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    raise PecoError(f"{error}; the run goes on: {kubeflow.run_address(followed.run_id)}") from None
                break
            heard = time.monotonic()
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
    print(PecoError(f"error: {followed.name}: {reason}"), file=sys.stderr)
    return 1


def _tasks(run: Any) -> list[Any]:
    return list((run.run_details and run.run_details.task_details) or ())


def _error(task: Any, tasks: Sequence[Any]) -> str:
    """The error of a task, or of the tasks below it: what went wrong in its pod stands there."""
    below = [_error(other, tasks) for other in tasks if other.parent_task_id and other.parent_task_id == task.task_id]
    history = [_message(status.error) for status in reversed(task.state_history or ())]
    return next((text for text in (*below, _message(task.error), *history) if text), "")


def _message(error: Any) -> str:
    text = " ".join(str(error.message or "").split()) if error else ""
    return text if len(text) <= 500 else text[:500] + "…"
