"""`make ablation NAME=…`: a grid of experiments over seeds through DVC's queue, and tables of what came out.

What is finished on this commit is not run again, what waits is left in the queue, what failed or died is queued anew: so the same
command goes on after an interruption of whatever kind. `pipelines/experiments/grids.py` has the grids.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.experiments import expqueue, grids
from pipelines.experiments import page as comparison
from pipelines.experiments import run as experiments
from pipelines.experiments.grids import Point
from pipelines.experiments.run import Experiment, State
from pipelines.experiments.tables import Metrics
from pipelines.workflow.processes import single_instance

POLL_SECONDS = 0.5
QUIET_SECONDS = 5.0


class Run:
    """One call: what is missing is queued and followed to its end, or until a signal comes."""

    def __init__(self, names: Mapping[str, Experiment], start: State, jobs: int) -> None:
        self.experiments, self.start, self.jobs = names, start, jobs  # in the order in which they are to run
        self.queue = expqueue.Queue(start.commit)
        self.failed: dict[str, str] = {}  # why, by name
        self.stopped: signal.Signals | None = None  # the first signal
        self._asked = 0  # how often an end was asked for
        self._workers: list[subprocess.Popen[bytes]] = []
        self._ended = 0
        self._began = time.monotonic()

    def run(self) -> None:
        """Return when all have ended, well or not, or when `stopped`. No process is left then.

        Raises:
            PecoError: an experiment can't be queued, or is no longer the one that was planned, or the worker of the queue died.
        """
        with StopSignals(self._note):
            self._wait_for_others()
            left = self._enqueue()
            if left and not self.stopped:
                try:
                    self._workers = [expqueue.start(self.queue, number) for number in range(1, self.jobs + 1)]
                    left = self._follow(left)
                except BaseException:
                    self._stop()
                    raise
                finally:
                    self._end_workers()
        if left and not self.stopped:
            raise PecoError(
                f"the worker of the queue has ended (its log in {expqueue.logs()} may say why); the same command goes on"
            )

    def _wait_for_others(self) -> None:
        """Until nobody runs the queue: what has been taken from it then and has not ended is dead."""
        told = False
        while (pids := self.queue.processes()) and not self.stopped:
            if not told:
                pid = min(pids)
                print(f"waiting for process {pid}, which runs the queue already (`dvc queue stop` ends it)", flush=True)
            told = True
            time.sleep(POLL_SECONDS)

    def _enqueue(self) -> list[str]:
        """Queue what is neither finished nor waiting; returns the names of all that are to run."""
        if self.stopped:
            return []
        self.queue.put_back()
        self.queue.forget_orders()
        finished, waiting = experiments.finished(self.start.commit), self.queue.waiting()
        missing = [name for name in self.experiments if name not in finished]
        new = [name for name in missing if name not in waiting]
        self._ended = len(self.experiments) - len(missing)
        before = f"{self._ended} finished before, {len(missing) - len(new)} in the queue"
        print(f"{len(self.experiments)} experiments: {before}", flush=True)
        self.queue.forget(new)
        for name in new:
            if self.stopped:
                break
            experiments.check_unchanged(self.start)
            experiments.queue(name, self.experiments[name].settings)
            self._say(name, "queued")
        return missing

    def _follow(self, missing: Sequence[str]) -> list[str]:
        """Tell of them until all have ended, or the workers, or a signal comes; returns the names of those left."""
        begun: dict[str, float] = {}
        left, alive = list(missing), True
        while left and alive and not self.stopped:
            time.sleep(POLL_SECONDS)
            alive = any(worker.poll() is None for worker in self._workers)
            # Read in the order in which an experiment moves on, so that none slips through.
            waiting, running = self.queue.waiting(), self.queue.running()
            finished = experiments.finished(self.start.commit)
            for name in list(left):
                if name in running and name not in begun:
                    begun[name] = time.monotonic()
                    self._say(name, f"running; `dvc queue logs -f {name}` shows it")
                if name in waiting or name in running or self.stopped:
                    continue
                left.remove(name)
                self._ended += 1
                if name in finished:
                    self._say(name, f"finished after {_duration(begun.get(name, self._began))}")
                else:
                    self.failed[name] = _reason(self.queue.log(name))
                    self._say(name, f"failed: {self.failed[name]}")
        return left

    def _end_workers(self) -> None:
        """Wait until they have ended: after what they have in hand, which may be another's experiment, or stopped in it."""
        if not self._asked:
            self.queue.shut_down()
        since, told, passed_on = time.monotonic(), False, 0
        failed: set[str] = set()  # before the stop
        while any(worker.poll() is None for worker in self._workers):
            if self._asked > passed_on:
                if not passed_on:  # what waits is to stay where it is
                    self.queue.take_no_more(self.jobs)
                    failed = self.queue.failed()
                passed_on = self._asked
                for worker in self._workers:
                    worker.terminate()
            elif not passed_on and not told and time.monotonic() - since > QUIET_SECONDS:
                told = True
                print(
                    "waiting for the worker of the queue, which has begun another experiment; Ctrl-C puts that back",
                    flush=True,
                )
            time.sleep(POLL_SECONDS)
        if not self.queue.processes():
            self.queue.put_back(self.queue.failed() - failed if passed_on else ())

    def _say(self, name: str, what: str) -> None:
        title = self.experiments[name].title
        print(f"[{self._ended} of {len(self.experiments)}, {_duration(self._began)}] {title}: {what}", flush=True)

    def _stop(self) -> None:
        """Ask what runs for an end; a second time, for one at once."""
        self._asked += 1
        if self._asked == 1:
            with contextlib.suppress(OSError):  # the terminal was closed
                print("\nstopping; what runs saves its work. Another signal ends it at once.", file=sys.stderr)

    def _note(self, number: signal.Signals) -> None:
        """Signals only leave a note: DVC must not be torn out of its work, as it puts the user's changes aside for a moment."""
        self.stopped = self.stopped or signal.Signals(number)
        self._stop()


