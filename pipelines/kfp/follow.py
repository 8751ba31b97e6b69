"""Follow runs in the terminal until they end: one line for each change of a stage's state, and why a run failed."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peco.core.errors import PecoError
from pipelines.kfp.client import Kubeflow, NoAnswerError
from pipelines.kfp.pods import Pod, describe_command, tasks_of

POLL_SECONDS = 5.0
# Time without an answer after which following ends.
PATIENCE_SECONDS = 600.0
# Time after which a pod that has not started is looked at, and between two looks.
START_SECONDS = 60.0
# A run has failed up to two seconds before its tasks show it.
SETTLING_POLLS = 2
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
SUCCEEDED = ("SUCCEEDED", "SKIPPED")
UNKNOWN = (None, "RUNTIME_STATE_UNSPECIFIED")  # of tasks that Argo has left out
ROOT_DRIVER = "root-driver"


@dataclass(frozen=True)
class Step:
    """A step of a pipeline: the stage's name, and Argo's template of its pod."""

    stage: str
    template: str


@dataclass
class Followed:
    """A run and what was last reported of it.

    Attributes:
        steps: the steps by the names of their tasks in Kubeflow.
        env: environment variables, for the namespace of the pods.
    """

    run_id: str
    name: str
    steps: Mapping[str, Step]
    env: Mapping[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    waits: dict[str, str] = field(default_factory=dict)  # why pods wait, by stage
    looked: float = field(default_factory=time.monotonic)  # at the pods
    failed_pods: int = 0
    canceling: bool = False
    settling: int = 0

    def changes(self, run: Any) -> list[tuple[str, str]]:
        """The stages whose state has changed since the last call, with their states."""
        changed = []
        for task in tasks_of(run):
            step = self.steps.get(task.display_name)
            if step and task.state not in UNKNOWN and self.states.get(step.stage) != task.state:
                self.states[step.stage] = task.state
                changed.append((step.stage, str(task.state)))
        return changed

    def running(self) -> list[str]:
        """The names of the tasks that run."""
        return [task for task, step in self.steps.items() if self.states.get(step.stage) == "RUNNING"]

    def pods(self, run: Any, task: str) -> Iterator[Pod]:
        """The pods of a task, that of the last attempt first."""
        names = [str(other.display_name) for other in tasks_of(run)]
        attempt = _highest(names, re.escape(task))
        for number in range(_highest(names, "executor"), -1, -1):
            node = f"root(0).{task}({attempt}).executor({number})"
            if pod := Pod.of(run, node, self.steps[task].template, self.env):
                yield pod

    def notices(self, run: Any, kubeflow: Kubeflow) -> list[str]:
        """Events to report besides the states: the run is being terminated, a pod failed or does not start."""
        found = []
        if run.state == "CANCELING" and not self.canceling:
            self.canceling = True
            found.append("is being terminated; waiting for its steps to end")
        executors = [
            str(task.state) for task in tasks_of(run) if re.fullmatch(r"executor\(\d+\)", str(task.display_name))
        ]
        failed = executors.count("FAILED")
        if failed > self.failed_pods and not self.canceling:
            # Until Kubeflow calls the step failed pass up to a minute.
            found += [f"{self.steps[task].stage}: {why}" for task, why in self._failed(run, kubeflow)]
        self.failed_pods = failed
        if "PENDING" not in executors:
            self.looked = time.monotonic()
        elif time.monotonic() - self.looked >= START_SECONDS:
            self.looked = time.monotonic()
            found += self._waiting(run, kubeflow, executors.count("PENDING"))
        return found

    def _failed(self, run: Any, kubeflow: Kubeflow) -> Iterator[tuple[str, str]]:
        for task in self.running():
            reason = next((text for pod in self.pods(run, task) if (text := pod.state(kubeflow))), "")
            if reason:
                yield task, f"its pod failed: {reason}"

    def _waiting(self, run: Any, kubeflow: Kubeflow, count: int) -> Iterator[str]:
        """New notices on the `count` steps whose pods have not started; Kubeflow doesn't say which these are."""
        pods = {self.steps[task].stage: pod for task in self.running() if (pod := next(self.pods(run, task), None))}
        reasons = {stage: f"waits: {reason}" for stage, pod in pods.items() if (reason := pod.state(kubeflow))}
        silent = {stage: pod for stage, pod in pods.items() if stage not in reasons}
        unexplained = count - len(reasons)
        if unexplained == len(silent):
            for stage, pod in silent.items():
                reasons[stage] = f"waits: its pod has not started; `{describe_command(pod)}` shows why"
        elif 0 < unexplained < len(silent):
            which = f"`{describe_command(*silent.values())}` shows which"
            reasons[", ".join(silent)] = f"{unexplained} of their {len(silent)} pods not started; {which}"
        for stage, reason in reasons.items():
            if self.waits.get(stage) != reason:
                self.waits[stage] = reason
                yield f"{stage}: {reason}"


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
                _report(followed, f"{stage}: {state.lower()}")
            for notice in followed.notices(run, kubeflow):
                _report(followed, notice)
            if run.state in ENDED and _is_settled(followed, run):
                followed.ended = True
                status = max(status, _conclude(followed, run, kubeflow))
        if all(run.ended for run in runs):
            return status
        time.sleep(POLL_SECONDS)


