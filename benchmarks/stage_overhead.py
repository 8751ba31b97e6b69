"""The time that a stage takes as a job on a cluster, compared with the same stage started directly: the preset `smoke`, in turn.

    PECO_SCHEDULER=kubernetes PECO_QUEUE=… … python -m benchmarks.stage_overhead FOLDER [--repeats 2]

Run it in a checkout, with the variables of jobs (docs/cluster.md). FOLDER is new, and on the volume that the jobs share. Each run
is a clone of the checkout's commit, in which `make repro` runs all stages; times are those of `.work/times.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

DIRECT = "local_cwd"
Seconds = dict[str, float]  # by stage


def main() -> None:
    """Run the stages both ways and print their times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    scheduler = os.environ.get("PECO_SCHEDULER", DIRECT)
    if scheduler == DIRECT:
        parser.error("PECO_SCHEDULER: not set; name the cluster: kubernetes or slurm")
    arguments.folder.mkdir(parents=True)
    runs: dict[str, list[Seconds]] = {DIRECT: [], scheduler: []}
    for number in range(arguments.repeats):
        for name, found in runs.items():
            found.append(run(arguments.folder / f"{name}-{number}", name))
    print(table(runs[DIRECT], runs[scheduler]))


def run(clone: Path, scheduler: str) -> Seconds:
    """Run all stages in a new clone of this checkout; the seconds of each."""
    subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
    for command in (["pipelines.params", "--preset", "smoke"], ["pipelines.repro"]):
        env = {**os.environ, "PECO_SCHEDULER": scheduler, "PYTHONPATH": str(clone)}
        subprocess.run([sys.executable, "-m", *command], cwd=clone, env=env, stdout=subprocess.DEVNULL, check=True)
    lines = (clone / ".work/times.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["stage"]: entry["seconds"] for entry in map(json.loads, lines)}


def table(direct: list[Seconds], jobs: list[Seconds]) -> str:
    """The mean times of each stage and of all, both ways, and their difference."""
    rows = {stage: [statistics.mean(each[stage] for each in runs) for runs in (direct, jobs)] for stage in direct[0]}
    rows["mean"] = [statistics.mean(seconds) for seconds in zip(*rows.values(), strict=True)]
    lines = [f"{'stage':<22}{'directly':>10}{'as a job':>10}{'more':>8}"]
    lines += [f"{stage:<22}{here:>10.2f}{there:>10.2f}{there - here:>8.2f}" for stage, (here, there) in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
