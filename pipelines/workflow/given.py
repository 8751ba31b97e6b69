"""Weights that are given to the workflow: checked before it starts; a word where a result could have been given."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import yaml

from peco.core import config
from pipelines.workflow.edits import differences, parameters_of
from pipelines.workflow.graph import Stage, leaves, read_params

LOCK = Path("dvc.lock")
STARTS = {
    "tokenizer": "tokenizer.init",
    "pretrain": "pretrain.init",
}  # parameter of a stage that starts it from weights


def check_weights(parameters: config.Config) -> None:
    """Read the weights that stages use as they will, not hours later. What is not here yet is left to the stage.

    Raises:
        PecoError: they are damaged, of another architecture, or hold NaN.
    """
    net, tokenizer, pretrain = parameters.perceptual_net, parameters.tokenizer, parameters.pretrain
    size = parameters.loader.image_size
    # The imports take seconds, and most runs have no such weights.
    if net.source == "timm" and not _is_described_elsewhere(net.timm.model):
        from peco.networks import timm_nets

        timm_nets.by_name(replace(net.timm, pretrained=False), net.image_size or size)  # fetches nothing
    if net.source == "path" and Path(net.path).exists():
        from peco.networks import timm_nets

        timm_nets.by_path(Path(net.path), net.timm.model, net.image_size or size)
    if tokenizer.init.source == "path" and Path(tokenizer.init.path).exists():
        from peco.tokenizer import storage

        storage.load_given(tokenizer)
    by_name = pretrain.init.source == "timm" and not _is_described_elsewhere(pretrain.init.model or "")
    if by_name or (pretrain.init.source == "path" and Path(pretrain.init.path).exists()):
        from peco.mim import start

        start.check(pretrain, size, tokenizer.quantizer.codes)
    reference = parameters.evaluate.reference
    if reference.source == "timm" or (reference.source == "path" and Path(reference.path).exists()):
        from peco.networks import backbones

        backbones.check_reference(parameters.evaluate, size)


def _is_described_elsewhere(model: str) -> bool:
    """True for a network whose architecture only the hub knows, which the stage asks."""
    return model.startswith("hf-hub:")


def note_on_schedule(stage: Stage) -> str | None:
    """One line if only the schedule of a training has changed since its last result, which it then does not start from."""
    schedule = f"{stage.name.replace('@', '.')}.optim."
    before = {}
    with contextlib.suppress(OSError, yaml.YAMLError, KeyError, TypeError):  # DVC itself reports a damaged file
        lock = yaml.load(LOCK.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        before = leaves(lock["stages"][stage.name]["params"]["params.yaml"])
    changes = differences(before, parameters_of(stage, read_params()))
    if not before or not changes or not all(change.startswith(schedule) for change in changes):
        return None
    note = f"{stage.name}: {', '.join(changes)}, so its last result is not used"
    if start := STARTS.get(stage.name):
        return f"{note}; {start} starts it from weights such as its last result (docs/experiments.md)"
    return f"{note}: it starts from the beginning"
