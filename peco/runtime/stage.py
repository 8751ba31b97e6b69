"""One run of a stage: its parameters, working files, metrics, error messages and exit status.

A stage module has `PARAMS`, the parameters that it reads, and `main(run)`. The launcher runs it as `python -m peco.stages.<stage>`
or `python -m peco.evaluate.<task>.stage`, in one process, or in several under torchrun.

Working files lie under `$PECO_WORK` (default `.work`), keyed by the stage's parameters, inputs and code: a killed stage finds them
again; if any of these changed, it starts from the beginning. They are kept after the publication (see `workfiles.mark_finished`).
Results appear at their final place only when they are complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peco.core import heartbeat, schema, workfiles
from peco.core.config import Config
from peco.core.device import uses_cuda
from peco.core.environment import HEARTBEAT, THREADS, WORKERS
from peco.core.errors import Interrupted, PecoError
from peco.core.numbers import rounded
from peco.core.params import load_params
from peco.core.progress import waiting
from peco.core.publishing import full_folders, write_json
from peco.core.ranks import ranks
from peco.core.stage_name import StageName
from peco.core.stopping import StopSignals
from peco.runtime import model_card
from peco.runtime.fingerprint import code_hash, content_hash, require_present
from peco.runtime.paths import ARTIFACTS, EVALUATION_MODELS, METRICS, PICTURES, REPORT, SCORES
from peco.runtime.scores import write_scores


class Skipped(Exception):
    """The stage is switched off or can't be done on this data, which is no error: the reason becomes its metrics."""


# Format of checkpoints and other working files: to be raised by a change that can't resume from older ones.
WORK_FORMAT = 1
EXIT_ERROR, EXIT_INTERRUPTED, EXIT_DEFECT = 2, 143, 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_SECONDS = 0.5
KEY_BYTES = 8
LOST_PEER_SECONDS = 10.0


@dataclass(frozen=True)
class StageRun:
    """One run of a stage.

    Attributes:
        name: of the stage, as in dvc.yaml.
        config: the parameters that the stage declares, and no others.
    """

    name: str
    config: Config

    @property
    def workers(self) -> int:
        """Number of data loading processes (PECO_WORKERS)."""
        return WORKERS.integer()

    def work(self, inputs: Iterable[Path], share: Callable[[bytes], bytes] = lambda data: data) -> Path:
        """Folder of this run's working files: the same folder exactly if parameters, inputs and code are the same.

        This process locks it until the run is finished; an equal run, perhaps in another terminal, waits.

        Args:
            inputs: results of earlier stages, and the user's data. Only rank 0 reads them, since they may be large.
            share: returns rank 0's bytes on all ranks.

        Raises:
            PecoError: an input is missing.
        """
        paths = list(inputs)
        for path in paths:
            require_present(path)  # on all ranks, so that no rank waits for one that has failed
        hashing = _in_background(lambda: self._key(paths)) if is_main() else None
        # Ranks wait in many short collectives, since a long one runs into its timeout.
        with waiting(f"{self.name}: reading its inputs, for the name of its work folder"):
            while not share(bytes([hashing is not None and bool(wait([hashing], POLL_SECONDS).done)]))[0]:
                pass
        key = share(hashing.result() if hashing else bytes(KEY_BYTES)).hex()
        folder = workfiles.folder(StageName(self.name).role, key)
        while not share(bytes([is_main() and workfiles.acquire(folder)]))[0]:
            time.sleep(POLL_SECONDS)
        return folder

    def _key(self, inputs: Iterable[Path]) -> bytes:
        state = {
            "format": WORK_FORMAT,
            "params": schema.fingerprint(self.config),
            "inputs": [content_hash(path) for path in inputs],
            "code": code_hash(),
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).digest()[:KEY_BYTES]

    def metrics(self, values: dict[str, Any]) -> None:
        """Write the stage's metrics and scores, and make an evaluation's folder of pictures if there are no pictures."""
        write_json(METRICS / f"{StageName(self.name).path}.json", rounded(values))
        write_scores(self.name, values)
        kind, _, task = self.name.partition("@")
        if kind == "evaluate":
            (PICTURES / task).mkdir(parents=True, exist_ok=True)


def is_main() -> bool:
    """True in the process that writes results."""
    return ranks().rank == 0


