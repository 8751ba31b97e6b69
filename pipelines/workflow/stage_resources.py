"""The resources of a stage: `meta:` of dvc.yaml, overridden by the environment.

PECO_GPUS=4            four GPUs per node, for every stage
PECO_GPUS_PRETRAIN=8   eight for `pretrain`
PECO_NPROC=2           two processes on a node (the one name that differs from its key, `processes`)
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.resources import Resources
from pipelines.workflow.graph import Stage

# Ignored for stages that run in one process: variables such as PECO_NODES address all stages at once.
SHAPE = ("nodes", "processes")


def variable(key: str) -> str:
    """The environment variable that overrides a key for every stage."""
    return "PECO_NPROC" if key == "processes" else f"PECO_{key.upper()}"


VARIABLES = tuple(variable(field.name) for field in dataclasses.fields(Resources))


def is_variable(name: str) -> bool:
    """True for an environment variable that overrides a key, for every stage or for one."""
    return any(name == key or name.startswith(f"{key}_") for key in VARIABLES)


def variables(key: str, stage: Stage) -> tuple[str, str]:
    """The environment variables that override a key, for every stage and for this one; the latter wins."""
    return variable(key), f"{variable(key)}_{stage.name.role.upper()}"


def resolve(stage: Stage, env: Mapping[str, str]) -> Resources:
    """The resources of a stage.

    Args:
        stage: the stage.
        env: environment variables; an empty one counts as unset.

    Raises:
        PecoError: a value is wrong.
    """
    found = stage.resources
    if not stage.distributed and (found.nodes, found.processes) != (1, 1):
        raise PecoError(
            f"dvc.yaml: {stage.name}: meta: this stage runs on one node in one process; set nodes and processes to 1"
        )
    for field in dataclasses.fields(Resources):
        if not stage.distributed and field.name in SHAPE:
            continue
        for name in variables(field.name, stage):
            if text := env.get(name):
                found = dataclasses.replace(found, **{field.name: _value(field.name, text, name)})
    return found


def _value(key: str, text: str, name: str) -> Any:
    """The value of an environment variable, checked as the key of params.yaml is."""
    kind = typing.get_type_hints(Resources, include_extras=True)[key]
    is_text = typing.get_args(kind)[0] is str
    return schema.build(kind, text if is_text or not text.isdecimal() else int(text), f"{name} (environment)")