def _duration(since: float) -> str:
    return str(timedelta(seconds=int(time.monotonic() - since)))


def _reason(log: Sequence[str]) -> str:
    """The stage's own line on what went wrong, or else the last one that says anything; paths in the repository are relative."""
    found = (
        line.strip()
        for beginning in ("error: ", "ERROR: ", "")
        for line in reversed(log)
        if line.strip() and line.startswith(beginning)
    )
    return next(found, f"it did not begin; the logs in {expqueue.logs()} may say why").replace(f"{Path.cwd()}/", "")


def plan(ablation: str, seeds: Sequence[int], settings: Sequence[str]) -> dict[str, Experiment]:
    """The experiments of a grid by name, which is the same for the same parameters and code. All are valid.

    Raises:
        PecoError: there is no such grid, or one of its points, named, is not allowed.
    """
    if ablation not in grids.ABLATIONS:
        raise PecoError(f"NAME={ablation}: there is no such ablation; `make ablation` lists them")
    standing = experiments.compose(settings)
    points = grids.ABLATIONS[ablation].points(standing)
    planned = experiments.plan(points, seeds, settings)
    if len({experiment.point.key for experiment in planned}) < 2:
        raise PecoError(f"NAME={ablation}: with the params.yaml that stands all its points come to the same")
    changes = experiments.changes()
    named = {}
    for each in planned:
        point = replace(each.point, title=f"{each.point.title} (as it stands)") if each.stands else each.point
        name = experiments.name(f"ablation-{ablation}", each, changes)
        named[name] = replace(each, point=point)
    return named


def summarize(ablation: str, seeds: Sequence[int], settings: Sequence[str], run: Run) -> comparison.Comparison:
    """Read what has finished.

    Raises:
        PecoError: nothing has, or its metrics can't be read.
    """
    results: dict[Point, list[Metrics]] = {}
    for name, experiment in run.experiments.items():
        if name not in run.failed:
            results.setdefault(experiment.point, []).append(experiments.read_metrics(name, run.start.commit))
    if not results:
        raise PecoError(f"all experiments failed; the first: {next(iter(run.failed.values()))}")
    done = [experiment for name, experiment in run.experiments.items() if name not in run.failed]
    ours = next((experiment.point for experiment in done if experiment.stands), None)
    beside = next((experiment for experiment in done if experiment.stands), done[0])
    notes = [f"{run.experiments[name].title} failed: {why}" for name, why in run.failed.items()]
    if ours is None:
        notes.append(f"What stands is not in these tables: budget and baselines are those of {beside.point.title}.")
    return comparison.describe(
        f"Ablation: {ablation}",
        ablation,
        f"Compared: {grids.ABLATIONS[ablation].question}.",
        beside.config,
        seeds,
        settings,
        results,
        beside.point,
        ours,
        notes,
    )


def ablate(ablation: str, seeds: Sequence[int], settings: Sequence[str], jobs: int) -> int:
    """Run a grid and tell of it; returns the status.

    Raises:
        PecoError: it can't be run, or all failed.
    """
    start = experiments.state()
    planned = plan(ablation, seeds, settings)
    experiments.check_inputs(next(iter(planned.values())).config)
    with single_instance("ablation"):
        run = Run(planned, start, jobs)
        run.run()
        done = experiments.finished(start.commit) & planned.keys()
        if run.stopped and planned.keys() - done - run.failed.keys():
            with contextlib.suppress(OSError):  # the terminal was closed
                print(
                    f"stopped: {len(done)} of {len(planned)} are finished, the rest stays in the queue; "
                    "the same command goes on",
                    file=sys.stderr,
                )
            return 128 + run.stopped
    found = summarize(ablation, seeds, settings, run)
    written = comparison.write(found, Path(f"reports/ablation-{ablation}"))
    print(f"\n{comparison.markdown(found)}\nAlso in {' and '.join(map(str, written))}.")
    if run.failed:
        print(
            f"error: {len(run.failed)} of {len(planned)} experiments failed; fix that, and the same command runs them again",
            file=sys.stderr,
        )
    return 2 if run.failed else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.ablation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", help="of the grid; without one they are listed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters to change in all of them")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    args = parser.parse_args(argv)
    if args.name is None:
        for name, ablation in grids.ABLATIONS.items():
            print(f"  {name:<15} {ablation.question}")
        return 0
    try:
        if args.jobs < 1:
            raise PecoError(f"JOBS={args.jobs}: not allowed; expected an integer, at least 1")
        return ablate(args.name, list(dict.fromkeys(args.seeds)), args.set, args.jobs)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first or after the last experiment
        print("error: interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
