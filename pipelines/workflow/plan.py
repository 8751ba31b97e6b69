"""The plan of `make repro`: printed at its head (`peco.plan`); at each stage its number, and when all is done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peco.core import config, workfiles
from peco.core.environment import SPIN
from peco.core.parsing import JSON_ERRORS
from peco.core.progress import waiting
from peco.core.publishing import write_file
from pipelines.workflow.compose import PARAMS
from pipelines.workflow.environment import PLAN, SCHEDULER
from pipelines.workflow.graph import Graph
from pipelines.workflow.inputs import tracked_by

PRIOR = 0.2  # weight of the planned time against the measured one, as a share of the whole plan
FEW_IMAGES = 20_000  # in all trainings on scenes together: they take a minute or two, which need no plan


def announce(parameters: config.Config) -> Path:
    """Print the plan, unless the run is short, on a cluster, or these parameters were run to their end before.

    Returns:
        The file for `PECO_PLAN`, which the launchers of the stages read and complete.
    """
    file = workfiles.root() / "plan.json"
    pointer = tracked_by(Path(parameters.dataset.path))
    key = hashlib.sha256(PARAMS.read_bytes() + (pointer.read_bytes() if pointer else b"")).hexdigest()
    kept = _read(file)
    plan: dict[str, Any] = {"key": key, "seconds": {}, "lines": [], "finished": False, "done": {}}
    if kept.get("key") == key:
        plan |= kept
    if not plan["lines"] and SCHEDULER.text() == SCHEDULER.default and not _short(parameters):
        plan |= _measured()
    if plan["lines"] and not plan["finished"]:
        print("\n".join(plan["lines"]), flush=True)
    if plan["finished"]:
        plan["done"] = {}  # what runs again now has a reason that is not in the parameters
    _write(file, plan)
    return file


def finish(file: Path) -> None:
    """Note that the run was finished."""
    _write(file, {**_read(file), "finished": True})


def begin(graph: Graph, stage: str) -> str | None:
    """The line at the start of a stage; None outside of `make repro`."""
    plan = _read(Path(PLAN.text())) if PLAN.is_set() else {}
    if not plan:
        return None
    before = _needed(graph, stage) | plan["done"].keys()
    line = f"{stage}: stage {len(before & graph.stages.keys()) + 1} of {len(graph.stages)}"
    left = [plan["seconds"].get(name) for name in graph.stages.keys() - before]
    if None in left:
        return line
    # The machine may be slower or faster now than it was for the plan. The first short stages say little about that.
    known = {name: actual for name, actual in plan["done"].items() if name in plan["seconds"]}
    prior = PRIOR * sum(plan["seconds"].values())
    ratio = (sum(known.values()) + prior) / (sum(plan["seconds"][name] for name in known) + prior)
    end = time.localtime(time.time() + ratio * sum(left))
    return f"{line}; all is done at about {time.strftime('%H:%M', end)}"


def end(stage: str, seconds: float) -> None:
    """Note that a stage is done, and the time that it took."""
    if PLAN.is_set() and (plan := _read(Path(PLAN.text()))):
        _write(Path(PLAN.text()), {**plan, "done": {**plan["done"], stage: seconds}})


def _short(parameters: config.Config) -> bool:
    """True if the trainings on scenes see few images."""
    if parameters.dataset.source != "scenes":
        return False
    train = parameters.dataset.scenes.train
    trainings = (parameters.perceptual_net.optim, parameters.tokenizer.optim, parameters.pretrain.optim)
    return sum(optim.images_seen(train) for optim in trainings) < FEW_IMAGES


def _measured() -> dict[str, Any]:
    """Seconds of each stage, and the lines to print; neither if they can't be measured, as the stages then say themselves."""
    file = workfiles.root() / "plan-seconds.json"
    command = [sys.executable, "-m", "peco.plan", "--brief", str(file)]
    with waiting("plan: measuring this machine"):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **SPIN})
    if done.returncode:
        return {}
    return {"seconds": json.loads(file.read_text(encoding="utf-8")), "lines": (done.stdout + done.stderr).splitlines()}


def _needed(graph: Graph, stage: str) -> set[str]:
    """All stages that a stage needs."""
    found: set[str] = set()
    todo = [stage]
    while todo:
        name = todo.pop()
        new = {other for one, other in graph.edges if one == name} - found
        found |= new
        todo += new
    return found


def _read(file: Path) -> dict[str, Any]:
    """The plan in a file; empty if it is missing or damaged."""
    with contextlib.suppress(OSError, *JSON_ERRORS):
        plan = json.loads(file.read_text(encoding="utf-8"))
        types = {"key": str, "seconds": dict, "lines": list, "finished": bool, "done": dict}
        if isinstance(plan, dict) and all(isinstance(plan.get(name), kind) for name, kind in types.items()):
            return plan
    return {}


def _write(file: Path, plan: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a plan is a help, no condition
        write_file(file, json.dumps(plan))
