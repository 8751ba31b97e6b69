"""Edits of what a stage reads, made while it runs or while the `dvc` command that started it runs.

DVC records parameters and hashes of dependencies after a stage has ended. If they were edited while it ran, DVC would record the
results of the old values next to the new ones, and its run-cache would spread the wrong pair (treeverse/dvc issue 11058). And two
`dvc exp run` in one repository use one params.yaml: the second changes it before DVC refuses it. So such a stage ends with an
error, and DVC records nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from peco.core import workfiles
from peco.core.errors import PecoError
from peco.core.publishing import write_json
from pipelines.workflow.graph import Stage, leaves, load_graph, lookup, read_params

SHOWN = 3  # edits that an error names
# Written by Python and editors: no code, and DVC ignores them too (.dvcignore).
_IGNORED_FOLDERS = ("__pycache__", ".ipynb_checkpoints")
_IGNORED_ENDINGS = ("~", ".swp", ".part", ".DS_Store")


@dataclass(frozen=True)
class State:
    """The inputs that a stage reads.

    Attributes:
        stage: its entry in dvc.yaml.
        params: its parameters by their full keys.
        files: size in bytes and time of change (ns) of each file of its dependencies.
    """

    stage: Stage
    params: Mapping[str, Any]
    files: Mapping[str, tuple[int, int]]

    @classmethod
    def read(cls, stage: Stage) -> State:
        """The state now. Missing files are no error here: the stage and DVC name them."""
        files = {str(path): (found.st_size, found.st_mtime_ns) for path, found in _files(stage.deps)}
        return cls(stage, parameters_of(stage, read_params()), files)


def require_unedited(before: State) -> None:
    """Check that nothing that a stage read has changed since it started.

    Raises:
        PecoError: something has; its result must not be recorded.
    """
    name = before.stage.name
    graph = load_graph()
    after = State.read(graph.stages.get(name, before.stage))
    edits = differences(before.params, after.params)
    if name not in graph.stages or _definition(before.stage) != _definition(after.stage):
        edits.append(f"the stage {name} in dvc.yaml")
    edits += [path for path in sorted({*before.files, *after.files}) if before.files.get(path) != after.files.get(path)]
    if edits:
        raise PecoError(
            f"{name}: {_joined(edits)} was edited while the stage ran, so its result is not recorded. Its work is kept: undo "
            "the edit and run again to finish it, or run again to compute with the edit"
        )


def require_parameters_of_this_run(stage: Stage) -> None:
    """Check that the stage's parameters are those with which the running `dvc` command began.

    Raises:
        PecoError: params.yaml was edited since, by a person or by another `dvc exp run` in this repository.
    """
    dvc = _dvc_process()
    if dvc is None:
        return
    folder = workfiles.root() / "runs"
    record = folder / f"{dvc.pid}-{dvc.create_time():.2f}.json"
    now = leaves(read_params())
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("*.json"):  # of commands that have ended
            if not psutil.pid_exists(int(other.name.partition("-")[0])):
                other.unlink(missing_ok=True)
        write_json(record, now)
    begun = json.loads(record.read_text(encoding="utf-8")) | _overwritten_settings(dvc.cmdline(), now)
    edits = differences(*({key: v for key, v in values.items() if _reads(stage, key)} for values in (begun, now)))
    if edits:
        raise PecoError(
            f"{stage.name}: {_joined(edits)} was edited after this run began: by hand, or by another `dvc exp run` in this "
            "repository, which DVC refuses only after that. Restore params.yaml and run again; to run several experiments, "
            "use `dvc exp run --queue` or `--temp`"
        )


def _overwritten_settings(command: Sequence[str], now: Mapping[str, Any]) -> dict[str, str]:
    """Numbers and words that the command was asked for (`-S key=value`) and params.yaml doesn't have: another command wrote it."""
    pairs = itertools.pairwise(command)
    settings = (setting.partition("=") for option, setting in pairs if option in ("-S", "--set-param"))
    last = {key: text for key, _, text in settings}
    return {key: text for key, text in last.items() if key in now and _differ(now[key], text)}


def _differ(value: object, text: str) -> bool:
    """False also where the text may be another spelling of the value."""
    try:
        return float(text) != float(str(value))
    except ValueError:
        return isinstance(value, str) and text.isidentifier() and text != value


def _definition(stage: Stage) -> tuple[tuple[str, ...], ...]:
    """The part of a stage that DVC records; its resources do not belong to it."""
    return stage.commands, stage.deps, stage.params, stage.outs


def _reads(stage: Stage, key: str) -> bool:
    return any(key == own or key.startswith(f"{own}.") for own in stage.params)


def parameters_of(stage: Stage, values: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's parameters by their full keys, of all `values`."""
    return {leaf: value for key in stage.params for leaf, value in leaves(lookup(values, key), key).items()}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The parameters that differ, each with both values."""
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key} in params.yaml ({before.get(key)} -> {after.get(key)})"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _joined(edits: list[str]) -> str:
    more = f" (and {len(edits) - SHOWN} more)" if len(edits) > SHOWN else ""
    return ", ".join(edits[:SHOWN]) + more


def _files(paths: tuple[str, ...]) -> Iterator[tuple[Path, os.stat_result]]:
    """All files of these files and folders; links are followed, those to folders not."""
    for path in paths:
        inner = [Path(path)] if not Path(path).is_dir() else []
        for folder, folders, names in os.walk(path):
            folders[:] = [name for name in folders if name not in _IGNORED_FOLDERS]
            inner += [Path(folder, name) for name in names if not name.endswith(_IGNORED_ENDINGS)]
        for file in inner:
            with contextlib.suppress(OSError):
                yield file, file.stat()


def _dvc_process() -> psutil.Process | None:
    """The `dvc` command that started this process."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            with contextlib.suppress(psutil.Error):
                if any(Path(part).name in ("dvc", "dvc.exe") for part in process.cmdline()[:3]):
                    return process
    return None