def _report(followed: Followed, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {followed.name}  {text}", flush=True)


def _is_settled(followed: Followed, run: Any) -> bool:
    """False for a run that has just failed, while its tasks are still those of before."""
    if run.state in SUCCEEDED or _was_terminated(run) or _failed_task(followed, run):
        return True
    followed.settling += 1
    return followed.settling > SETTLING_POLLS


def _conclude(followed: Followed, run: Any, kubeflow: Kubeflow) -> int:
    if run.state in SUCCEEDED:
        unseen = [step.stage for step in followed.steps.values() if followed.states.get(step.stage) not in SUCCEEDED]
        note = f" (Kubeflow has not reported the end of {', '.join(unseen)})" if unseen else ""
        print(f"{time.strftime('%H:%M:%S')}  {followed.name}: succeeded{note}", flush=True)
        return 0
    if _was_terminated(run):
        reason = "was terminated; finished work is kept, and the same command submits it again"
    else:
        reason = _failure(followed, run, kubeflow)
    print(f"error: {followed.name}: {reason}", file=sys.stderr)
    return 1


def _was_terminated(run: Any) -> bool:
    """True if somebody ended the run: Kubeflow calls it failed in the end. What was before a retry doesn't count."""
    states = [status.state for status in run.state_history or ()]
    last = next((state for state in reversed(states) if state in ("CANCELING", "RUNNING")), None)
    return run.state == "CANCELED" or last == "CANCELING"


def _failed_task(followed: Followed, run: Any) -> str:
    """The name of the task that ended the run: a step's, a driver's, or empty if none shows."""
    names = [ROOT_DRIVER, *(f"{task}-driver" for task in followed.steps), *followed.steps]
    failed = {task.display_name for task in tasks_of(run) if task.state == "FAILED"}
    return next((name for name in names if name in failed), "")


def _failure(followed: Followed, run: Any, kubeflow: Kubeflow) -> str:
    """The failed step and its reason, or the place that shows it."""
    task, page = _failed_task(followed, run), kubeflow.run_address(followed.run_id)
    if not task:
        return f"failed, but Kubeflow does not report which step; see its page: {page}"
    if task in followed.steps:
        what, advice = f"step {followed.steps[task].stage} failed", ""
        pods = list(followed.pods(run, task))
    else:
        node, template = f"root(0).{task}(0)", "system-container-driver"
        what = (
            f"Kubeflow's driver of step {followed.steps[task.removesuffix('-driver')].stage} failed"
            if task != ROOT_DRIVER
            else ""
        )
        if task == ROOT_DRIVER:
            node, template = f"{task}(0)", "system-dag-driver"
            what = "Kubeflow's driver of the run failed, before the first step"
        pod = Pod.of(run, node, template, followed.env)
        pods = [pod] if pod else []
        advice = "; check `defaultPipelineRoot` in the ConfigMap kfp-launcher, and Kubeflow's bucket and its keys"
    if reason := next((text for pod in pods if (text := pod.failure(kubeflow))), ""):
        return f"{what}: {reason}{advice}"
    command = f"`{pods[0].log_command()}` or " if pods else ""
    return f"{what}; {command}{page} shows why{advice}"


def _highest(names: Sequence[str], pattern: str) -> int:
    """The highest number of the nodes `NAME(NUMBER)`, 0 without one."""
    found = [re.fullmatch(rf"{pattern}\((\d+)\)", name) for name in names]
    return max((int(match[1]) for match in found if match), default=0)
