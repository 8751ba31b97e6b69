"""Typed, validated parameters.

`params.yaml` is the one source of parameters. It is composed from `peco/conf` (see `pipelines/params.py`) and read here
into frozen dataclasses. A constraint stands beside the field it belongs to; what ties several fields together is checked
in `Config.check`. Every error is one line that names the key, the value and what is allowed.

A stage sees only the parameters it declares (`restrict`), so that DVC's record of what a stage depends on can't be wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, cast

import yaml

from peco.errors import PecoError


@dataclass(frozen=True)
class Range:
    """Closed interval that a number must lie in; `None` leaves a side open."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.high is None:
            return f"at least {self.low:g}"
        return f"from {self.low:g} to {self.high:g}" if self.low is not None else f"at most {self.high:g}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(1e-12)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Scenes:
    """The embedded procedural set: how many images of which size are drawn."""

    train: Count
    val: Count
    size: Annotated[int, Range(32, 512)]


@dataclass(frozen=True)
class Dataset:
    """Where images come from and how they are packed into shards.

    `path` is a tracked input below `data/`, as dvc.lock, which it enters, must hold on any machine: a folder or tar in
    ImageFolder layout (`source: images`), a folder of WebDataset tars or a list of their addresses (`source: webdataset`), or
    the descriptor of the procedural set (`source: scenes`).
    """

    source: Literal["scenes", "images", "webdataset"]
    path: str
    scenes: Scenes
    resize: Annotated[int, Range(8)] | None  # short side in pixels to shrink to; null keeps the original bytes
    samples_per_shard: Count
    val_fraction: Fraction  # used only where the input has no split of its own
    max_rejected: Fraction  # share of unreadable images over which the stage fails
    seed: Natural  # of the split and of the order in the shards; the training seed is the top-level one


@dataclass(frozen=True)
class Loader:
    """Model input size and the global order of samples (see `peco/data/order.py`)."""

    image_size: Annotated[int, Range(16)]
    lanes: Count
    shuffle_buffer: Count


@dataclass(frozen=True)
class View:
    """Distribution that views are drawn from (`peco/data/views.py`)."""

    scale: tuple[Fraction, Fraction]  # area of the crop over the area of the image
    ratio: tuple[Positive, Positive]  # width over height of the crop
    flip: Fraction
    jitter: tuple[
        NonNegative, NonNegative, NonNegative, Annotated[float, Range(0, 0.5)]
    ]  # brightness, contrast, saturation, hue
    jitter_prob: Fraction
    grayscale: Fraction
    blur: Fraction
    solarize: Fraction


@dataclass(frozen=True)
class Optim:
    """Optimisation of one trained stage. Learning rates are absolute, for the global batch size given."""

    epochs: Positive
    batch_size: Count
    lr: Positive
    min_lr: NonNegative
    warmup_epochs: NonNegative
    weight_decay: NonNegative
    betas: tuple[Annotated[float, Range(0, 0.999999)], Annotated[float, Range(0, 0.999999)]]
    clip_grad: Positive | None
    layer_decay: Annotated[float, Range(1e-3, 1)]
    ema: Annotated[float, Range(0, 0.99999)] | None
    accumulate: Count
    precision: Literal["fp32", "bf16"]
    compile: bool


@dataclass(frozen=True)
class Vit:
    """A timm vision transformer: a registered architecture and its size."""

    arch: str
    patch_size: Count
    embed_dim: Count
    depth: Count
    num_heads: Count
    mlp_ratio: Positive


@dataclass(frozen=True)
class TimmNet:
    """An existing network as perceptual network: any timm model, its weights from the hub or from a local file."""

    model: str
    pretrained: bool
    revision: str | None  # hub commit that the weights are pinned to
    checkpoint: str | None  # local .safetensors file, by a path relative to the repository


@dataclass(frozen=True)
class MoCo:
    """MoCo v3 (arXiv 2104.02057)."""

    hidden_dim: Count
    out_dim: Count
    temperature: Positive
    momentum: Fraction
    freeze_patch_embed: bool
    pool: Literal["token", "avg"]  # what the loss sees: the class token, as in the paper, or the mean of the patches
    crop_size: Annotated[int, Range(8)] | None  # side of the views in pixels; null: loader.image_size
    view: View


