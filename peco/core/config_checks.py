"""What ties several parameters together. Each check names the key, the value and what is allowed."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from peco.core.schema import require

if TYPE_CHECKING:
    from peco.core.config import Config, Optim, Vit


def check(config: Config) -> None:
    """Check everything.

    Raises:
        PecoError: naming the key and what is allowed.
    """
    _check_paths(config)
    for key, seed in (("seed", config.seed), ("dataset.seed", config.dataset.seed)):
        require(seed < 2**63, key, seed, "an integer below 2**63")
    _check_grid(config)
    _check_masking(config)
    _check_heads("pretrain.vit", config.pretrain.vit)
    if config.perceptual_net.source == "train":
        _check_trained_net(config)
    _check_optimization(config)
    _check_views(config)
    _check_dense(config)
    _check_objective(config)


def _check_paths(config: Config) -> None:
    """Refuse paths that mean something on this machine only: they would enter dvc.yaml and dvc.lock."""
    evaluate, checkpoint = config.evaluate, config.perceptual_net.timm.checkpoint
    for key, path, remedy in (
        ("dataset.path", config.dataset.path, "; `make params DATA=…` takes images from elsewhere in"),
        ("evaluate.segmentation.path", evaluate.segmentation.path, ", where `dvc add` tracks it"),
        ("evaluate.detection.path", evaluate.detection.path, ", where `dvc add` tracks it"),
        ("evaluate.agreement.path", evaluate.agreement.path, ", where `dvc add` tracks it"),
    ):
        parts = PurePosixPath(path).parts
        inside = _is_inside(path) and len(parts) > 1 and parts[0] == "data"
        require(inside, key, path, f"a relative path below data/ without `..`{remedy}")
    require(
        checkpoint is None or _is_inside(checkpoint),
        "perceptual_net.timm.checkpoint",
        checkpoint,
        "a relative path without `..`; put the file below data/, where `dvc add` tracks it",
    )


def _is_inside(path: str) -> bool:
    """Whether a path stays in the repository, whoever reads it."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith(("/", "~")) and ".." not in parts


def _check_grid(config: Config) -> None:
    """The tokenizer's grid must equal the backbone's."""
    size, patch = config.loader.image_size, config.pretrain.vit.patch_size
    tokenizer = config.tokenizer
    require(size % patch == 0, "pretrain.vit.patch_size", patch, f"a divisor of loader.image_size ({size})")
    require(
        tokenizer.image_size % tokenizer.factor == 0,
        "tokenizer.autoencoder",
        tokenizer.factor,
        f"a divisor of tokenizer.image_size ({tokenizer.image_size})",
    )
    require(
        tokenizer.grid == size // patch,
        "tokenizer.image_size",
        tokenizer.image_size,
        f"{size // patch * tokenizer.factor}: with {tokenizer.factor} pixels a token, the grid must equal the backbone's",
    )


def _check_objective(config: Config) -> None:
    """A loss for every part of the tokenizer."""
    tokenizer = config.tokenizer
    weight, adversarial = tokenizer.perceptual.weight, tokenizer.adversarial
    if tokenizer.objective == "vqkd":
        require(
            tokenizer.pixel != "none",
            "tokenizer.pixel",
            tokenizer.pixel,
            "l1 or l2 where tokenizer.objective is vqkd: the decoder has no other loss",
        )
        require(
            adversarial.weight == 0,
            "tokenizer.adversarial.weight",
            adversarial.weight,
            "0 where tokenizer.objective is vqkd, which does not train the codebook on pictures",
        )
    else:
        require(
            weight > 0 or tokenizer.pixel != "none",
            "tokenizer.perceptual.weight",
            weight,
            "over 0 where tokenizer.pixel is none: no loss would be left",
        )
    require(
        adversarial.weight == 0 or 2**adversarial.layers <= tokenizer.image_size,
        "tokenizer.adversarial.layers",
        adversarial.layers,
        f"few enough to halve tokenizer.image_size ({tokenizer.image_size}) so often",
    )


