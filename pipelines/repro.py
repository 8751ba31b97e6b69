"""`make repro`: check the parameters, run `dvc repro`, and print how long each stage took and where the report is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from peco.core import workfiles
from peco.core.environment import trackers
from peco.core.errors import PecoError
from peco.core.params import load_params
from peco.core.publishing import full_folders
from peco.core.versions import require_timm
from pipelines.workflow import failures, given, input_check, inputs, lock_copy, plan, variables
from pipelines.workflow.compose import check_architectures
from pipelines.workflow.environment import PLAN, SCHEDULER
from pipelines.workflow.git import require_repository
from pipelines.workflow.graph import load_graph
from pipelines.workflow.processes import (
    Stopped,
    cache_folder,
    clear_locks_of_killed_dvc,
    clear_temporary_files,
    run_dvc,
)

REPORT, METRICS = Path("reports/report.html"), Path("metrics")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _times(lines: list[str]) -> list[tuple[str, float]]:
    """Stages and their seconds. Lines that can't be read, as after a full disk, are skipped."""
    times = []
    for line in lines:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            entry = json.loads(line)
            times.append((str(entry["stage"]), float(entry["seconds"])))
    return times


def _clear_up() -> None:
    """Remove what killed runs have left: DVC's locks and temporary files, a part of dvc.lock.

    Raises:
        PecoError: dvc.yaml can't be read, or dvc.lock is damaged and can't be restored.
    """
    clear_locks_of_killed_dvc()
    clear_temporary_files({out.parent for out in _outs()})
    lock_copy.restore()


def _outs() -> list[Path]:
    """The outs of all stages."""
    return [Path(out) for stage in load_graph().stages.values() for out in stage.outs]


def main(argv: list[str] | None = None) -> int:
    """Check and run; arguments are passed on to `dvc repro`. Returns as `_run`."""
    try:
        return _run(argv)
    finally:
        os.environ.pop(PLAN.name, None)  # it is for the stages of this run


def _run(argv: list[str] | None) -> int:
    """Check and run.

    Returns:
        2 if it couldn't be started, 128 + the signal if it was stopped, else DVC's exit status.
    """
    arguments = sys.argv[1:] if argv is None else argv
    file = workfiles.root() / "times.jsonl"
    before = len(_lines(file))
    start = time.monotonic()
    failed: dict[str, str] = {}
    written: list[Path] = []
    reported = False
    try:
        variables.require_known()
        trackers(here=SCHEDULER.text() == "local_cwd")
        require_repository()
        require_timm()
        parameters = load_params()
        check_architectures(parameters)
        for key, path in inputs.input_paths(parameters).items():
            # With arguments, a target may not need the other data, or DVC may pull it.
            if key == "dataset.path" or not arguments:
                inputs.require_exists(key, path)
                inputs.require_pulled(path)
        given.check_weights(parameters)
        workfiles.require_writable()
        if not arguments:
            input_check.check_once(parameters.dataset)
        _clear_up()
        # Read now: dvc.yaml may be edited meanwhile.
        written = [cache_folder(), *sorted({Path(out.parts[0]) for out in _outs()})]
        if not arguments:
            failures.clear(Path())
            os.environ[PLAN.name] = str(plan.announce(parameters).absolute())
        status = run_dvc(["repro", *arguments])
        if status and not arguments:
            failed = failures.run_others()
            reported = bool(failed) and failures.make_report()
    except Stopped as stop:
        status = stop.status
    except KeyboardInterrupt:  # before DVC
        status = 128 + signal.SIGINT
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ran = _times(_lines(file)[before:])
    if ran:
        print("\nTime taken:")
        for stage, seconds in ran:
            print(f"  {stage:<20} {seconds:7.1f} s")
        print(f"  {'total':<20} {time.monotonic() - start:7.1f} s")
    for name, line in failed.items():
        print(f"error: {name}: {line}", file=sys.stderr)
    if reported:
        print(f"\nThe report is in {REPORT}; it shows {', '.join(failed)} as failed.")
    if status:
        # A stage that fails by itself names the disk.
        if ran and (full := full_folders(written)):
            print(
                f"error: {', '.join(full)}: disk full, so DVC can't record results; free space and run again",
                file=sys.stderr,
            )
        print("\nNot finished. Finished work is kept: `make repro` resumes from there.", file=sys.stderr)
        return status
    lock_copy.drop()
    workfiles.remove_finished()
    if not arguments:
        plan.finish(Path(PLAN.text()))
    everything = all(argument.startswith("-") for argument in arguments)  # no target was named
    report = f"The report is in {REPORT}; " if everything and REPORT.exists() else ""
    print(f"\n{report}`dvc metrics show` prints the scores, {METRICS}/ has all numbers.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
