"""`make chaos`: `python -m tests.chaos --seed 0 --kills 200`. A stopped run resumes; a new `--folder` starts from the beginning."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import disks, kills, moments, remote
from .project import Project
from .results import Results

AT_ONCE = 8  # kills between two comparisons
PARTS = ("kills", "disks", "remote")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kills", type=int, default=200, help="over all stages; each has the same number, at least one"
    )
    parser.add_argument("--folder", type=Path, default=Path(".work/chaos"))
    parser.add_argument("--stages", nargs="*", help="only these")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="only these")
    arguments = parser.parse_args()
    project = Project(arguments.folder)
    results = Results(project.folder / "results.jsonl", {"seed": arguments.seed, "kills": arguments.kills})
    stages = [stage for stage in project.stages if not arguments.stages or stage in arguments.stages]
    count = -(-arguments.kills // len(project.stages))
    for stage in stages if "kills" in arguments.parts else ():
        run_kills(project, stage, results, arguments.seed, count)
    if "disks" in arguments.parts:
        run_disks(project, stages, results, arguments.seed)
    if "remote" in arguments.parts and not results.has("remote"):
        for outcome in remote.use_remote(project, arguments.seed, say):
            results.add("remote", kind="remote", **vars(outcome))
    print(results.table())
    for fault in results.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if results.faults else 0


def run_kills(project: Project, stage: str, results: Results, seed: int, count: int) -> None:
    outs = {name: project.outs(name) for name in project.stages}
    planned = moments.plan(stage, outs, project.control, duration(project, stage), count, seed)
    for begin in range(0, count, AT_ONCE):
        key = f"{stage} kills {begin}"
        if results.has(key):
            continue
        outcome = kills.kill_repeatedly(project, stage, planned[begin : begin + AT_ONCE], say)
        results.add(key, kind="kills", stage=stage, **vars(outcome))
        say(f"{key}: {len(outcome.kills)} kills, {len(outcome.faults)} faults")


def run_disks(project: Project, stages: list[str], results: Results, seed: int) -> None:
    if reason := disks.separate_mounts():
        say(f"full and read-only disks are skipped: {reason}")
        return
    for stage in stages:
        if not results.has(f"{stage} disks"):
            for outcome in disks.spoil_disks(project, stage, seed, say):
                results.add(f"{stage} disks", kind="disk", stage=stage, **vars(outcome))
            say(f"{stage}: disks done")


def duration(project: Project, stage: str) -> float:
    """Seconds that the stage took in the reference run."""
    entries = map(json.loads, (project.pristine / ".work/times.jsonl").read_text().splitlines())
    return next(float(entry["seconds"]) for entry in entries if entry["stage"] == stage)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
