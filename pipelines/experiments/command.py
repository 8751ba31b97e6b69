"""The common part of `make compare` and `make ablation`: options, the run, the tables, the exit status."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from peco.core.errors import PecoError
from pipelines.experiments import page
from pipelines.experiments.plan import Experiment, Snapshot, check_inputs
from pipelines.experiments.records import Records
from pipelines.experiments.results import finished, read_metrics
from pipelines.experiments.run import Runner
from pipelines.workflow import variables
from pipelines.workflow.processes import single_instance


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both commands."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters of all experiments")
    parser.add_argument("--jobs", type=int, default=1, help="number of experiments at a time")
    parser.add_argument(
        "--records",
        type=Path,
        metavar="FOLDER",
        help="keep the scores of finished experiments there, and don't run those again",
    )


def main(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Do the command's work and return the exit status; an error becomes one line."""
    try:
        variables.require_known()
        if args.jobs < 1:
            raise PecoError(f"JOBS={args.jobs}: not allowed; expected an integer, at least 1")
        args.seeds = list(dict.fromkeys(args.seeds))
        return work(args)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first or after the last experiment
        print("error: interrupted; the same command resumes", file=sys.stderr)
        return 130


def run(
    command: str,
    experiments: Mapping[str, Experiment],
    snapshot: Snapshot,
    args: argparse.Namespace,
    heading: page.Heading,
    stem: Path,
) -> int:
    """Run the experiments, write and print their tables, and return the exit status.

    Args:
        command: the make target.
        experiments: by name; their order is that of the rows.
        args: the options of both commands.
        stem: path of the pages without the suffix.

    Raises:
        PecoError: they can't be run, or all failed.
    """
    check_inputs(next(iter(experiments.values())).config)
    with single_instance(command):
        records = Records(args.records, snapshot) if args.records else None
        if records and (others := records.others):
            print(
                f"{args.records}: {len(others)} records are of other code or inputs and don't count: {', '.join(others)}"
            )
        runner = Runner(command, experiments, snapshot, args.jobs, records)
        runner.run()
    recorded = records.metrics if records else {}
    done = (finished(snapshot.commit) | recorded.keys()) & experiments.keys()
    if runner.stop.first and len(done) + len(runner.failed) < len(experiments):
        with contextlib.suppress(OSError):  # the terminal was closed
            print(f"stopped: {len(done)} of {len(experiments)} are finished; the same command resumes", file=sys.stderr)
        return runner.stop.status
    if not done:
        raise PecoError(f"all experiments failed; the first: {next(iter(runner.failed.values()))}")
    measured = [
        (each, recorded.get(name) or read_metrics(name, snapshot.commit))
        for name, each in experiments.items()
        if name in done
    ]
    notes = [f"{each.title} failed: {runner.failed[name]}" for name, each in experiments.items() if name not in done]
    found = page.describe(heading, measured, args.seeds, args.set, notes)
    written = page.write(found, stem)
    print(f"\n{page.markdown(found)}\nAlso in {' and '.join(map(str, written))}.")
    if not runner.failed:
        return 0
    print(
        f"error: {len(runner.failed)} of {len(experiments)} experiments failed; fix that, and the same command runs them again",
        file=sys.stderr,
    )
    return 2
