"""`make repro`: check the parameters, run `dvc repro`, and say how long each stage took and where the report is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from peco import config, workfiles
from peco.errors import PecoError
from pipelines import inputs

REPORT = Path("reports/report.html")


def run_dvc(arguments: list[str]) -> int:
    """Run `dvc`; being asked to stop (SIGINT, SIGTERM, SIGHUP) stops the stage, which saves its work.

    Call it from the main thread: it handles the signals until DVC has ended.

    Returns:
        DVC's exit status, 128 + the signal where one ended it.

    Raises:
        PecoError: DVC can't be started.
    """
    process: subprocess.Popen[bytes] | None = None
    stopped = False

    def forward(number: int, frame: FrameType | None) -> None:
        # Always SIGINT, and to the whole group: the launcher stops its stage, while DVC waits for it and then gives up tidily.
        # A SIGTERM would end DVC at once and leave the stage behind.
        nonlocal stopped
        stopped = True
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], process_group=0)
        if stopped:  # while it was being started
            forward(signal.SIGINT, None)
        status = process.wait()
    except OSError as error:
        raise PecoError(f"dvc: can't be started: {error}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _times(lines: list[str]) -> list[tuple[str, float]]:
    """Stages and their seconds; a line that can't be read, as of a full disk, is passed over."""
    times = []
    for line in lines:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            entry = json.loads(line)
            times.append((str(entry["stage"]), float(entry["seconds"])))
    return times


def main(argv: list[str] | None = None) -> int:
    """Arguments are passed on to `dvc repro`. Returns 2 where it couldn't be started, else DVC's exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    file = workfiles.root() / "times.jsonl"
    before = len(_lines(file))
    start = time.monotonic()
    try:
        for key, path in inputs.tracked(config.load()).items():
            if key == "dataset.path" or not arguments:  # a target may need no more, and DVC may be told to pull
                inputs.require_there(key, path)
                inputs.require_present(path)
        status = run_dvc(["repro", *arguments])
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ran = _times(_lines(file)[before:])
    if ran:
        print("\nTime taken:")
        for stage, seconds in ran:
            print(f"  {stage:<20} {seconds:7.1f} s")
        print(f"  {'in all':<20} {time.monotonic() - start:7.1f} s")
    if status:
        print("\nNot finished. What was done is kept: `make repro` goes on from there.", file=sys.stderr)
        return status
    workfiles.remove_finished()
    everything = all(argument.startswith("-") for argument in arguments)  # no target was named
    report = f"The report is in {REPORT}; " if everything and REPORT.exists() else ""
    print(f"\n{report}`dvc metrics show` prints the numbers.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
