"""Location and clean-up of working files.

Each run of a stage has the folder `<stage>-<key>` below `$PECO_WORK`. The stage marks the folder as finished when its results are
published. It is removed once DVC has recorded them: by the launcher when another stage starts, or by `make repro` at its end. Equal
runs (for example of two experiments) use the same folder, one after the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import IO

from peco.core import locks
from peco.core.environment import WORK
from peco.core.errors import PecoError

MARK = "finished"
LOCK = "lock"

_PROBE_BYTES = 1 << 20  # less than the logs and checkpoints of any stage

_held: dict[Path, IO[str]] = {}  # by the path of the lock
_waited: set[Path] = set()


def root() -> Path:
    """Folder of all working files, logs and times; ignored by git and DVC."""
    return Path(WORK.text())


def folder(role: str, key: str) -> Path:
    """Folder of a run of a stage; `role` is the stage's name in the spelling of a module."""
    return root() / f"{role}-{key}"


def require_writable() -> None:
    """Check that the work folder can be written to, by a file that is removed at once.

    Raises:
        PecoError: it can't, for example on a full or read-only disk.
    """
    try:
        root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root()) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
    except OSError as error:
        raise PecoError(
            f"{root()}: can't be written to ({error.strerror}); fix that, or name another work folder in {WORK.name}"
        ) from None


def acquire(work: Path) -> bool:
    """Make the folder and lock it for this process, until it is marked as finished or the process ends.

    Returns:
        True if the lock was acquired. If another process holds it, a notice is printed once.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work.absolute() / LOCK
    if path in _held and locks.is_same_file(path, _held[path]):
        return True
    file = path.open("a+")
    if not locks.acquire(file, required=False):
        if path not in _waited:
            _waited.add(path)
            file.seek(0)
            print(
                f"another process ({file.read().strip()}) runs this stage with the same inputs in {work}; "
                "waiting for it to finish",
                flush=True,
            )
        file.close()
        return False
    if not locks.is_same_file(path, file):  # the folder was removed in the meantime, since its run had finished
        file.close()
        return False
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
    file.flush()
    _held[path] = file
    (work / MARK).unlink(missing_ok=True)  # of an equal run before this one
    return True


def mark_finished(work: Path) -> None:
    """Allow the removal of a run's folder once its results are recorded, and release its lock, so that an equal run may use it."""
    (work / MARK).touch()
    if file := _held.pop(work.absolute() / LOCK, None):
        file.close()


def remove_finished(keep: str | None = None) -> None:
    """Remove the folders of finished runs, except those of the stage `keep` (a role), which may be run again."""
    for mark in root().glob(f"*-*/{MARK}"):
        if mark.parent.name.rpartition("-")[0] == keep:
            continue
        with contextlib.suppress(OSError), (mark.parent / LOCK).open("a") as file:
            # An equal run may have started since; then it holds the lock.
            if locks.acquire(file) and mark.exists():
                shutil.rmtree(mark.parent, ignore_errors=True)
