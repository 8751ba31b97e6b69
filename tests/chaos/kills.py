"""Kills of one stage: start, kill, start again, …, and a run to the end, which must give the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from .moments import Kill, Moment
from .project import Ended, Project

POLL_SECONDS = 0.005
STOPPED_SECONDS = 1.5  # between SIGSTOP and SIGCONT
END_SECONDS = 90.0  # for processes to end after a kill; a stopped stage has 60 to save its work


@dataclass
class Outcome:
    """The outcome of a series of kills.

    Attributes:
        kills: those that were delivered, as (moment, signal, target).
        resumed: how often a run followed a kill that ended the one before.
        compared: how often the results were compared with those of the undisturbed run.
        same: how often they were the same.
        faults: one line each.
    """

    kills: list[tuple[str, str, str]] = field(default_factory=list)
    resumed: int = 0
    compared: int = 0
    same: int = 0
    faults: list[str] = field(default_factory=list)


def kill_repeatedly(project: Project, stage: str, kills: Sequence[Kill], say: Callable[[str], None]) -> Outcome:
    """Run a stage, kill it as planned, compare at the end. A moment that a run doesn't reach is tried once more from the start."""
    outcome = Outcome()
    waiting, late = deque(kills), list[Kill]()
    while waiting and not outcome.faults:
        project.prepare(stage)
        fresh, finished, recorded = True, False, False
        while not finished and not outcome.faults:
            stops, kill = next_run(waiting)
            # Once DVC may have the result in its run-cache, it alone may start the stage, as it does for users.
            command = kill.command if kill and not recorded else "repro"
            ended, delivered = one_run(project, stage, command, stops, kill)
            outcome.kills += [(each.moment.name, each.signal, each.target) for each in delivered]
            recorded = recorded or any(each.moment.name == "record" for each in delivered)
            finished = ended.status == 0 and command == "repro"
            if kill is not None and kill in delivered:
                outcome.resumed += not finished
                check_killed(kill, ended, outcome)
                if not kill.at_once:
                    outcome.faults += [f"{name(kill)}: process left: {c}" for c in project.wait_for_end(END_SECONDS)]
            elif ended.status != 0:
                outcome.faults.append(f"a run that was not killed ended with {ended.status}: {last_line(ended)}")
            elif kill is not None and not fresh and kill not in late:
                late.append(kill)  # this run began too far on
                waiting.append(kill)
            fresh = False
        outcome.faults += [f"process left at the end: {command}" for command in project.wait_for_end(10.0)]
        if not outcome.faults:
            outcome.compared += 1
            outcome.faults += project.differences()
            outcome.same += not outcome.faults
        if outcome.faults:
            say("\n".join([f"{stage}: {[name(k) for k in kills]}", *outcome.faults, *ended.output.splitlines()[-40:]]))
    return outcome


def next_run(waiting: deque[Kill]) -> tuple[list[Kill], Kill | None]:
    """The signals of the next run: any number of stops, then a kill, or none if no kill is left."""
    stops = []
    while waiting and waiting[0].signal == "SIGSTOP":
        stops.append(waiting.popleft())
    return stops, waiting.popleft() if waiting else None


def name(kill: Kill) -> str:
    where = kill.moment.rule or {"role": kill.moment.role, "seconds": round(kill.moment.seconds, 2)}
    return f"{kill.signal} to {kill.target} at {kill.moment.name} {json.dumps(where)}"


def check_killed(kill: Kill, ended: Ended, outcome: Outcome) -> None:
    """SIGTERM to a process that handles it must not end in a traceback. (DVC doesn't handle it, and SIGKILL has no choice.)"""
    if kill.signal == "SIGTERM" and kill.target != "dvc" and "Traceback" in ended.output:
        outcome.faults.append(f"{name(kill)}: a traceback")


def last_line(ended: Ended) -> str:
    lines = [line for line in ended.output.splitlines() if line.strip()]
    return next((line for line in lines if line.lower().startswith("error")), lines[-1] if lines else "no output")


def one_run(
    project: Project, stage: str, command: str, stops: Sequence[Kill], kill: Kill | None
) -> tuple[Ended, list[Kill]]:
    """Run the stage, with these stops and this kill in it. Returns its end, and those of them that were delivered."""
    rule, frozen = project.control / "rule", project.control / "frozen"
    rule.unlink(missing_ok=True)
    if kill is not None and kill.moment.rule:
        rule.write_text(json.dumps(kill.moment.rule))
    began = time.monotonic()
    process = project.start(stage, command=command)
    delivered = []
    for stop in stops:
        # A process that has reached the moment of the kill stays there.
        if reached(project, stop.moment, began, process) and not frozen.exists() and deliver(project, stop, process):
            delivered.append(stop)
    if kill is not None and reached(project, kill.moment, began, process) and deliver(project, kill, process):
        delivered.append(kill)
    rule.unlink(missing_ok=True)
    return project.finish(process), delivered


def reached(project: Project, moment: Moment, began: float, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the moment; False if the command ends before it."""
    frozen = project.control / "frozen"
    if moment.rule:
        return wait_until(frozen.exists, process)
    if moment.role:
        if not wait_until(lambda: project.pid(moment.role) is not None or frozen.exists(), process):
            return False
        began = time.monotonic()
    return wait_until(lambda: time.monotonic() >= began + moment.seconds or frozen.exists(), process)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(POLL_SECONDS)
    return process.poll() is None


def deliver(project: Project, kill: Kill, process: subprocess.Popen[bytes]) -> bool:
    """Send the signal; a process that has stopped itself continues afterwards. False if the target doesn't run any more."""
    frozen = None
    with contextlib.suppress(OSError):
        frozen = int(json.loads((project.control / "frozen").read_text())["pid"])
    if frozen is not None:
        wait_until_stopped(frozen)
    number = signal.Signals[kill.signal]
    if kill.target == "all":
        targets = [p.pid for p in project.processes()]
    elif kill.target == "group":
        targets = [-process.pid]
    else:
        pid = project.pid(kill.target)
        # Before its start, and after its end, the process that has reached the moment takes its place.
        targets = [pid if pid is not None and os.path.exists(f"/proc/{pid}") else frozen or process.pid]
    sent = [send(target, number) for target in targets]
    if number == signal.SIGSTOP:
        time.sleep(STOPPED_SECONDS)
        for target in targets:
            send(target, signal.SIGCONT)
    if frozen is not None:
        send(frozen, signal.SIGCONT)
    return any(sent)


def wait_until_stopped(pid: int) -> None:
    """Wait for the stop of a process that has announced it: SIGCONT before it would have no effect."""
    with contextlib.suppress(psutil.Error):
        while psutil.Process(pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(POLL_SECONDS)


def send(target: int, number: int) -> bool:
    try:
        os.killpg(-target, number) if target < 0 else os.kill(target, number)
    except ProcessLookupError:
        return False
    return True
