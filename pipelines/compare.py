"""`make compare`: PeCo, its variants and baselines over the same seeds, one table per task."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peco.core.config import Config
from pipelines.experiments import command, grids
from pipelines.experiments.page import Heading
from pipelines.experiments.plan import plan, take_snapshot


def compare(args: argparse.Namespace) -> int:
    """Run the variants and write the tables; returns the exit status.

    Raises:
        PecoError: a variant, a setting or the current params.yaml is not allowed, or the experiments can't be run.
    """
    snapshot = take_snapshot()

    def variants(config: Config) -> list[grids.Variant]:
        return grids.variants(config, args.variants)[::-1]  # PeCo's row is the last

    experiments = plan(snapshot, "compare", variants, args.seeds, args.set)
    heading = Heading("Comparison", "backbone", "PeCo compared with its baselines, all else equal.")
    return command.run("compare", experiments, snapshot, args, heading, Path("reports/compare"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=["peco", "pixel"], help=f"some of {', '.join(grids.VARIANTS)}")
    command.add_options(parser)
    return command.main(compare, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
