"""The heartbeat of a job on a cluster: a file that the process which follows the job touches, and that the job's processes watch.

A job whose follower is gone, killed or on a lost node, holds its GPUs for nobody. Without a heartbeat its processes send themselves
SIGTERM: a training saves a checkpoint and ends. A new follower touches the same file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from peco.core.environment import WORK
from peco.core.errors import PecoError

INTERVAL_SECONDS = 2.0
SILENCE_SECONDS = 40.0


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touch the file now and every `INTERVAL_SECONDS`, in a thread; remove it at the end.

    Raises:
        PecoError: the file can't be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise PecoError(f"{WORK.name}: {path} can't be written ({error.strerror}); free or repair the volume") from None
    over = threading.Event()

    def beat() -> None:
        while not over.wait(INTERVAL_SECONDS):
            with contextlib.suppress(
                OSError
            ):  # a volume that is away for a moment; touching needs no space on a full one
                path.touch()

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(INTERVAL_SECONDS)
        path.unlink(missing_ok=True)


class Silence:
    """The time in which a file has not changed, as far as this process has seen it.

    Modification times are only compared with one another, so the clocks of two machines need not agree. An observation adds at most
    two intervals: the time in which this process was paused, or the volume hung, is not the file's silence.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = self._read()
        self._observed = time.monotonic()
        self.seconds = 0.0

    def observe(self) -> float:
        """Look at the file; returns the seconds of its silence."""
        state = self._read()
        now = time.monotonic()
        if state != self._state:
            self.seconds = 0.0
        else:
            self.seconds += min(now - self._observed, 2 * INTERVAL_SECONDS)
        self._state, self._observed = state, now
        return self.seconds

    def _read(self) -> tuple[int, int] | None:
        """Inode and modification time; None where there is no file."""
        try:
            # Opened, not only looked up: NFS asks its server for the time when a file is opened.
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def stop_when_silent(path: Path, name: str) -> None:
    """Send SIGTERM to this process, once, when the file has been silent for `SILENCE_SECONDS`; a daemon thread watches it.

    Args:
        path: the file; while it can't be read for another reason than that it is missing, no time counts.
        name: of the stage, for the line that is printed.
    """

    def watch() -> None:
        silence = None
        while True:
            with contextlib.suppress(OSError):
                silence = silence or Silence(path)
                if silence.observe() >= SILENCE_SECONDS:
                    break
            time.sleep(INTERVAL_SECONDS)
        text = f"{name}: nobody has followed this job for {SILENCE_SECONDS:.0f} s: it saves its work and ends"
        print(text, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="heartbeat").start()
