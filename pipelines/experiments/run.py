"""Run experiments, several at a time. Finished ones are not run again."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from peco.core import workfiles
from peco.core.stopping import POLL_SECONDS, StopSignals
from pipelines.experiments.plan import Experiment, Snapshot
from pipelines.experiments.records import Records
from pipelines.experiments.results import finished, read_metrics
from pipelines.experiments.single import CLONES
from pipelines.workflow.environment import EXPERIMENTS
from pipelines.workflow.processes import processes_with, stop_with_parent


@dataclass
class _Job:
    """A running experiment.

    Attributes:
        output: reading end of its output if that is shown, else None.
        log: file with all its output.
    """

    name: str
    process: subprocess.Popen[bytes]
    start: float
    output: int | None
    log: BinaryIO


class Runner:
    """Runs the experiments of one call of a command. If one fails, the others still run.

    With one job the lines of the experiments are shown, with several they go to log files only. After a stop signal no experiment
    is started and the running ones save their work; a second signal ends them at once.

    Args:
        command: the make target; its experiments' names begin with it.
        experiments: by name, in the order in which they are to run.
        snapshot: the state of the repository that they start from.
        jobs: number of experiments at a time.
        records: experiments in them are not run either; those that are finished are added.

    Attributes:
        failed: the reasons of failures, by name.
        stop: the stop signals.
    """

    def __init__(
        self,
        command: str,
        experiments: Mapping[str, Experiment],
        snapshot: Snapshot,
        jobs: int,
        records: Records | None = None,
    ) -> None:
        self.command, self.experiments, self.snapshot, self.jobs = command, experiments, snapshot, jobs
        self.records = records
        self.failed: dict[str, str] = {}
        self.stop = StopSignals(self._on_stop)
        self._running: list[_Job] = []
        self._ended = 0
        self._start_time = time.monotonic()

    def run(self) -> None:
        """Run until all experiments have ended or a stop signal came; then no process of theirs is left."""
        with self.stop:
            self._clear_leftovers()
            before = finished(self.snapshot.commit)
            for name in before & self.experiments.keys():
                self._record(name)
            before |= self.records.metrics.keys() if self.records else set()
            left = deque(name for name in self.experiments if name not in before)
            self._ended = len(self.experiments) - len(left)
            _print(f"{len(self.experiments)} experiments: {self._ended} finished before")
            try:
                while self._running or (left and not self.stop.first):
                    while left and len(self._running) < self.jobs and not self.stop.first:
                        self._start(left.popleft())
                    time.sleep(POLL_SECONDS)
                    self._follow()
            finally:
                for job in self._running:  # only if an error was raised
                    job.process.terminate()
                for job in self._running:
                    job.process.wait()
            workfiles.remove_finished()

    def _clear_leftovers(self) -> None:
        """Wait for processes that a killed call has left, and remove its clones."""
        announced = False
        while (found := processes_with(EXPERIMENTS.name, self._mark())) and not self.stop.first:
            if not announced:
                _print(f"waiting for process {min(found)} of an earlier call to end")
            announced = True
            time.sleep(POLL_SECONDS)
        for clone in CLONES.glob(f"{self.command}-*") if not self.stop.first else ():
            shutil.rmtree(clone, ignore_errors=True)

    def _mark(self) -> str:
        return f"{self.command} in {Path.cwd()}"

    def _start(self, name: str) -> None:
        path = log_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("wb")
        env = {**os.environ, EXPERIMENTS.name: self._mark()}
        reading, writing = None, log.fileno()
        if self.jobs == 1:
            # A terminal of its own, so that stages show progress bars.
            terminal = sys.stdout.isatty() and sys.stderr.isatty()
            reading, writing = pty.openpty() if terminal else os.pipe()
            os.set_blocking(reading, False)
            env |= {"COLUMNS": str(shutil.get_terminal_size().columns)} if terminal else {}
        snapshot, settings = self.snapshot, self.experiments[name].settings
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.experiments.single", name, snapshot.commit, snapshot.revision, *settings],
            env=env, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, process_group=0, preexec_fn=stop_with_parent,
        )  # fmt: skip
        if reading is not None:
            os.close(writing)
        self._running.append(_Job(name, process, time.monotonic(), reading, log))
        self._report(name, "running" if self.jobs == 1 else f"running; its log is {path}")
        if self.stop.first:  # it came while this was being started
            process.terminate()

    def _follow(self) -> None:
        """Show new lines of the running experiments, and report those that have ended."""
        for job in list(self._running):
            ended = job.process.poll() is not None
            if job.output is not None:
                _copy(job.output, job.log)
            if not ended:
                continue
            self._running.remove(job)
            job.log.close()
            if job.output is not None:
                os.close(job.output)
            if job.name in finished(self.snapshot.commit):
                self._ended += 1
                self._record(job.name)
                self._report(job.name, f"finished after {_since(job.start)}")
            elif self.stop.first:
                self._report(job.name, "stopped")
            else:
                self._ended += 1
                self.failed[job.name] = _reason(job)
                self._report(job.name, f"failed: {self.failed[job.name]}")

    def _record(self, name: str) -> None:
        if self.records and name not in self.records.metrics:
            self.records.add(name, self.experiments[name], read_metrics(name, self.snapshot.commit))

    def _report(self, name: str, event: str) -> None:
        count = f"{self._ended} of {len(self.experiments)}"
        _print(f"[{count}, {_since(self._start_time)}] {self.experiments[name].title}: {event}")

    def _on_stop(self, _: signal.Signals) -> None:
        if not self.stop.second:
            with contextlib.suppress(OSError):  # the terminal was closed
                print("\nstopping; running stages save their work. A second signal ends them at once.", file=sys.stderr)
        for job in list(self._running):
            job.process.terminate()


def log_path(name: str) -> Path:
    """Log file of an experiment."""
    return workfiles.root() / "logs" / "experiments" / f"{name}.log"


def _copy(output: int, log: BinaryIO) -> None:
    """Show new output, and append it to the log."""
    with contextlib.suppress(OSError):  # nothing more at present, or a terminal that was closed
        while chunk := os.read(output, 1 << 16):
            # DVC's last line is about the clone.
            chunk = chunk.replace(b"Experiment results have been applied to your workspace.", b"")
            log.write(chunk)
            with contextlib.suppress(OSError):
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed
        print(text, flush=True)


def _since(start: float) -> str:
    return str(timedelta(seconds=int(time.monotonic() - start)))


def _reason(job: _Job) -> str:
    log = log_path(job.name)
    text = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", log.read_text(encoding="utf-8", errors="replace"))  # without colours
    return error_line(text.splitlines()) or f"status {job.process.returncode}; its log is {log}"


def error_line(lines: Sequence[str]) -> str:
    """The stage's error in an experiment's log, or else DVC's, or the last line; paths in the repository are relative."""
    found = (
        line.strip()
        for beginning in ("error: ", "ERROR: ", "")
        for line in reversed(lines)
        if line.strip() and line.startswith(beginning)
    )
    return next(found, "").replace(f"{Path.cwd()}/", "")
