"""Run one stage: `python -m pipelines.launch STAGE`, the command of every stage in dvc.yaml.

The stage runs as a TorchX job on this machine (pipelines/jobs/local.py) or on a cluster (pipelines/jobs/cluster.py): one process
directly, several by torchrun. Its lines appear as they are written, stop signals are forwarded, and the exit status is one of the
table in docs/architecture.md, which also lists the environment variables.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from peco.core import workfiles
from peco.core.environment import WORK
from peco.core.errors import PecoError
from peco.core.params import load_params
from peco.core.versions import require_timm
from pipelines.jobs import cluster, local
from pipelines.jobs.logs import Screen
from pipelines.workflow import edits, failures, given, lock_copy, plan, variables
from pipelines.workflow.environment import SCHEDULER
from pipelines.workflow.graph import Stage, load_graph
from pipelines.workflow.streams import tolerate_unwritable

STOPPED = 128  # and above: the exit statuses of a stage that was stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the stage named on the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m pipelines.launch STAGE", file=sys.stderr)
        return 2
    [name] = arguments
    tolerate_unwritable()
    started = time.monotonic()
    try:
        variables.require_known()
        require_timm()
        load_params("params.yaml")
        graph = load_graph()
        stage = graph[name]
        _require_module(stage)
        if repository := _repository_of_experiment():
            # Working files are kept there, so that the experiment resumes: its own folder is gone afterwards.
            os.environ[WORK.name] = str(repository / workfiles.root())
        else:
            # DVC starts a stage after recording the previous one. Experiments may run at the same time.
            workfiles.remove_finished(keep=stage.name.role)
            lock_copy.keep()
        workfiles.require_writable()
        edits.require_parameters_of_this_run(stage)
        for line in (plan.begin(graph, name), given.note_on_schedule(stage)):
            if line:
                print(line, flush=True)
        read = edits.State.read(stage)
        run = local.run if SCHEDULER.text() == "local_cwd" else cluster.run
        screen = Screen()
        status = run(stage, screen)
        if status == 0:
            edits.require_unedited(read)
            _record_time(name, time.monotonic() - started)
            plan.end(name, time.monotonic() - started)
        elif status < STOPPED and failures.is_evaluation(name):
            with contextlib.suppress(OSError):  # a full or read-only disk, which may be why it failed
                failures.record(stage, screen.reason or f"status {status}")
        return status
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the job, or after its end
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Nothing reads the output any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _require_module(stage: Stage) -> None:
    module = stage.name.module
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise PecoError(f"{stage.name}: there is no module {module}; add one")


def _repository_of_experiment() -> Path | None:
    """The repository if this is one of its experiments, which DVC runs in a folder below `.dvc/tmp/exps`."""
    return next((p.parents[2] for p in Path.cwd().parents if p.parts[-3:] == (".dvc", "tmp", "exps")), None)


def _record_time(name: str, seconds: float) -> None:
    print(f"{name}: {seconds:.1f} s", flush=True)
    with contextlib.suppress(OSError), (workfiles.root() / "times.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": name, "seconds": round(seconds, 3)}) + "\n")


if __name__ == "__main__":
    exit_status = main()
    gc.freeze()  # at its end the interpreter would look for garbage in all modules, which doubles the time that it takes to end
    sys.exit(exit_status)
