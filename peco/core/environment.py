"""The environment variables that a stage reads; pipelines/workflow/environment.py has those of the workflow.

An empty variable counts as unset.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from peco.core.errors import PecoError


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Attributes:
        name: its name.
        meaning: one line for the documentation.
        default: value where it is unset; empty for none.
    """

    name: str
    meaning: str
    default: str = ""

    def is_set(self, env: Mapping[str, str] | None = None) -> bool:
        """True if it has a value of its own."""
        return bool((os.environ if env is None else env).get(self.name))

    def text(self, env: Mapping[str, str] | None = None) -> str:
        """Its value, or the default."""
        return (os.environ if env is None else env).get(self.name) or self.default

    def integer(self, env: Mapping[str, str] | None = None, *, low: int = 0, high: int | None = None) -> int:
        """Its value as a whole number.

        Raises:
            PecoError: it isn't one, or is out of range.
        """
        text = self.text(env)
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            span = f"at least {low}" if high is None else f"from {low} to {high}"
            raise PecoError(f"{self.name}: {text!r} is not allowed; expected an integer, {span}")
        return int(text)

    def flag(self, env: Mapping[str, str] | None = None) -> bool:
        """Its value as a switch.

        Raises:
            PecoError: it is neither 0 nor 1.
        """
        return self.integer(env, high=1) == 1

    def number(self, env: Mapping[str, str] | None = None) -> float:
        """Its value as a number of at least 0.

        Raises:
            PecoError: it isn't one.
        """
        text = self.text(env)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise PecoError(f"{self.name}: {text!r} is not allowed; expected a number, at least 0")
        return value


ALLOW_PIPE = Variable("PECO_ALLOW_PIPE", "1: addresses `pipe:PROGRAM` of WebDataset tars may run their program", "0")
WORK = Variable("PECO_WORK", "the work folder: working files, logs and times", ".work")
THREADS = Variable("PECO_THREADS", "threads of a process; 0: the cores divided by the number of processes", "0")
WORKERS = Variable("PECO_WORKERS", "data loading processes of each training process", "0")
DEVICE = Variable("PECO_DEVICE", "`cpu` or `cuda`; by default `cuda` where there is a GPU")
CHECKPOINT_SECONDS = Variable("PECO_CHECKPOINT_SECONDS", "time between checkpoints; 0: after every step", "120")
CHECKPOINT_STEPS = Variable("PECO_CHECKPOINT_STEPS", "also a checkpoint every N steps; 0: off", "0")
METRICS_PORT = Variable(
    "PECO_METRICS_PORT", "Prometheus port of local rank 0, or the next free one of 100; 0: off", "0"
)
TRACKING = Variable(
    "PECO_TRACKING", "`tensorboard`, `mlflow` or both, with a comma: they get the curves of trainings too"
)
PROGRESS = Variable("PECO_PROGRESS", "`bar`: progress lines for a launcher that redraws them; set by the launcher")
HEARTBEAT = Variable(
    "PECO_HEARTBEAT",
    "file that the launcher of a job touches: without a change for 40 s the stage stops; set by the launcher",
)

MLFLOW_URI = "MLFLOW_TRACKING_URI"
_TRACKERS = ("tensorboard", "mlflow")  # and their packages


# Of OpenMP, in processes that compute: by default a waiting thread spins for long, which slows them down a lot on a machine that
# also does other work (docs/results.md).
SPIN = {"GOMP_SPINCOUNT": "10000"}


def _is_database(uri: str) -> bool:
    """True for an address of MLflow that is a database's, which takes SQLAlchemy."""
    return uri.partition(":")[0].partition("+")[0] in ("sqlite", "mysql", "postgresql", "mssql")


def trackers(*, here: bool = True) -> list[str]:
    """The trackers that PECO_TRACKING names.

    Args:
        here: trainings run in this environment, so what the trackers need must be in it.

    Raises:
        PecoError: an unknown tracker, a missing package or address.
    """
    found = [name.strip() for name in TRACKING.text().split(",") if name.strip()]
    for name in found:
        if name not in _TRACKERS:
            raise PecoError(
                f"{TRACKING.name}: {name!r} is not allowed; expected tensorboard, mlflow, or both with a comma"
            )
        if here and importlib.util.find_spec(name) is None:
            raise PecoError(
                f"{TRACKING.name}: {name} is not installed; `pip install 'peco[tracking]'`, or unset the variable"
            )
        if here and name == "mlflow":
            uri = os.environ.get(MLFLOW_URI)
            if not uri:
                raise PecoError(f"{TRACKING.name}: mlflow needs {MLFLOW_URI}, the address of its server; set it")
            if _is_database(uri) and importlib.util.find_spec("sqlalchemy") is None:
                raise PecoError(
                    f"{MLFLOW_URI}: a database needs more than the extra tracking: `pip install mlflow`, or name a server"
                )
    return found
