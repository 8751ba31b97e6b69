"""`make repro`: check the parameters, run `dvc repro`, and say how long each stage took and where the report is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from peco import config
from peco.errors import PecoError


def run_dvc(arguments: list[str]) -> int:
    """Run `dvc`; being asked to stop (SIGINT, SIGTERM, SIGHUP) stops the stage, which saves its work. Gives the exit status."""
    process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], process_group=0)

    def forward(number: int, frame: FrameType | None) -> None:
        # Always SIGINT, and to the whole group: the launcher stops its stage, while DVC waits for it and then gives up tidily.
        # A SIGTERM would end DVC at once and leave the stage behind.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    return process.wait()


def _times(path: Path, since: int) -> list[tuple[str, float]]:
    lines = path.read_text(encoding="utf-8").splitlines()[since:] if path.exists() else []
    return [(entry["stage"], entry["seconds"]) for entry in map(json.loads, lines)]


def main(argv: list[str] | None = None) -> int:
    """Arguments are passed on to `dvc repro`."""
    try:
        parameters = config.load()
        source = Path(parameters.dataset.path)
        if not source.exists() and not source.with_name(source.name + ".dvc").exists():
            raise PecoError(
                f"dataset.path: {source} does not exist; `make repro DATA=folder-or-tar` takes your images in"
            )
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    times = Path(os.environ.get("PECO_WORK", ".work")) / "times.jsonl"
    before = len(_times(times, 0))
    start = time.monotonic()
    status = run_dvc(["repro", *(sys.argv[1:] if argv is None else argv)])
    ran = _times(times, before)
    if ran:
        print("\nTime taken:")
        for stage, seconds in ran:
            print(f"  {stage:<20} {seconds:7.1f} s")
        print(f"  {'in all':<20} {time.monotonic() - start:7.1f} s")
    if status == 0:
        print("\nThe report is in reports/report.html; `dvc metrics show` prints the numbers.")
    else:
        print("\nNot finished. What was done is kept: `make repro` goes on from there.", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
