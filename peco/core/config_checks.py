"""Checks across several groups of parameters. The checks within a group are its method `check` in `peco/core/config.py`."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from peco.core.config import Config
from peco.core.schema import check_groups, require, require_all

_LONGEST = 2000  # characters of a path


def check(config: Config) -> None:
    """Check the groups against each other, then each by itself.

    Raises:
        PecoError: naming the key, the value and what is allowed.
    """
    trained = config.perceptual_net.source == "train"
    _check_paths(config)
    _check_sizes(config, trained)
    _check_lanes(config, trained)
    _check_dense(config)
    check_groups(config, unused=() if trained else ("perceptual_net.vit", "perceptual_net.optim"))


def _check_paths(config: Config) -> None:
    """Refuse paths that are valid on this machine only: they would be recorded in dvc.yaml and dvc.lock."""
    evaluate = config.evaluate
    for key, path, remedy in (
        ("dataset.path", config.dataset.path, "; `make params DATA=…` takes images from elsewhere in"),
        *(
            (key, path, ", where `dvc add` tracks it")
            for key, path in (
                ("perceptual_net.path", config.perceptual_net.path),
                ("tokenizer.init.path", config.tokenizer.init.path),
                ("pretrain.init.path", config.pretrain.init.path),
                ("evaluate.reference.path", evaluate.reference.path),
                ("evaluate.segmentation.path", evaluate.segmentation.path),
                ("evaluate.detection.path", evaluate.detection.path),
                ("evaluate.agreement.path", evaluate.agreement.path),
            )
        ),
    ):
        parts = PurePosixPath(path).parts
        inside = _is_inside(path) and len(parts) > 1 and parts[0] == "data"
        require(inside, key, path, f"a relative path below data/ without `..`{remedy}")


def _is_inside(path: str) -> bool:
    """True if a path stays in the repository, for any user and current folder, and a file system may have it."""
    parts = PurePosixPath(path).parts
    possible = "\0" not in path and len(path) < _LONGEST and all(len(os.fsencode(part)) < 256 for part in parts)
    return bool(parts) and not path.startswith(("/", "~")) and ".." not in parts and possible


def _check_sizes(config: Config, trained: bool) -> None:
    """Whole patches, and equal grids of tokenizer and backbone."""
    size, patch, tokenizer = config.loader.image_size, config.pretrain.vit.patch_size, config.tokenizer
    grid, factor = size // patch, tokenizer.factor
    equal = f"{grid * factor}: with {factor} pixels per token, the grid must equal the backbone's"
    net_patch = config.perceptual_net.vit.patch_size
    divisor = f"a divisor of loader.image_size ({size})"
    require_all(
        config,
        "",
        ("pretrain.vit.patch_size", size % patch == 0, divisor),
        ("perceptual_net.vit.patch_size", not trained or size % net_patch == 0, divisor),
        ("tokenizer.image_size", tokenizer.grid == grid, equal),
        ("pretrain.masking.count", config.pretrain.masking.count < grid**2, f"less than the {grid**2} patches"),
    )


def _check_lanes(config: Config, trained: bool) -> None:
    """A training that reads shards takes equally many samples from every lane."""
    lanes = config.loader.lanes
    for key, optim in (
        ("tokenizer", config.tokenizer.optim),
        ("pretrain", config.pretrain.optim),
        ("evaluate.finetune", config.evaluate.finetune.optim),
        *((("perceptual_net", config.perceptual_net.optim),) if trained else ()),
    ):
        allowed = f"a multiple of loader.lanes ({lanes})"
        require(optim.batch_size % lanes == 0, f"{key}.optim.batch_size", optim.batch_size, allowed)


def _check_dense(config: Config) -> None:
    """Segmentation and detection fit the backbone, if they are switched on."""
    vit, tasks, segmentation = config.pretrain.vit, config.evaluate.tasks, config.evaluate.segmentation
    if tasks.segmentation:
        side = segmentation.image_size
        allowed = f"a multiple of pretrain.vit.patch_size ({vit.patch_size})"
        require(side % vit.patch_size == 0, "evaluate.segmentation.image_size", side, allowed)
        for block in segmentation.blocks:
            allowed = f"at most pretrain.vit.depth ({vit.depth})"
            require(block <= vit.depth, "evaluate.segmentation.blocks", block, allowed)
    allowed = f"false: the feature pyramid needs a pretrain.vit.patch_size of 4, 8, 16 or 32, not {vit.patch_size}"
    require(not tasks.detection or vit.patch_size in (4, 8, 16, 32), "evaluate.tasks.detection", True, allowed)
