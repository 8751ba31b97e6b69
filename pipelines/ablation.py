"""`make ablation NAME=…`: a grid of experiments over seeds, one table per task. pipelines/experiments/grids.py has the grids."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from peco.core.errors import PecoError
from pipelines.experiments import command, grids
from pipelines.experiments.page import Heading
from pipelines.experiments.plan import Experiment, Snapshot, plan, take_snapshot


def plan_grid(name: str, snapshot: Snapshot, seeds: Sequence[int], settings: Sequence[str]) -> dict[str, Experiment]:
    """The experiments of a grid, by name.

    Raises:
        PecoError: there is no such grid, or one of its variants is not allowed, or they are all equal.
    """
    if name not in grids.ABLATIONS:
        raise PecoError(f"NAME={name}: there is no such ablation; `make ablation` lists them")
    variants = grids.ABLATIONS[name].variants
    experiments = plan(snapshot, f"ablation-{name}", variants, seeds, settings, suffix=" (current)")
    if len({each.variant.key for each in experiments.values()}) < 2:
        raise PecoError(f"NAME={name}: with the current params.yaml all its variants are equal")
    return experiments


def ablate(args: argparse.Namespace) -> int:
    """Run a grid and write the tables; returns the exit status. Raises as `plan_grid` and `command.run`."""
    snapshot = take_snapshot()
    experiments = plan_grid(args.name, snapshot, args.seeds, args.set)
    heading = Heading(f"Ablation: {args.name}", args.name, f"Compared: {grids.ABLATIONS[args.name].question}.")
    return command.run("ablation", experiments, snapshot, args, heading, Path(f"reports/ablation-{args.name}"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.ablation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", help="name of the grid; without it the grids are listed")
    command.add_options(parser)
    args = parser.parse_args(argv)
    if args.name is None:
        for name, ablation in grids.ABLATIONS.items():
            print(f"  {name:<15} {ablation.question}")
        return 0
    return command.main(ablate, args)


if __name__ == "__main__":
    sys.exit(main())
