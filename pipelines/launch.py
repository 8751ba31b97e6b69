"""Run one stage: `python -m pipelines.launch STAGE`, the command of every stage in dvc.yaml.

The stage runs as a TorchX job: on this machine (pipelines/jobs/local.py), one process directly, several by torchrun, or on a
cluster (pipelines/jobs/cluster.py). Its lines appear as they are written, a stop is forwarded, its status is returned: 0, 2 for an
error that the user can fix, 128 + the signal for a stop, 1 for the rest. docs/architecture.md lists the environment variables.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from peco.core import workfiles
from peco.core.errors import PecoError
from peco.core.params import load_params
from pipelines.jobs import local
from pipelines.jobs.logs import Screen
from pipelines.workflow.environment import SCHEDULER
from pipelines.workflow.graph import load_graph


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the stage named on the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m pipelines.launch STAGE", file=sys.stderr)
        return 2
    [name] = arguments
    started = time.monotonic()
    try:
        load_params("params.yaml")
        _share_work_folder()
        stage = load_graph()[name]
        if SCHEDULER.text() == "local_cwd":
            status = local.run(stage, Screen())
        else:
            from pipelines.jobs import cluster  # imports clients that a single machine may lack

            status = cluster.run(stage, Screen())
        if status == 0:
            _record_time(name, time.monotonic() - started)
        return status
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads the output any more
        return 1


def _share_work_folder() -> None:
    """Keep an experiment's working files in its repository, so that it resumes: DVC runs it in a folder that is gone afterwards."""
    for parent in Path.cwd().parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            os.environ["PECO_WORK"] = str(parent.parents[2] / workfiles.root())


def _record_time(name: str, seconds: float) -> None:
    print(f"{name}: {seconds:.1f} s", flush=True)
    with contextlib.suppress(OSError), (workfiles.root() / "times.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": name, "seconds": round(seconds, 3)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