def _check_masking(config: Config) -> None:
    masking, patches = config.pretrain.masking, (config.loader.image_size // config.pretrain.vit.patch_size) ** 2
    require(masking.count < patches, "pretrain.masking.count", masking.count, f"less than the {patches} patches")
    require(
        masking.min_block <= masking.count,
        "pretrain.masking.min_block",
        masking.min_block,
        f"at most pretrain.masking.count ({masking.count})",
    )


def _check_heads(key: str, vit: Vit) -> None:
    require(
        vit.embed_dim % vit.num_heads == 0,
        f"{key}.num_heads",
        vit.num_heads,
        f"a divisor of {key}.embed_dim ({vit.embed_dim})",
    )


def _check_trained_net(config: Config) -> None:
    """What only a perceptual network that is trained here must meet."""
    net, size = config.perceptual_net, config.loader.image_size
    patch, depth, crop = net.vit.patch_size, net.vit.depth, net.moco.crop_size
    require(size % patch == 0, "perceptual_net.vit.patch_size", patch, f"a divisor of loader.image_size ({size})")
    _check_heads("perceptual_net.vit", net.vit)
    require(
        crop is None or crop % patch == 0,
        "perceptual_net.moco.crop_size",
        crop,
        f"a multiple of perceptual_net.vit.patch_size ({patch})",
    )
    for block in net.blocks:
        require(block <= depth, "perceptual_net.blocks", block, f"at most perceptual_net.vit.depth ({depth})")


def _check_optimization(config: Config) -> None:
    evaluate, lanes = config.evaluate, config.loader.lanes
    from_shards = {
        "tokenizer.optim": config.tokenizer.optim,
        "pretrain.optim": config.pretrain.optim,
        "evaluate.finetune.optim": evaluate.finetune.optim,
    }
    if config.perceptual_net.source == "train":
        from_shards["perceptual_net.optim"] = config.perceptual_net.optim
    for key, optim in from_shards.items():
        require(
            optim.batch_size % lanes == 0,
            f"{key}.batch_size",
            optim.batch_size,
            f"a multiple of loader.lanes ({lanes})",
        )
    annotated = {
        "evaluate.segmentation.optim": evaluate.segmentation.optim,
        "evaluate.detection.optim": evaluate.detection.optim,
    }
    for key, optim in {**from_shards, **annotated}.items():
        _check_optim(key, optim)
    ema = config.tokenizer.optim.ema
    require(ema is None, "tokenizer.optim.ema", ema, "null: the codebook follows the encoder as it is, not its average")
    decay = config.tokenizer.optim.layer_decay
    require(decay == 1, "tokenizer.optim.layer_decay", decay, "1: the autoencoder has no layers to tell apart")
    finetune = evaluate.finetune
    part = finetune.optim.batch_size // finetune.optim.accumulate
    require(
        part % 2 == 0 or not (finetune.mixup or finetune.cutmix),
        "evaluate.finetune.optim.batch_size",
        finetune.optim.batch_size,
        f"a multiple of 2 x evaluate.finetune.optim.accumulate ({finetune.optim.accumulate}): mixup and cutmix need pairs",
    )


def _check_optim(key: str, optim: Optim) -> None:
    require(
        optim.batch_size % optim.accumulate == 0,
        f"{key}.accumulate",
        optim.accumulate,
        f"a divisor of {key}.batch_size ({optim.batch_size})",
    )
    require(optim.min_lr <= optim.lr, f"{key}.min_lr", optim.min_lr, f"at most {key}.lr ({optim.lr:g})")
    require(
        optim.warmup_epochs <= optim.epochs,
        f"{key}.warmup_epochs",
        optim.warmup_epochs,
        f"at most {key}.epochs ({optim.epochs:g})",
    )


def _check_views(config: Config) -> None:
    for key, view in (
        ("perceptual_net.moco.view", config.perceptual_net.moco.view),
        ("tokenizer.view", config.tokenizer.view),
        ("tokens.view", config.tokens.view),
    ):
        _check_area(f"{key}.scale", view.scale)
        require(view.ratio[0] <= view.ratio[1], f"{key}.ratio", list(view.ratio), "two rising numbers")
    _check_area("evaluate.finetune.crop_scale", config.evaluate.finetune.crop_scale)


def _check_area(key: str, scale: tuple[float, float]) -> None:
    require(0 < scale[0] <= scale[1], key, list(scale), "two rising numbers over 0, at most 1")


def _check_dense(config: Config) -> None:
    """Segmentation and detection, where they run: another backbone than the preset's may go without them."""
    vit, tasks = config.pretrain.vit, config.evaluate.tasks
    segmentation, detection = config.evaluate.segmentation, config.evaluate.detection
    agreement = config.evaluate.agreement
    for own, name, path in (
        (tasks.segmentation and segmentation.source != "scenes", "segmentation", segmentation.path),
        (tasks.detection and detection.source != "scenes", "detection", detection.path),
        (tasks.agreement and agreement.source == "bapps", "agreement", agreement.path),
    ):
        # The descriptor of the scenes stands there until a folder is named.
        require(
            not own or PurePosixPath(path).suffix not in (".yaml", ".yml"),
            f"evaluate.{name}.path",
            path,
            f"the tracked input that evaluate.{name}.source asks for",
        )
    side = segmentation.image_size
    require(
        not tasks.segmentation or side % vit.patch_size == 0,
        "evaluate.segmentation.image_size",
        side,
        f"a multiple of pretrain.vit.patch_size ({vit.patch_size})",
    )
    require(
        not tasks.detection or vit.patch_size in (4, 8, 16, 32),
        "evaluate.tasks.detection",
        tasks.detection,
        f"false: the feature pyramid needs a pretrain.vit.patch_size of 4, 8, 16 or 32, not {vit.patch_size}",
    )
    require(
        not tasks.detection or detection.image_size % 32 == 0,
        "evaluate.detection.image_size",
        detection.image_size,
        "a multiple of 32, the pixels between two places of the pyramid's coarsest map",
    )
    for block in segmentation.blocks:
        require(
            not tasks.segmentation or block <= vit.depth,
            "evaluate.segmentation.blocks",
            block,
            f"at most pretrain.vit.depth ({vit.depth})",
        )
    low, high = segmentation.scale
    require(low <= high, "evaluate.segmentation.scale", [low, high], "two rising numbers")
