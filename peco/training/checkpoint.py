"""Checkpoints from which an interrupted training resumes.

They are private to the stage that writes them, kept under its work folder and never published.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from peco.core.environment import CHECKPOINT_SECONDS, CHECKPOINT_STEPS
from peco.core.errors import PecoError
from peco.core.publishing import replacing

# Time between two checkpoints over the time to write one, at least: writing takes two percent of the time at most.
MIN_INTERVAL_RATIO = 50


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path` atomically: after a crash at any moment the old or the new one is there, whole.

    Args:
        path: the file; its folder is made if it is missing.
        state: tensors and plain values, nested in dicts, lists and tuples.

    Raises:
        PecoError: the disk is full, or the file grows over a limit. The previous checkpoint is untouched.
    """
    try:
        with replacing(path) as part, open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        if _is_disk_full(error):
            reason = f"disk full at {path.parent}: free space and run again; the last checkpoint is kept"
            raise PecoError(reason) from None
        raise


def _is_disk_full(error: BaseException | None) -> bool:
    """True if a lack of space is behind an error: torch makes a RuntimeError of a large write that failed."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


def load(path: Path) -> dict[str, Any] | None:
    """Read the checkpoint at `path`, tensors on the CPU; None if there is no file.

    A damaged file is renamed to `*.damaged` with one line of warning, and counts as missing.

    Raises:
        PecoError: the file is there and can't be opened.
    """
    if not path.exists():
        return None
    with _readable(path) as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # broken bytes may raise nearly anything
            state = None
    if isinstance(state, dict):
        return state
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    print(
        f"warning: checkpoint {path} is damaged, kept as {aside.name}; starting from the beginning",
        file=sys.stderr,
        flush=True,
    )
    return None


def _readable(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); fix that, or delete it to start again") from None


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of a checkpoint into `module`.

    Raises:
        PecoError: a name or a shape differs: the checkpoint is of another model.
    """
    own = module.state_dict()
    wrong = next(iter(sorted(own.keys() ^ state.keys())), None)
    if wrong is not None:
        side = "lacks" if wrong in own else "has an unknown"
        raise PecoError(
            f"checkpoint {path} {side} tensor {wrong}: it belongs to another model; delete the file and run again"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise PecoError(
                f"checkpoint {path}: tensor {name} is {tuple(state[name].shape)}, the model needs {tuple(tensor.shape)}; "
                "it belongs to another model: delete the file and run again"
            )
    module.load_state_dict(state)


class CheckpointSchedule:
    """Schedule of checkpoints: one after PECO_CHECKPOINT_SECONDS, and one every PECO_CHECKPOINT_STEPS steps if that is set.

    Without PECO_CHECKPOINT_SECONDS it is 120 seconds, and at least `MIN_INTERVAL_RATIO` times as long as writing the last one took,
    since all ranks wait for it.

    Raises:
        PecoError: one of them isn't a number of at least 0.
    """

    def __init__(self) -> None:
        self._seconds = CHECKPOINT_SECONDS.number()
        self._min_ratio = 0.0 if CHECKPOINT_SECONDS.is_set() else MIN_INTERVAL_RATIO
        self._write_seconds = 0.0
        self._steps = CHECKPOINT_STEPS.number() or math.inf
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """True if one is to be written after `step` steps."""
        interval = max(self._seconds, self._min_ratio * self._write_seconds)
        return step % self._steps == 0 or time.monotonic() - self._saved >= interval

    def saved(self, write_seconds: float) -> None:
        """Record that one was written just now, and the time it took."""
        self._saved, self._write_seconds = time.monotonic(), write_seconds
