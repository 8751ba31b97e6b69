"""Where working files lie and when they go.

Each run of a stage has the folder `<stage>-<key>` below `$PECO_WORK`. The stage marks it as finished when its results are
published; whoever knows that DVC has recorded them removes it: the launcher when another stage starts, `make repro` at its end.
Equal runs (of two experiments, say) have the same folder, one after the other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import IO

MARK = "finished"
LOCK = "lock"
POLL_SECONDS = 0.5

_held: dict[Path, IO[str]] = {}


def root() -> Path:
    """Folder of all working files, logs and times; ignored by git and DVC."""
    return Path(os.environ.get("PECO_WORK") or ".work")


def folder(role: str, key: str) -> Path:
    """Folder of the run of a stage; `role` is the stage's name as a module has it."""
    return root() / f"{role}-{key}"


def hold(work: Path) -> None:
    """Make the folder, and keep it for this process until its end; wait while another has it."""
    path, told = work / LOCK, False
    held = _held.get(path.absolute())
    if held and path.exists() and os.path.samestat(path.stat(), os.fstat(held.fileno())):
        return
    while True:
        work.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                print(f"an equal run is at work in {work}; waiting for its end", flush=True)
            told = True
            file.close()
            time.sleep(POLL_SECONDS)
            continue
        except OSError:
            pass  # a file system without locks
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            _held[path.absolute()] = file
            return
        file.close()  # the folder was removed meanwhile, as its run had finished


def mark_finished(work: Path) -> None:
    """Allow the removal of a run's folder, as soon as its results are recorded."""
    (work / MARK).touch()


def remove_finished(keep: str | None = None) -> None:
    """Remove the folders of finished runs, except those of the stage `keep` (a role), which may be run again."""
    for mark in root().glob(f"*-*/{MARK}"):
        if mark.parent.name.rpartition("-")[0] != keep:
            shutil.rmtree(mark.parent, ignore_errors=True)