@dataclass(frozen=True)
class PerceptualNet:
    source: Literal["train", "timm"]
    timm: TimmNet
    vit: Vit
    moco: MoCo
    optim: Optim
    blocks: tuple[Count, ...]  # compared by the tokenizer's loss; counted from 1

    def check_trained(self, image_size: int) -> None:
        """Check what only a network that is trained here must meet.

        Raises:
            PecoError: naming the key and what is allowed.
        """
        patch, depth, crop = self.vit.patch_size, self.vit.depth, self.moco.crop_size
        _require(
            image_size % patch == 0,
            "perceptual_net.vit.patch_size",
            patch,
            f"a divisor of loader.image_size ({image_size})",
        )
        _check_heads("perceptual_net.vit", self.vit)
        _require(
            crop is None or crop % patch == 0,
            "perceptual_net.moco.crop_size",
            crop,
            f"a multiple of perceptual_net.vit.patch_size ({patch})",
        )
        for block in self.blocks:
            _require(block <= depth, "perceptual_net.blocks", block, f"at most perceptual_net.vit.depth ({depth})")


@dataclass(frozen=True)
class Quantizer:
    codes: Annotated[int, Range(2, 65536)]  # a token is stored as uint16
    dim: Count
    l2_normalize: bool
    decay: Fraction
    restart_after: Natural  # steps without use after which a code is restarted; 0 never
    kmeans_iters: Natural  # 0: codes start as random encoder outputs


@dataclass(frozen=True)
class Perceptual:
    """The perceptual term: `weight` is the paper's lambda. Which blocks are compared belongs to the network."""

    weight: NonNegative
    normalize: Literal["channel", "token", "none"]


@dataclass(frozen=True)
class Autoencoder:
    channels: tuple[Count, ...]  # width per resolution, highest first
    stem_stride: Literal[1, 2, 4, 8]  # 1 is the paper's: full resolution from the first layer on
    res_blocks: Count
    attention: bool


@dataclass(frozen=True)
class Tokenizer:
    image_size: Annotated[int, Range(16)]  # of the tokenizer's input; its grid must equal the backbone's
    autoencoder: Autoencoder
    quantizer: Quantizer
    pixel: Literal["l1", "l2", "none"]
    perceptual: Perceptual
    commitment: NonNegative
    view: View
    optim: Optim

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return self.autoencoder.stem_stride << (len(self.autoencoder.channels) - 1)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image_size // self.factor


@dataclass(frozen=True)
class Tokens:
    views: Annotated[int, Range(0, 1000)]  # stored views of a sample; 0: fresh views, tokens computed while training
    view: View


@dataclass(frozen=True)
class Masking:
    """Block-wise masking as in BEiT (arXiv 2106.08254)."""

    count: Count  # masked patches of an image
    min_block: Count
    min_aspect: Annotated[float, Range(0.01, 1)]


@dataclass(frozen=True)
class Pretrain:
    vit: Vit
    layer_scale: Positive | None
    drop_path: Fraction
    masking: Masking
    optim: Optim


@dataclass(frozen=True)
class Knn:
    neighbours: tuple[Count, ...]
    temperature: Positive


@dataclass(frozen=True)
class Linear:
    l2: tuple[NonNegative, ...]  # regularisation strengths that are tried
    max_iter: Count


@dataclass(frozen=True)
class Finetune:
    drop_path: Fraction
    mixup: NonNegative
    cutmix: NonNegative
    label_smoothing: Fraction
    rand_augment: str | None  # timm's config string, e.g. rand-m9-mstd0.5-inc1
    crop_scale: tuple[Fraction, Fraction]
    random_erase: Fraction
    optim: Optim


@dataclass(frozen=True)
class Evaluate:
    holdout: Annotated[float, Range(0.01, 0.5)]  # share of train that choices are made on
    knn: Knn
    linear: Linear
    finetune: Finetune


@dataclass(frozen=True)
class Report:
    images: Annotated[int, Range(1, 64)]


@dataclass(frozen=True)
class Resources:
    """What the launcher gives to a stage. Goes to `meta:` in dvc.yaml, no stage depends on it.

    `processes: 0` means one a GPU, and one in all where there is none; `threads: 0` shares all cores between the processes. The
    order of floating-point sums depends on the number of threads, so presets that promise equal bytes fix it.
    """

    nodes: Count
    processes: Natural
    threads: Natural
    workers: Natural  # data loading processes beside each training process


