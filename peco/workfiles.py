"""Where working files lie and when they go.

Each run of a stage has the folder `<stage>-<key>` below `$PECO_WORK`. The stage marks it as finished when its results are
published; whoever knows that DVC has recorded them removes it: the launcher when another stage starts, `make repro` at its end.
Equal runs (of two experiments, say) have the same folder, one after the other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
from pathlib import Path
from typing import IO

MARK = "finished"
LOCK = "lock"

_held: dict[Path, IO[str]] = {}  # by the path of the lock
_waited: set[Path] = set()


def root() -> Path:
    """Folder of all working files, logs and times; ignored by git and DVC."""
    return Path(os.environ.get("PECO_WORK") or ".work")


def folder(role: str, key: str) -> Path:
    """Folder of the run of a stage; `role` is the stage's name as a module has it."""
    return root() / f"{role}-{key}"


def hold(work: Path) -> bool:
    """Make the folder and keep it for this process, until it is marked as finished or the process ends.

    Returns:
        whether this process has it now; else another has, which was told once.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work.absolute() / LOCK
    if path in _held and _is(path, _held[path]):
        return True
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if path not in _waited:
            _waited.add(path)
            file.seek(0)
            print(f"an equal run ({file.read().strip()}) is at work in {work}; waiting for its end", flush=True)
        file.close()
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    if not _is(path, file):  # the folder was removed meanwhile, as its run had finished
        file.close()
        return False
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
    file.flush()
    _held[path] = file
    (work / MARK).unlink(missing_ok=True)  # of an equal run before this one
    return True


def _is(path: Path, file: IO[str]) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def mark_finished(work: Path) -> None:
    """Allow the removal of a run's folder, as soon as its results are recorded; an equal run may have it now."""
    (work / MARK).touch()
    if file := _held.pop(work.absolute() / LOCK, None):
        file.close()


def remove_finished(keep: str | None = None) -> None:
    """Remove the folders of finished runs, except those of the stage `keep` (a role), which may be run again."""
    for mark in root().glob(f"*-*/{MARK}"):
        if mark.parent.name.rpartition("-")[0] == keep:
            continue
        with contextlib.suppress(OSError), (mark.parent / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not from under an equal run that has come since
            if mark.exists():
                shutil.rmtree(mark.parent, ignore_errors=True)
