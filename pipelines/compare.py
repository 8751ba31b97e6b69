"""`make compare`: PeCo, its variants and baselines over the same seeds, one table per task.

Each variant and seed is a DVC experiment, run in a folder of its own, so the workspace is left alone and what an earlier run has
computed is taken from the run-cache. The experiments stay: `dvc exp show` lists them, `dvc exp apply` brings one back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from peco.core.errors import PecoError
from pipelines.experiments import grids
from pipelines.experiments import page as comparison
from pipelines.experiments import run as experiments
from pipelines.experiments.tables import Metrics
from pipelines.workflow.processes import Stopped, single_instance

STEM = Path("reports/compare")


def compare(variants: Sequence[str], seeds: Sequence[int], settings: Sequence[str]) -> comparison.Comparison:
    """Run what has not run, and compare.

    Raises:
        PecoError: a variant, setting or the params.yaml that stands is not allowed, an experiment failed, or parameters or code
            changed meanwhile.
    """
    start = experiments.state()
    standing = experiments.compose(settings)
    points = grids.variants(standing, variants)
    planned = experiments.plan(points, seeds, settings)
    experiments.check_inputs(standing)
    results: dict[grids.Point, list[Metrics]] = {point: [] for point in reversed(points)}  # PeCo's row is the last
    names = [experiments.name("compare", each, start.changes) for each in planned]
    with single_instance("compare"):
        for number, (name, experiment) in enumerate(zip(names, planned, strict=True), 1):
            ran = name in experiments.finished(start.commit)
            print(f"== {number} of {len(planned)}: {name}{' ran before' if ran else ''}", flush=True)
            experiments.check_unchanged(start)
            if not ran and (status := experiments.run(name, experiment.settings)):
                raise PecoError(
                    f"experiment {name} ended with status {status}; run `make compare` again to go on from there"
                )
    for name, experiment in zip(names, planned, strict=True):
        results[experiment.point].append(experiments.read_metrics(name, start.commit))
    lead = "PeCo beside its baselines, all else equal."
    return comparison.describe(
        "Comparison", "backbone", lead, planned[0].config, seeds, settings, results, points[0], points[0]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["peco", "pixel"], help=f"of {', '.join(grids.VARIANTS)}")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters to change in all of them")
    args = parser.parse_args(argv)
    try:
        found = compare(args.variants, list(dict.fromkeys(args.seeds)), args.set)
        written = comparison.write(found, STEM)
    except (Stopped, KeyboardInterrupt) as stop:  # in an experiment, or between two
        print("error: stopped; the same command goes on", file=sys.stderr)
        return stop.status if isinstance(stop, Stopped) else 130
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{comparison.markdown(found)}\nAlso in {' and '.join(map(str, written))}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
