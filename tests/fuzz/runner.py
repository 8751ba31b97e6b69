"""Runs inputs in worker processes: each ends in a result, in a refusal of one line, or in a fault."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Literal

import psutil
import torch

from peco.core.errors import PecoError

from . import files, results
from .kinds import KINDS

SECONDS = 20.0  # of processor time for one input; more is a hang
WALL_SECONDS = 600.0  # the same on the clock, for what waits for ever: others may use the machine
MEMORY = 2 << 30  # bytes of one input, beyond those of the worker
ADDRESSES = 6 << 30  # bytes of addresses beyond those of the worker: absurd requests fail
LETTERS = 500  # of a message
COMMAND_EVERY = 16  # of so many inputs one goes through a command
START_SECONDS = 300.0


@dataclass(frozen=True)
class Case:
    """One mutated input; the same for the same values."""

    kind: str
    seed: int
    number: int

    @property
    def by_command(self) -> bool:
        return self.number % COMMAND_EVERY == 0

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number}"


@dataclass(frozen=True)
class Outcome:
    """The end of a case; `text` is the message of a refusal, or the description of a fault."""

    case: Case
    end: Literal["result", "refusal", "fault"]
    text: str = ""
    command: bool = False


def run_cases(cases: Iterable[Case], jobs: int, keep: Path) -> Iterator[Outcome]:
    """Outcomes of the cases, in order.

    Args:
        cases: what to run.
        jobs: number of worker processes.
        keep: folder in which the inputs of faults stay.
    """
    torch.set_num_threads(1)
    results.results()  # once for all workers, which are forks
    workers = [_Worker(keep) for _ in range(jobs)]
    for worker in workers:
        worker.start()  # before there are threads
    try:
        with ThreadPoolExecutor(jobs) as pool:
            free = list(workers)

            def run(case: Case) -> Outcome:
                worker = free.pop()
                try:
                    return worker.run(case)
                finally:
                    free.append(worker)

            yield from pool.map(run, cases)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that runs one case after the other. It is replaced when it hangs or crashes."""

    def __init__(self, keep: Path) -> None:
        self._keep = keep
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, case: Case) -> Outcome:
        pipe = self._pipe or self.start()
        folder = self._keep / str(case)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            pipe.send((case, folder))
            outcome: Outcome | None = pipe.recv() if self._ends_in_time(pipe) else None
            text = f"hangs: more than {SECONDS:g} s"
        except (EOFError, ConnectionError):
            assert self._process is not None
            self._process.join()
            outcome, text = None, f"the process ended with status {self._process.exitcode}"
        if outcome is None:
            self.stop()
            outcome = Outcome(case, "fault", text)
        if outcome.end == "fault":
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "fault.txt").write_text(outcome.text + "\n", encoding="utf-8", errors="backslashreplace")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _ends_in_time(self, pipe: Connection) -> bool:
        assert self._process is not None
        begin, process = time.monotonic(), psutil.Process(self._process.pid)
        used = _processor_seconds(process)
        while not pipe.poll(1.0):
            if time.monotonic() - begin > WALL_SECONDS or _processor_seconds(process) - used > SECONDS:
                return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def start(self) -> Connection:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_SECONDS):
            raise TimeoutError("a worker does not start")
        self._pipe.recv()
        return self._pipe


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _serve(pipe: Connection) -> None:
    """Main function of a worker: runs the cases that come through the pipe."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, resource.RLIM_INFINITY))
    pipe.send("ready")
    parent = os.getppid()
    while os.getppid() == parent:  # a fork also holds the other end of the pipe, so it never sees the end of it
        if pipe.poll(1.0):
            pipe.send(_run(*pipe.recv()))


def _run(case: Case, folder: Path) -> Outcome:
    kind, rng = KINDS[case.kind], Random(f"{case}")
    content = files.mutate(kind.files(rng), rng, kind.below)
    files.write(content, folder / "input")
    command = case.by_command and bool(kind.commands)
    target = rng.choice(kind.commands if command else kind.functions)
    before = _reset_peak()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        shutil.copytree(folder / "input", run, symlinks=True)
        outcome = _call(case, target, rng, run, command)
    if outcome.end != "fault" and (used := _peak() - before) > MEMORY:
        return Outcome(case, "fault", f"takes {used >> 20} MB", command)
    return outcome


def _call(case: Case, target: object, rng: Random, run: Path, command: bool) -> Outcome:
    """Call a function or a command in a folder, with its output captured as on a UTF-8 terminal."""
    assert callable(target)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors) for errors in ("strict", "backslashreplace"))
    try:
        with (
            contextlib.chdir(run),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            status = target(rng)
    except PecoError as error:
        return _judged(case, str(error), run, command)
    except BaseException:
        return Outcome(case, "fault", traceback.format_exc(), command)
    if not command:
        return Outcome(case, "result")
    err.seek(0)
    text = err.read()
    if "Traceback" in text or not isinstance(status, int) or status not in (0, 1, 2):
        return Outcome(case, "fault", f"status {status}\n{text}", command)
    if status == 0:
        return Outcome(case, "result", command=True)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if len(errors) != 1 or text.splitlines()[-1] != errors[0]:
        return Outcome(case, "fault", f"not one line of error at the end\n{text}", command)
    return _judged(case, errors[0].removeprefix("error: "), run, command)


def _judged(case: Case, message: str, run: Path, command: bool) -> Outcome:
    """A refusal, or a fault if its message is no line that helps."""
    problem = None
    if not message.isprintable():
        problem = "has letters that can't be printed"
    elif len(message) > LETTERS:
        problem = f"has {len(message)} letters"
    elif not _names_a_place(message):
        problem = "names neither a file nor a parameter at its beginning"
    if problem:
        return Outcome(case, "fault", f"the message {problem}: {message}", command)
    return Outcome(case, "refusal", message.replace(f"{run}/", ""), command)


def _names_a_place(message: str) -> bool:
    first, *rest = message.split(": ", 2)
    of_parameter = any(re.match(r"unknown parameter|missing;|.* is not allowed; expected ", part) for part in rest)
    # A stage names itself first.
    return bool(rest) and (of_parameter or any(re.search(r"[/.=]|--\w", part) for part in (first, *rest[:-1])))


def _reset_peak() -> int:
    """Reset the process's peak of memory; returns what it uses now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10  # type: ignore[index]


def default_jobs() -> int:
    return min(4, os.cpu_count() or 1)
