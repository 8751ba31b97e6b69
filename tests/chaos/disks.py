"""Full and read-only disks in a stage: one line for the user, and the same bytes once the disk is well again.

The disks are small tmpfs in a mount namespace of this process, so only root has them, and they vanish with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .project import Ended, Project

CLONE_NEWNS = 0x00020000
SIZE = "96m"
SPARE_BYTES = 60_000  # at most left on a full disk
FILLER = ".filler"
PLACES = ("work", "results", "cache")
CAUSES = {"full": r"disk full|No space left", "read-only": r"[Rr]ead-only"}
END_SECONDS = 30.0


@dataclass
class DiskOutcome:
    """A disk fault in a stage.

    Attributes:
        place: one of `PLACES`.
        fault: "full" or "read-only".
        ends: how the run ended: in one line, or done, with the same bytes, where it needed no more space.
        faults: one line each.
    """

    place: str
    fault: str
    ends: str
    faults: list[str] = field(default_factory=list)


def separate_mounts() -> str | None:
    """Give this process and its children mounts of their own. Returns the reason if that is not possible."""
    if os.geteuid() != 0:
        return "only root may mount disks"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        return f"mounts are not permitted here ({os.strerror(ctypes.get_errno())})"
    done = subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True, text=True)
    return done.stderr.strip() or None


def spoil_disks(
    project: Project, stage: str, seed: int, say: Callable[[str], None], places: Collection[str] = PLACES
) -> list[DiskOutcome]:
    """Run a stage with the disk of each place full, then read-only, and at last with all disks well."""
    rng = random.Random(f"{seed} {stage} disks")
    project.prepare(stage)
    outcomes = []
    with contextlib.ExitStack() as stack:
        folders = [("work", ".work"), ("cache", ".dvc/cache")]
        folders += [("results", folder) for folder in sorted({Path(out).parts[0] for out in project.outs(stage)})]
        disks = [(place, stack.enter_context(disk(project.root / f))) for place, f in folders if place in places]
        for place, path in disks:
            for fault in CAUSES:
                with fill(path, rng.choice((0, rng.randrange(SPARE_BYTES)))) if fault == "full" else read_only(path):
                    ended = project.run(stage)
                    left = project.wait_for_end(END_SECONDS)
                outcome = judge(project, place, path, fault, ended)
                outcome.faults += [f"process left: {command}" for command in left]
                outcomes.append(outcome)
                if ended.status == 0:
                    outcome.faults += project.differences()
                if outcome.faults:
                    say("\n".join([f"{stage}: {place} {fault}", *outcome.faults, *ended.output.splitlines()[-30:]]))
                if ended.status == 0:
                    project.drop(stage)
        ended = project.run(stage)
        faults = project.differences() if ended.status == 0 else [f"status {ended.status} with all disks well"]
        if faults:
            say("\n".join([f"{stage}: after all disk faults", *faults, *ended.output.splitlines()[-30:]]))
        outcomes[-1].faults += faults
    return outcomes


@contextlib.contextmanager
def disk(path: Path) -> Iterator[Path]:
    """A small disk at this folder, with its content."""
    path.mkdir(parents=True, exist_ok=True)
    content = path.with_name(f"{path.name}-content")
    shutil.copytree(path, content, symlinks=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "chaos", path], check=True)
    shutil.copytree(content, path, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(content)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextlib.contextmanager
def fill(path: Path, spare: int) -> Iterator[None]:
    """Leave this number of bytes on the disk."""
    filler = path / FILLER
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(filler, max(0, filler.stat().st_size - spare))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", path], check=True)


def judge(project: Project, place: str, path: Path, fault: str, ended: Ended) -> DiskOutcome:
    """A run that failed must have said so in a line that names the folder and the cause."""
    if ended.status == 0:
        return DiskOutcome(place, fault, "done")
    outcome = DiskOutcome(place, fault, "one line")
    name = str(path.relative_to(project.root))
    lines = [line for line in ended.output.splitlines() if line.lower().startswith("error")]
    if not any(name in line and re.search(CAUSES[fault], line) for line in lines):
        outcome.faults.append(f"no line names {name} and the cause")
    if "Traceback" in ended.output:
        outcome.faults.append("a traceback")
    for logs in re.findall(r"its logs are in (\S+)", ended.output):
        if not any(file.stat().st_size for file in (project.root / logs).rglob("*.log")):
            outcome.faults.append(f"no logs in {logs}")
    if outcome.faults:
        outcome.ends = "fault"
    return outcome
