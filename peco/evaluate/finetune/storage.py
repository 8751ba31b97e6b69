"""Folders of fine-tuned classifiers: timm models (`artifacts.save_timm`) with the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peco.core import artifacts
from peco.core.errors import PecoError

KIND = "classifier"


@dataclass(frozen=True)
class Parameters:
    """The part of the config that timm has no place for."""

    classes: tuple[str, ...]


def save(
    directory: str | Path,
    model: nn.Module,
    backbone: str | Path,
    classes: Sequence[str],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a classifier.

    Args:
        directory: the folder; replaced if there is one.
        model: from `build_classifier`.
        backbone: folder of the backbone that it was built on.
        classes: names, in the order of the outputs.
        extra: further entries of the `peco` part of config.json.

    Raises:
        PecoError: writing failed.
    """
    built = artifacts.describe(backbone)
    mean, std = (t.flatten().tolist() for t in artifacts.normalization(model))
    artifacts.save_timm(
        directory,
        model,
        arch=built["architecture"],
        model_args={**built["model_args"], "global_pool": "avg"},
        mean=mean,
        std=std,
        label_names=classes,
        extra={**(extra or {}), "kind": KIND, "classes": list(classes)},
    )


def load(directory: str | Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Read a classifier, in eval mode, and the names of its classes.

    Raises:
        PecoError: the folder is missing, damaged or of another kind.
    """
    classes = artifacts.parameters(directory, KIND, Parameters).classes
    model: Any = artifacts.load_timm(directory)
    if model.num_classes != len(classes):
        raise PecoError(
            f"{Path(directory) / artifacts.CONFIG}: {len(classes)} names for the {model.num_classes} classes of the model; "
            "fetch or make the folder again"
        )
    return model, classes
