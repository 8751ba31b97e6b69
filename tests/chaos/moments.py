"""When, how and where to kill: drawn from a seed for each stage, with moments that every stage must have."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Where the signal goes: a role's process, the process group of `make repro`, or all processes at once, as if power fails.
TARGETS = {
    "SIGKILL": ("stage", "launch", "dvc", "repro", "all"),
    "SIGTERM": ("stage", "launch", "dvc", "repro", "group"),
    "SIGSTOP": ("stage", "launch", "dvc", "repro"),
}
SIGNALS = tuple(TARGETS)
LAUNCHED = ("stage", "launch")  # roles that DVC is not needed for
START_SECONDS = 4.0  # before a stage's process begins
LOCK_WRITE_CALLS = 40_000  # Python calls of DVC while it writes dvc.lock


@dataclass(frozen=True)
class Moment:
    """A moment: at a change of a file, or a time after the start of a role's process (of the command, if there is none).

    Attributes:
        name: what it is, for the table.
        rule: for the hook; None for a time.
        role: whose start counts; empty for the command.
        seconds: after that.
    """

    name: str
    rule: dict[str, Any] | None = None
    role: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        moment: when.
        signal: SIGKILL, SIGTERM, or SIGSTOP, which SIGCONT follows.
        target: a role, "group" or "all".
        at_once: the next run begins while processes of this one may still be ending.
    """

    moment: Moment
    signal: str
    target: str
    at_once: bool

    @property
    def command(self) -> str:
        """The command to run: the launcher alone where neither the moment nor the target needs DVC."""
        roles = {self.target, self.moment.rule["role"] if self.moment.rule else self.moment.role or "launch"}
        return "launch" if roles <= {*LAUNCHED, "all"} else "repro"


def plan(
    stage: str, project_outs: dict[str, list[str]], trace: Path, seconds: float, count: int, seed: int
) -> list[Kill]:
    """The kills of a stage: each named moment once, then random ones; a fifth of them are stops.

    Args:
        stage: its name.
        project_outs: the outs of all stages.
        trace: folder with the trace of the roles in the reference run.
        seconds: time that it took there.
        count: how many.
        seed: of the draw.
    """
    rng = random.Random(f"{seed} {stage}")
    outs = project_outs[stage]
    others = [out for name, found in project_outs.items() if name != stage for out in found]
    changes = stage_changes(trace, outs, others)
    moments = named_moments(changes, outs, rng)
    stops = count // 5
    while len(moments) < count - stops:
        moments.append(random_moment(changes, seconds, rng))
    kills = []
    for moment in moments[: count - stops]:
        signal = rng.choices(("SIGKILL", "SIGTERM"), (2, 1))[0]
        kills.append(Kill(moment, signal, rng.choice(TARGETS[signal]), rng.random() < 0.5))
    rng.shuffle(kills)
    # Stops go into runs that reach the stage's process.
    for _ in range(stops):
        when = Moment("work", role="stage", seconds=rng.uniform(0, seconds / 2))
        later = [i for i, kill in enumerate(kills) if kill.moment.name != "start"]
        kills.insert(rng.choice(later), Kill(when, "SIGSTOP", rng.choice(TARGETS["SIGSTOP"]), False))
    return kills


def stage_changes(trace: Path, outs: list[str], others: list[str]) -> list[tuple[str, str]]:
    """The changes of files by this stage's process: the part of the trace from the last out of the stage before to its own last."""
    changes = [tuple(line.split("\t", 1)) for line in (trace / "trace.stage").read_text().splitlines()]
    last = max(i for i, (_, path) in enumerate(changes) if is_in(path, outs))
    first = last
    while first > 0 and not is_in(changes[first - 1][1], others):
        first -= 1
    return [(event, path) for event, path in changes[first : last + 1]]


def is_in(path: str, outs: list[str]) -> bool:
    return any(path == out or path.startswith(f"{out}/") for out in outs)


def named_moments(changes: list[tuple[str, str]], outs: list[str], rng: random.Random) -> list[Moment]:
    """Those that every stage has: around the renames that publish its results, and around DVC's record."""
    final = "^(" + "|".join(map(re.escape, outs)) + ")$"
    renames = sum(event == "os.rename" and re.search(final, path) is not None for event, path in changes)
    publish = {"role": "stage", "event": r"^os\.rename$", "path": final}
    lock = {"role": "dvc", "event": "^open$", "path": r"^dvc\.lock$", "skip": 0}
    cached = {"role": "dvc", "event": "", "path": r"^\.dvc/cache/files/"}
    found = [
        Moment("publishing", {**publish, "skip": rng.randrange(renames), "calls": 0}),
        Moment("publishing", {**publish, "skip": rng.randrange(renames), "calls": 1}),
        Moment("record", {**cached, "skip": rng.randrange(4), "calls": rng.randrange(500)}),
        Moment("record", {**lock, "path": r"^\.dvc/cache/runs/", "calls": rng.randrange(2000)}),
        Moment("record", {**lock, "calls": 0}),
        Moment("record", {**lock, "calls": rng.randrange(1, LOCK_WRITE_CALLS)}),
        Moment("record", {"role": "launch", "event": "^open$", "path": r"times\.jsonl$", "skip": 0, "calls": 1}),
    ]  # fmt: skip
    saved = r"checkpoint\.pt$"
    if saves := sum(event == "os.rename" and re.search(saved, path) is not None for event, path in changes):
        at = {"role": "stage", "event": r"^os\.rename$", "path": saved, "skip": rng.randrange(-(-saves // 2))}
        found.append(Moment("checkpoint", {**at, "calls": rng.randrange(2)}))
    return found


def random_moment(changes: list[tuple[str, str]], seconds: float, rng: random.Random) -> Moment:
    kind = rng.random()
    if kind < 0.3:
        return Moment("start", seconds=rng.uniform(0.3, START_SECONDS))
    if kind < 0.75:
        return Moment("work", role="stage", seconds=rng.uniform(0, seconds))
    number = rng.randrange(len(changes))
    return Moment("file", {"role": "stage", "event": "", "path": "", "skip": number, "calls": rng.randrange(300)})
