"""What all stages share: how one is started, where it works, and how it hands over its results.

A stage module has `PARAMS`, the parameters it reads, and `main(run)`. It is run as `python -m peco.stages.<stage>` by the
launcher, in one process or in many under torchrun.

Working files live under `$PECO_WORK` (default `.work`), keyed by the stage's parameters, inputs and code: a stage that was killed
finds them again, one of which any of these changed does not. They outlast the publication (see `workfiles.mark_finished`). Results
appear at their final place only when complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
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

from peco.core import schema, workfiles
from peco.core.config import Config
from peco.core.device import uses_cuda
from peco.core.environment import THREADS, WORKERS
from peco.core.errors import Interrupted, PecoError
from peco.core.numbers import rounded
from peco.core.params import load_params
from peco.core.publishing import write_json
from peco.core.stage_name import StageName
from peco.core.stopping import StopSignals
from peco.runtime.fingerprint import code_hash, content_hash, require_present
from peco.runtime.paths import METRICS, PICTURES


class Skipped(Exception):
    """The stage can't be done on this data, which is no error: the reason becomes its metrics."""


WORK_FORMAT = 1  # of checkpoints and other working files: raised where older ones can't be gone on from
EXIT_ERROR, EXIT_INTERRUPTED = 2, 143
POLL_SECONDS = 0.5
KEY_BYTES = 8
LOST_PEER_SECONDS = 10.0


@dataclass(frozen=True)
class StageRun:
    """One run of a stage.

    Args:
        name: of the stage, as in dvc.yaml.
        config: only the parameters that the stage declares.
    """

    name: str
    config: Config

    @property
    def workers(self) -> int:
        """Data loading processes that the launcher grants."""
        return WORKERS.integer()

    def work(self, inputs: Iterable[Path], share: Callable[[bytes], bytes] = lambda data: data) -> Path:
        """Folder for this run's working files: the same for equal parameters, inputs and code, and only then.

        Until this process ends no other may have it: one that comes later, from another terminal perhaps, waits.

        Args:
            inputs: results of earlier stages, and data of the user's. Only rank 0 reads them, since they may be large.
            share: rank 0's bytes to all ranks.
        """
        paths = list(inputs)
        for path in paths:
            require_present(path)  # on all ranks, so that none waits for one that has failed
        # Ranks wait in many short collectives, since a long one runs into its timeout.
        hashing = _in_background(lambda: self._key(paths)) if is_main() else None
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
        """Write the stage's metrics file; of an evaluation also its folder of pictures, empty unless it has some."""
        write_json(METRICS / f"{StageName(self.name).path}.json", rounded(values))
        kind, _, task = self.name.partition("@")
        if kind == "evaluate":
            (PICTURES / task).mkdir(parents=True, exist_ok=True)


def is_main() -> bool:
    """Whether this process is the one that writes results."""
    return os.environ.get("RANK", "0") == "0"


def _in_background(work: Callable[[], bytes]) -> Future[bytes]:
    """Start work beside this thread. A process that stops does not wait for it."""
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def run_stage(name: str, params: Iterable[str], main: Callable[[StageRun], None]) -> None:
    """Run a stage as this process's work, and exit: 0, 2 for an error the user can fix, 143 if interrupted, 1 for a defect.

    SIGTERM and SIGINT interrupt it anywhere; what it was writing is removed. A training handles them itself.

    Args:
        name: of the stage, as in dvc.yaml.
        params: keys of the parameters that it may read.
        main: its work.
    """
    code = 0
    try:
        with StopSignals(
            _interrupt,
            signals=(signal.SIGTERM, signal.SIGINT),
            afterwards=signal.SIG_IGN,  # the process is about to leave
        ) as stop:
            try:
                _set_up_torch()
                run = StageRun(name, schema.restrict(load_params(), params))
                try:
                    main(run)
                except Skipped as reason:
                    if is_main():
                        print(f"{name}: skipped: {reason}")
                        run.metrics({"skipped": str(reason)})
            except Exception as error:
                if stop.first and not isinstance(error, PecoError):
                    raise KeyboardInterrupt from None  # a rank whose peers have stopped fails in its next collective
                code = _report(name, error)
    except KeyboardInterrupt:
        _print_error(f"{name}: interrupted; run it again to resume")
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    # Leaving without the interpreter's teardown: a rank that waits there for a dead peer would hang the job.
    os._exit(code)


def _set_up_torch() -> None:
    """Fix the number of threads, and choose deterministic kernels on the CPU."""
    if threads := THREADS.integer():
        torch.set_num_threads(threads)
    # Equal bytes are promised on the CPU; on GPUs it would cost speed, and attention would differ all the same.
    if not uses_cuda():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _report(name: str, error: Exception) -> int:
    """Print an error, in one line unless it is a defect, and return the exit status."""
    text = str(error).removeprefix(
        f"{name}: "
    )  # a training's own message begins with its name, often that of the stage
    if isinstance(error, Interrupted):
        _print_error(f"{name}: {text}")
        return EXIT_INTERRUPTED
    if isinstance(error, PecoError):
        _print_error(f"error: {name}: {text}")
        return EXIT_ERROR
    if cause := _fixable(error):
        _print_error(f"error: {name}: {cause}")
        return EXIT_ERROR
    if _lost_peer(error):
        # The launcher is about to end this process because of the one that was lost, and should see that one's end first.
        time.sleep(LOST_PEER_SECONDS)
    traceback.print_exception(error)
    return 1


def _lost_peer(error: Exception) -> bool:
    """Whether a collective failed, most often since another process of the job has died."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _fixable(error: Exception) -> str | None:
    """What to tell the user about an error that isn't peco's own; None for a defect."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full while writing {error.filename or 'results'}: free space and run again"
    # Torch raises this wherever the main thread happens to be when it learns of the loader process's end.
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
