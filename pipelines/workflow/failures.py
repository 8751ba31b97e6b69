"""Evaluations that failed: the others and the report are made without them, and the next run tries them again.

A failed evaluation leaves `{"failed": LINE}` as its metrics, no scores and an empty folder of pictures, which the report reads. DVC
has no record of these files: its next run finds that they are not the results of the stage, and runs it again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from peco.core.publishing import write_json
from pipelines.workflow.graph import SCORES, Graph, Stage, load_graph
from pipelines.workflow.processes import run_dvc

FAILED = "failed"
REPORT = "report"  # the stage that can be made without an evaluation
_LOGS = "; its logs are in "  # what follows is valid on this machine only


def is_evaluation(name: str) -> bool:
    """True for the stages `evaluate@…`, which no other stage but the report needs."""
    return name.startswith("evaluate@")


def record(stage: Stage, line: str, root: Path = Path()) -> None:
    """Write the results of an evaluation that failed. Those of an earlier run are kept: DVC removes them before it runs a stage.

    Args:
        stage: the evaluation.
        line: its error.
        root: the repository.
    """
    for out in stage.outs:
        path = root / out
        if path.exists():
            continue
        if out.startswith(f"{SCORES}/"):
            write_json(path, {})
        elif path.suffix == ".json":
            write_json(path, {FAILED: line.removeprefix("error: ").removeprefix(f"{stage.name}: ").partition(_LOGS)[0]})
        else:
            path.mkdir(parents=True)


def failures(graph: Graph, root: Path) -> dict[str, str]:
    """The errors of the evaluations that failed when they were last run, by name."""
    found = {}
    for stage in graph.stages.values():
        for out in stage.outs if is_evaluation(stage.name) else ():
            if not out.endswith(".json"):
                continue
            try:
                values = json.loads((root / out).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(values, dict) and FAILED in values:
                found[str(stage.name)] = str(values[FAILED])
    return found


def clear(root: Path) -> None:
    """Remove what failed evaluations have left, so that later failures are those of the next run."""
    graph = load_graph(root)
    for name in failures(graph, root):
        for out in graph[name].outs:
            path = root / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_others(root: Path = Path()) -> dict[str, str]:
    """After a run that failed: if evaluations did, run the others, without those that fail as well.

    It doesn't use `dvc repro --keep-going`, which starts the next stage after a stop signal.

    Args:
        root: the repository.

    Returns:
        The errors of the evaluations that failed, by name; empty if something else did.

    Raises:
        Stopped: a stop signal came.
        PecoError: dvc.yaml can't be read, or DVC can't be started.
    """
    graph = load_graph(root)
    known: set[str] = set()
    failed = failures(graph, root)
    while failed.keys() - known:
        known = set(failed)
        others = [str(name) for name in graph.stages if is_evaluation(name) and name not in failed]
        print(f"\n{', '.join(sorted(failed))} failed; the other evaluations follow", flush=True)
        if not others or run_dvc(["repro", *others], cwd=root) == 0:
            break
        failed = failures(graph, root)
    return failed


def make_report(root: Path = Path()) -> bool:
    """Make the report with the failed evaluations in it, and return True; False if something else that it needs is missing."""
    graph = load_graph(root)
    if REPORT not in graph.stages or not all((root / dep).exists() for dep in graph[REPORT].deps):
        return False
    return run_dvc(["repro", "--single-item", REPORT], cwd=root) == 0