def _in_background(work: Callable[[], bytes]) -> Future[bytes]:
    """Start work in a thread of its own. A process that stops does not wait for it."""
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by `result()`
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def run_stage(name: str, params: Iterable[str], main: Callable[[StageRun], None]) -> None:
    """Run a stage and exit: 0, 2 for an error the user can fix, 143 if interrupted, 1 for a bug.

    SIGTERM and SIGINT interrupt it anywhere; unfinished results are removed. A training handles these signals itself.

    Args:
        name: of the stage, as in dvc.yaml.
        params: keys of the parameters that it may read.
        main: its work.
    """
    status = 0
    try:
        # Afterwards they are ignored: the process is about to exit.
        with StopSignals(_interrupt, signals=STOP_SIGNALS, afterwards=signal.SIG_IGN) as stop:
            try:
                if HEARTBEAT.is_set():
                    heartbeat.stop_when_silent(Path(HEARTBEAT.text()), name)
                _allow_open_files()
                _set_up_torch()
                run = StageRun(name, schema.restrict(load_params(), params))
                try:
                    main(run)
                except Skipped as reason:
                    _skip(run, reason)
            except Exception as error:
                if stop.first and not isinstance(error, PecoError):
                    raise KeyboardInterrupt from None  # a rank whose peers have stopped fails in its next collective
                status = _report(name, error)
    except KeyboardInterrupt:
        _print_error(f"{name}: interrupted; run it again to resume")
        status = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips the interpreter's teardown: a rank that waits there for a dead peer would hang the job.
    os._exit(status)


def _skip(run: StageRun, reason: Skipped) -> None:
    if is_main():
        print(f"{run.name}: skipped: {reason}")
        run.metrics({"skipped": str(reason)})
        kind, _, task = run.name.partition("@")
        if kind == "evaluate" and task in EVALUATION_MODELS:
            model_card.write_skipped(EVALUATION_MODELS[task], str(reason))


def _allow_open_files() -> None:
    """Raise the limit of open files to what this process may have: loader processes share memory by file descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than its "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_up_torch() -> None:
    """Set the number of threads (PECO_THREADS), and choose deterministic kernels on the CPU."""
    if threads := THREADS.integer():
        torch.set_num_threads(threads)
    # Equal bytes are promised on the CPU alone; on GPUs this would cost speed, and attention would still differ.
    if not uses_cuda():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _report(name: str, error: Exception) -> int:
    """Print an error, in one line unless it is a bug, and return the exit status."""
    message = _one_line(error)
    if message is None:
        if _is_collective_failure(error):
            # The launcher is about to end this process because of the lost one, and should see that one's end first.
            time.sleep(LOST_PEER_SECONDS)
        traceback.print_exception(error)
        return EXIT_DEFECT
    message = message.removeprefix(f"{name}: ")  # that of a training begins with its own name, often that of the stage
    if isinstance(error, Interrupted):
        _print_error(f"{name}: {message}")
        return EXIT_INTERRUPTED
    _print_error(f"error: {name}: {message}")
    return EXIT_ERROR


def _is_collective_failure(error: Exception) -> bool:
    """True if a collective failed, most often since another process of the job has died."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _one_line(error: Exception) -> str | None:
    """Message of an error that the user can fix; None for a bug."""
    if isinstance(error, PecoError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = " or ".join(full_folders((workfiles.root(), ARTIFACTS, METRICS, SCORES, REPORT.parent)))
        return f"disk full while writing {error.filename or full or 'results'}: free space and run again"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename or 'a result'}: read-only file system; make it writable and run again"
    # Torch's loader reports it as a RuntimeError.
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or "Too many open files" in str(
        error
    ):
        return "too many open files: raise the limit (`ulimit -n 4096`) or lower PECO_WORKERS, and run again"
    # Torch raises this from its SIGCHLD handler, wherever the main thread happens to be.
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return (
            "a loader process was killed, most often because it ran out of memory: free memory (/dev/shm too) or lower "
            "PECO_WORKERS, and run again"
        )
    return None


def _print_error(line: str) -> None:
    print(line, file=sys.stderr)


def _interrupt(_: signal.Signals) -> None:
    """Raises KeyboardInterrupt, which no `except Exception` swallows."""
    raise KeyboardInterrupt
