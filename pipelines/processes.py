"""How processes are asked to stop, by signals and by the end of the one that started them; and that some run alone."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from peco.errors import Interrupted, PecoError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """For `preexec_fn`: even a parent that is killed outright takes the process along, as the kernel sends it SIGTERM (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None], *, even_ignored: Collection[signal.Signals] = ()
) -> Iterator[None]:
    """Have `handler` called for a stop; a signal that is ignored, as SIGHUP under nohup, stays so.

    Args:
        handler: takes the place of the present ones, until the block is left.
        even_ignored: signals to handle all the same. (A shell's background jobs ignore SIGINT.)
    """
    numbers = [n for n in STOP_SIGNALS if n in even_ignored or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Stopped(Interrupted):
    """A signal asked for an end.

    Attributes:
        status: exit status that tells so, 128 + the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__("stopped; what it has is kept, and the same again goes on from there")
        self.status = 128 + number


def run_dvc(arguments: Sequence[str], *, cwd: Path | None = None, show: Callable[[str], None] | None = None) -> int:
    """Run DVC and return its status; being asked to stop stops the stage, which saves its work.

    Call it from the main thread: it handles the signals until DVC has ended.

    Args:
        show: receives each line of DVC and of the stage; without it they go where those of this process go.

    Raises:
        Stopped: a stop was asked for meanwhile, even if DVC was done by then; all has ended.
        PecoError: DVC can't be started.
    """
    process: subprocess.Popen[str] | None = None
    stopped: int | None = None

    def forward(number: int, _: FrameType | None) -> None:
        # Always SIGINT, and to the whole group: the launcher stops its stage, while DVC waits for it and then gives up tidily.
        # A SIGTERM would end DVC at once and leave the stage behind.
        nonlocal stopped
        stopped = stopped or number
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)

    # DVC runs `python …`, which must be this one.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if show else {}
    with handling(forward):
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", *arguments],
                cwd=cwd,
                env={**os.environ, "PATH": path},
                text=True,
                errors="replace",
                process_group=0,
                **piped,
            )
        except OSError as error:
            raise PecoError(f"dvc: can't be started: {error}") from None
        if stopped is not None:  # while it was being started
            forward(stopped, None)
        broken = False
        for line in process.stdout or ():
            broken = broken or (stopped is not None and line.startswith("Traceback"))
            if show and not broken:  # where a stop hits DVC is of no interest
                show(line)
        status = process.wait()
    if stopped is not None:
        raise Stopped(stopped)
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def alone(command: str) -> Iterator[None]:
    """Refuse a second call of a command beside one that runs.

    Raises:
        PecoError: there is one.
    """
    lock = Path(f".dvc/tmp/{command}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PecoError(f"another `make {command}` runs here; wait for its end") from None
        yield
