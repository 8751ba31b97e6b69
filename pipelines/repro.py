"""`make repro`: check the parameters, run `dvc repro`, and say how long each stage took and where the report is."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from peco.core import workfiles
from peco.core.errors import PecoError
from peco.core.params import load_params
from pipelines.workflow import inputs
from pipelines.workflow.compose import check_architectures
from pipelines.workflow.processes import Stopped, run_dvc

REPORT = Path("reports/report.html")


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


def _check_lock(path: Path) -> None:
    """Refuse a dvc.lock that is empty, as a power failure can leave it: DVC's own message tells no way out.

    Raises:
        PecoError: it is.
    """
    if path.exists() and not path.read_bytes().strip(b"\0 \n"):
        raise PecoError(
            f"{path}: is empty; `git checkout {path}` brings back a committed one, else delete it: what is in DVC's cache is taken "
            "from there"
        )


def main(argv: list[str] | None = None) -> int:
    """Arguments are passed on to `dvc repro`.

    Returns:
        2 where it couldn't be started, 128 + the signal where it was stopped, else DVC's exit status.
    """
    arguments = sys.argv[1:] if argv is None else argv
    file = workfiles.root() / "times.jsonl"
    before = len(_lines(file))
    start = time.monotonic()
    try:
        parameters = load_params()
        check_architectures(parameters)
        for key, path in inputs.tracked(parameters).items():
            if key == "dataset.path" or not arguments:  # a target may need no more, and DVC may be told to pull
                inputs.require_there(key, path)
                inputs.require_present(path)
        _check_lock(Path("dvc.lock"))
        status = run_dvc(["repro", *arguments])
    except Stopped as stop:
        status = stop.status
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
