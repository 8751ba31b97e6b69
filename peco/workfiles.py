"""Where working files lie and when they go.

Each run of a stage has the folder `<stage>-<key>` below `$PECO_WORK`. The stage marks it as finished when its results are
published; whoever knows that DVC has recorded them removes it: the launcher when another stage starts, `make repro` at its end.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MARK = "finished"


def root() -> Path:
    """Folder of all working files, logs and times; ignored by git and DVC."""
    return Path(os.environ.get("PECO_WORK") or ".work")


def folder(role: str, key: str) -> Path:
    """Folder of the run of a stage; `role` is the stage's name as a module has it."""
    return root() / f"{role}-{key}"


def mark_finished(work: Path) -> None:
    """Allow the removal of a run's folder, as soon as its results are recorded."""
    (work / MARK).touch()


def remove_finished(keep: str | None = None) -> None:
    """Remove the folders of finished runs, except those of the stage `keep` (a role), which may be run again."""
    for mark in root().glob(f"*-*/{MARK}"):
        if mark.parent.name.rpartition("-")[0] != keep:
            shutil.rmtree(mark.parent, ignore_errors=True)