@dataclass(frozen=True)
class Config:
    preset: str
    seed: Natural
    dataset: Dataset
    loader: Loader
    perceptual_net: PerceptualNet
    tokenizer: Tokenizer
    tokens: Tokens
    pretrain: Pretrain
    evaluate: Evaluate
    report: Report
    resources: Resources

    def check(self) -> None:
        """Check what ties several values together.

        Raises:
            PecoError: naming the key and what is allowed.
        """
        self._check_paths()
        for key, seed in (("seed", self.seed), ("dataset.seed", self.dataset.seed)):
            _require(seed < 2**63, key, seed, "an integer below 2**63")
        size, lanes = self.loader.image_size, self.loader.lanes
        factor, grid = self.tokenizer.factor, self.tokenizer.grid
        for key, patch, side, of in (
            ("pretrain.vit.patch_size", self.pretrain.vit.patch_size, size, "loader.image_size"),
            ("tokenizer.autoencoder", factor, self.tokenizer.image_size, "tokenizer.image_size"),
        ):
            _require(side % patch == 0, key, patch, f"a divisor of {of} ({side})")
        _require(
            grid == size // self.pretrain.vit.patch_size,
            "tokenizer.image_size",
            self.tokenizer.image_size,
            f"{size // self.pretrain.vit.patch_size * factor}: with {factor} pixels a token, the grid must equal the backbone's",
        )
        patches = (size // self.pretrain.vit.patch_size) ** 2
        masking = self.pretrain.masking
        _require(masking.count < patches, "pretrain.masking.count", masking.count, f"less than the {patches} patches")
        _require(
            masking.min_block <= masking.count,
            "pretrain.masking.min_block",
            masking.min_block,
            f"at most pretrain.masking.count ({masking.count})",
        )
        _check_heads("pretrain.vit", self.pretrain.vit)
        trained = [
            ("tokenizer.optim", self.tokenizer.optim),
            ("pretrain.optim", self.pretrain.optim),
            ("evaluate.finetune.optim", self.evaluate.finetune.optim),
        ]
        if self.perceptual_net.source == "train":
            self.perceptual_net.check_trained(size)
            trained.append(("perceptual_net.optim", self.perceptual_net.optim))
        for key, optim in trained:
            _require(
                optim.batch_size % lanes == 0,
                f"{key}.batch_size",
                optim.batch_size,
                f"a multiple of loader.lanes ({lanes})",
            )
            _require(
                optim.batch_size % optim.accumulate == 0,
                f"{key}.accumulate",
                optim.accumulate,
                f"a divisor of {key}.batch_size ({optim.batch_size})",
            )
            _require(optim.min_lr <= optim.lr, f"{key}.min_lr", optim.min_lr, f"at most {key}.lr ({optim.lr:g})")
            _require(
                optim.warmup_epochs <= optim.epochs,
                f"{key}.warmup_epochs",
                optim.warmup_epochs,
                f"at most {key}.epochs ({optim.epochs:g})",
            )
        decay = self.tokenizer.optim.layer_decay
        _require(decay == 1, "tokenizer.optim.layer_decay", decay, "1: the autoencoder has no layers to tell apart")
        finetune = self.evaluate.finetune
        part = finetune.optim.batch_size // finetune.optim.accumulate
        _require(
            part % 2 == 0 or not (finetune.mixup or finetune.cutmix),
            "evaluate.finetune.optim.batch_size",
            finetune.optim.batch_size,
            f"a multiple of 2 x evaluate.finetune.optim.accumulate ({finetune.optim.accumulate}): mixup and cutmix need pairs",
        )
        for key, view in (
            ("perceptual_net.moco.view", self.perceptual_net.moco.view),
            ("tokenizer.view", self.tokenizer.view),
            ("tokens.view", self.tokens.view),
        ):
            _require(
                0 < view.scale[0] <= view.scale[1],
                f"{key}.scale",
                list(view.scale),
                "two rising numbers over 0, at most 1",
            )
            _require(view.ratio[0] <= view.ratio[1], f"{key}.ratio", list(view.ratio), "two rising numbers")
        low, high = self.evaluate.finetune.crop_scale
        _require(0 < low <= high, "evaluate.finetune.crop_scale", [low, high], "two rising numbers over 0, at most 1")
        if self.tokenizer.pixel == "none":
            weight = self.tokenizer.perceptual.weight
            _require(
                weight > 0,
                "tokenizer.perceptual.weight",
                weight,
                "over 0 where tokenizer.pixel is none: no loss would be left",
            )

    def _check_paths(self) -> None:
        """Refuse paths that mean something on this machine only: they would enter dvc.yaml and dvc.lock."""
        path, checkpoint = self.dataset.path, self.perceptual_net.timm.checkpoint
        _require(
            _is_inside(path) and len(PurePosixPath(path).parts) > 1 and PurePosixPath(path).parts[0] == "data",
            "dataset.path",
            path,
            "a relative path below data/ without `..`; `make params DATA=…` takes images from elsewhere in",
        )
        _require(
            checkpoint is None or _is_inside(checkpoint),
            "perceptual_net.timm.checkpoint",
            checkpoint,
            "a relative path without `..`; put the file below data/, where `dvc add` tracks it",
        )


def load(path: str | Path = "params.yaml") -> Config:
    """Read and validate a parameter file.

    Raises:
        PecoError: the file is missing or not YAML, or a key, type or value is wrong.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PecoError(f"{path}: no such file; `make params` writes it") from None
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); mend that and run again") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: not valid YAML: {error}") from None
    return parse(raw)


def parse(raw: object) -> Config:
    """Validate nested plain data (as YAML gives it) into a `Config`.

    Raises:
        PecoError: a key, type or value is wrong.
    """
    config = cast(Config, _build(Config, raw, ""))
    config.check()
    return config


def _build(kind: Any, value: object, key: str) -> Any:
    """Convert plain `value` to the annotated type `kind`; `key` is its dotted name for messages."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(cast(type, kind), value, key)
    if origin is Annotated:
        base, limit = typing.get_args(kind)
        number = _build(base, value, key)
        inside = (limit.low is None or number >= limit.low) and (limit.high is None or number <= limit.high)
        _require(inside, key, value, f"a number {limit}")
        return number
    if origin is types.UnionType or origin is typing.Union:
        inner = next(arm for arm in typing.get_args(kind) if arm is not type(None))
        return None if value is None else _build(inner, value, key)
    if origin is Literal:
        allowed = typing.get_args(kind)
        _require(
            any(value == a and type(value) is type(a) for a in allowed),
            key,
            value,
            "one of " + ", ".join(map(str, allowed)),
        )
        return value
    if origin is tuple:
        return _build_tuple(typing.get_args(kind), value, key)
    if kind is float:
        hint = _number_hint(value) if isinstance(value, str) else ""
        _require(isinstance(value, int | float) and not isinstance(value, bool), key, value, "a number" + hint)
        number = float(cast(float, value))
        _require(number == number and abs(number) != float("inf"), key, value, "a finite number")
        return number
    names = {int: "an integer", bool: "true or false", str: "text"}
    _require(type(value) is kind, key, value, names[kind])
    return value


def _build_dataclass(kind: type, value: object, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise PecoError(f"{key or 'params.yaml'}: expected a group of parameters, got {value!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise PecoError(f"{prefix}{name}: unknown parameter; here are allowed: {', '.join(hints)}")
    for name in hints:
        if name not in value:
            raise PecoError(f"{prefix}{name}: missing; `make params` writes a complete params.yaml")
    return kind(**{name: _build(hint, value[name], prefix + name) for name, hint in hints.items()})


def _build_tuple(arms: tuple[Any, ...], value: object, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise PecoError(f"{key}: {value!r} is not allowed; expected a list")
    if arms[-1] is Ellipsis:
        _require(len(value) > 0, key, value, "a list with at least one item")
        arms = arms[:1] * len(value)
    _require(len(value) == len(arms), key, value, f"a list of {len(arms)} items")
    return tuple(_build(arm, item, f"{key}[{i}]") for i, (arm, item) in enumerate(zip(arms, value, strict=True)))


def _number_hint(text: str) -> str:
    """How to write a number that YAML takes for text (`1e-3`); empty where it is none."""
    try:
        number = float(text)
    except ValueError:
        return ""
    shown = f"{number:e}"  # 1.000000e-03
    mantissa, _, exponent = shown.partition("e")
    return f"; write {float(mantissa)}e{int(exponent):+d}" if number == number and abs(number) != float("inf") else ""


def _check_heads(key: str, vit: Vit) -> None:
    _require(
        vit.embed_dim % vit.num_heads == 0,
        f"{key}.num_heads",
        vit.num_heads,
        f"a divisor of {key}.embed_dim ({vit.embed_dim})",
    )


def _is_inside(path: str) -> bool:
    """Whether a path stays in the repository, whoever reads it."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith(("/", "~")) and ".." not in parts


def _require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise PecoError(f"{key}: {value!r} is not allowed; expected {allowed}")


def to_dict(value: Any) -> Any:
    """Plain data (dicts, lists, scalars) of a config or a part of one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, _Restricted):
        return {name: to_dict(item) for name, item in vars(value).items() if name != "_owner"}
    return [to_dict(item) for item in value] if isinstance(value, tuple) else value


class _Restricted:
    """The declared part of a config group; anything else in it is out of reach."""

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self._owner}{name}: not among the parameters this stage declares")


def restrict(config: Config, names: Iterable[str]) -> Config:
    """Leave only the parameters named (dotted, `evaluate.knn`); reading another one raises AttributeError."""
    root = _Restricted("")
    for name in names:
        source: Any = config
        target: Any = root
        *groups, leaf = name.split(".")
        for depth, group in enumerate(groups):
            source = getattr(source, group)
            if group not in vars(target):
                setattr(target, group, _Restricted(".".join(groups[: depth + 1]) + "."))
            target = vars(target)[group]
        setattr(target, leaf, getattr(source, leaf))
    return cast(Config, root)


def fingerprint(value: Any) -> str:
    """Short hash of a config or a part of one, equal for equal values."""
    text = json.dumps(to_dict(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
