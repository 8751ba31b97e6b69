"""Refuses environment variables of this project's prefix that nothing reads, as unknown keys of params.yaml are."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping

from peco.core import environment as of_stages
from peco.core.environment import Variable
from peco.core.errors import PecoError
from pipelines.workflow import environment as of_workflow
from pipelines.workflow.graph import load_graph
from pipelines.workflow.stage_resources import VARIABLES

_PREFIX = "PECO_"
_OF_TESTS = f"{_PREFIX}TEST_"
# Kubernetes describes each service of the namespace to all pods; one may be called peco, or peco-….
_OF_KUBERNETES = re.compile(r"PECO_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


def require_known(env: Mapping[str, str] = os.environ) -> None:
    """Check the names of all variables that begin with PECO_; empty ones count as unset.

    Raises:
        PecoError: one is unknown, or names no stage of dvc.yaml; with the nearest name.
    """
    own = sorted(name for name in env if name.startswith(_PREFIX) and env[name] and not name.startswith(_OF_TESTS))
    declared = [
        value.name
        for module in (of_stages, of_workflow)
        for value in vars(module).values()
        if isinstance(value, Variable)
    ]
    unknown = [
        name for name in own if name not in declared and name not in VARIABLES and not _OF_KUBERNETES.fullmatch(name)
    ]
    if not unknown:
        return
    try:
        roles = sorted({stage.name.role.upper() for stage in load_graph().stages.values()})
    except PecoError:
        return  # dvc.yaml or params.yaml can't be read: `make params` must be able to write a new one, all else reports it
    known = [*declared, *VARIABLES, *(f"{key}_{role}" for key in VARIABLES for role in roles)]
    for name in unknown:
        if name not in known:
            nearest = difflib.get_close_matches(name[len(_PREFIX) :], [other[len(_PREFIX) :] for other in known], n=1)
            hint = (
                f"the nearest is {_PREFIX}{nearest[0]}"
                if nearest
                else "docs/architecture.md and docs/cluster.md list them"
            )
            key = next((key for key in sorted(VARIABLES, key=len, reverse=True) if name.startswith(f"{key}_")), None)
            fault = f"names no stage ({name[len(key) + 1 :].lower()})" if key else "unknown variable"
            raise PecoError(f"{name}: {fault}; {hint}")
