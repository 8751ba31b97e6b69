"""The parameters: what there is, of which type, and what is allowed.

`params.yaml` is the one source of parameters. It is composed from `peco/conf` (see `pipelines/params.py`) and read here
into frozen dataclasses. A constraint stands beside the field it belongs to; what ties several fields together is checked
in `Config.check`. Every error is one line that names the key, the value and what is allowed.

A stage sees only the parameters it declares (`schema.restrict`), so that DVC's record of what a stage depends on can't be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, cast

import yaml

from peco import schema
from peco.errors import PecoError
from peco.schema import Pattern, Range, require

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
        require(
            image_size % patch == 0,
            "perceptual_net.vit.patch_size",
            patch,
            f"a divisor of loader.image_size ({image_size})",
        )
        _check_heads("perceptual_net.vit", self.vit)
        require(
            crop is None or crop % patch == 0,
            "perceptual_net.moco.crop_size",
            crop,
            f"a multiple of perceptual_net.vit.patch_size ({patch})",
        )
        for block in self.blocks:
            require(block <= depth, "perceptual_net.blocks", block, f"at most perceptual_net.vit.depth ({depth})")


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
class AnnotatedScenes:
    """Scenes of the embedded set with several objects each, for segmentation and detection."""

    train: Count
    val: Count
    size: Annotated[int, Range(32, 512)]
    objects: Annotated[int, Range(1, 8)]


@dataclass(frozen=True)
class Segmentation:
    """UPerNet on the backbone.

    `path` is a tracked input below `data/`: the descriptor of the scenes, or a folder of images and masks.
    """

    source: Literal["scenes", "folder"]
    path: str
    scenes: AnnotatedScenes
    ignore: Annotated[int, Range(0, 65535)] | None  # index in the masks that is neither learnt nor scored
    image_size: Annotated[int, Range(16)]  # of the crops trained on and of the test's windows
    scale: tuple[Positive, Positive]  # factor that an image is resized by before it is cropped for training
    blocks: tuple[Count, Count, Count, Count]  # whose features become the pyramid
    channels: Count  # of the decoder
    drop_path: Fraction
    optim: Optim


@dataclass(frozen=True)
class Detection:
    """Mask R-CNN on a simple feature pyramid. `path` is a tracked input below `data/`."""

    source: Literal["scenes", "coco", "yolo", "voc"]
    path: str
    scenes: AnnotatedScenes
    image_size: Annotated[int, Range(16)]  # images are resized to fit and padded
    channels: Count  # of the pyramid
    drop_path: Fraction
    optim: Optim


@dataclass(frozen=True)
class Agreement:
    """Perceptual agreement; `path` is a tracked folder of BAPPS 2AFC items, null where there is none."""

    path: str | None
    references: Count  # images that triplets are made of


@dataclass(frozen=True)
class CodebookEval:
    images: Count  # that codes are counted and reconstructions scored on
    l2: tuple[NonNegative, ...]  # strengths tried by the linear probes
    max_iter: Count


@dataclass(frozen=True)
class Tasks:
    """Which evaluations run; one that is switched off says so in its metrics."""

    knn: bool
    linear: bool
    finetune: bool
    segmentation: bool
    detection: bool
    agreement: bool
    codebook: bool


@dataclass(frozen=True)
class Evaluate:
    tasks: Tasks
    holdout: Annotated[float, Range(0.01, 0.5)]  # share of train that choices are made on
    knn: Knn
    linear: Linear
    finetune: Finetune
    segmentation: Segmentation
    detection: Detection
    agreement: Agreement
    codebook: CodebookEval


@dataclass(frozen=True)
class Report:
    images: Annotated[int, Range(1, 64)]


_LABEL = r"[\w./-]+"
_TAINT = rf"{_LABEL}(={_LABEL})?:(NoSchedule|PreferNoSchedule|NoExecute)"
_LABELS = Annotated[
    str, Pattern(rf"({_LABEL}={_LABEL}(,{_LABEL}={_LABEL})*)?", "labels of nodes (key=value,key=value) or nothing")
]
_TAINTS = Annotated[
    str, Pattern(rf"({_TAINT}(,{_TAINT})*)?", "taints as kubectl writes them (key=value:Effect,key:Effect) or nothing")
]
_NAME = Annotated[
    str,
    Pattern(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?", "a name in lower-case letters, digits, dots and hyphens, or nothing"),
]
_BYTES = Annotated[str, Pattern(r"[1-9]\d*(Mi|Gi|Ti)", "an amount such as 512Mi or 16Gi")]
_TIME = Annotated[str, Pattern(r"[1-9]\d*[smhd]", "a time such as 90m, 24h or 3d")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Resources:
    """What a stage is given. Goes to `meta:` in dvc.yaml, no stage depends on it.

    The first four shape the processes, on any machine. `processes: 0` means one a GPU, and one in all where there is none;
    `threads: 0` shares all cores between the processes. The order of floating-point sums depends on the number of threads, so
    presets that promise equal bytes fix it. The others are what is asked of a cluster; one machine gives what it has.
    """

    nodes: Count = 1  # of a cluster's job; on one machine a stage takes one, whatever stands here
    processes: Natural = 1  # on a node
    threads: Natural = 0  # of a process
    workers: Natural = 0  # data loading processes beside each training process
    gpus: Natural = 0  # of a node
    cpu: Count = 1  # cores of a node
    memory: _BYTES = "4Gi"  # of a node
    shared_memory: _BYTES = "1Gi"  # of a node: /dev/shm, where loader processes hand over batches
    node_selector: _LABELS = ""
    tolerations: _TAINTS = ""
    queue: _NAME = ""  # Volcano queue or Slurm partition; empty: the cluster's default
    priority: _NAME = ""  # priority class; empty: the cluster's default
    time_limit: _TIME = "24h"
    retries: Natural = 0  # of a pipeline's step; a retry goes on from the last checkpoint

    @property
    def seconds(self) -> int:
        """`time_limit` in seconds."""
        return int(self.time_limit[:-1]) * _SECONDS[self.time_limit[-1]]

    @property
    def selector(self) -> dict[str, str]:
        """`node_selector` as Kubernetes has it."""
        return dict(label.split("=", 1) for label in self.node_selector.split(",") if label)

    @property
    def tolerated(self) -> list[dict[str, str]]:
        """`tolerations` as Kubernetes has them."""
        found = []
        for taint in filter(None, self.tolerations.split(",")):
            label, _, effect = taint.rpartition(":")
            key, equals, value = label.partition("=")
            found.append(
                {"key": key, "operator": "Equal", "value": value, "effect": effect}
                if equals
                else {"key": key, "operator": "Exists", "effect": effect}
            )
        return found


@dataclass(frozen=True)
class ResourceKinds:
    """Resources by kind of stage."""

    train: Resources  # perceptual_net, tokenizer, tokens, pretrain, evaluate@finetune
    probe: Resources  # evaluate@knn, evaluate@linear: one process that computes features
    host: Resources  # shards, report: one process that needs no GPU


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
    resources: ResourceKinds

    def check(self) -> None:
        """Check what ties several values together.

        Raises:
            PecoError: naming the key and what is allowed.
        """
        self._check_paths()
        for key, seed in (("seed", self.seed), ("dataset.seed", self.dataset.seed)):
            require(seed < 2**63, key, seed, "an integer below 2**63")
        size, lanes = self.loader.image_size, self.loader.lanes
        factor, grid = self.tokenizer.factor, self.tokenizer.grid
        for key, patch, side, of in (
            ("pretrain.vit.patch_size", self.pretrain.vit.patch_size, size, "loader.image_size"),
            ("tokenizer.autoencoder", factor, self.tokenizer.image_size, "tokenizer.image_size"),
        ):
            require(side % patch == 0, key, patch, f"a divisor of {of} ({side})")
        require(
            grid == size // self.pretrain.vit.patch_size,
            "tokenizer.image_size",
            self.tokenizer.image_size,
            f"{size // self.pretrain.vit.patch_size * factor}: with {factor} pixels a token, the grid must equal the backbone's",
        )
        patches = (size // self.pretrain.vit.patch_size) ** 2
        masking = self.pretrain.masking
        require(masking.count < patches, "pretrain.masking.count", masking.count, f"less than the {patches} patches")
        require(
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
            require(
                optim.batch_size % lanes == 0,
                f"{key}.batch_size",
                optim.batch_size,
                f"a multiple of loader.lanes ({lanes})",
            )
        # Annotated images are not read from shards, which lanes belong to.
        trained += [
            ("evaluate.segmentation.optim", self.evaluate.segmentation.optim),
            ("evaluate.detection.optim", self.evaluate.detection.optim),
        ]
        for key, optim in trained:
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
        self._check_dense()
        decay = self.tokenizer.optim.layer_decay
        require(decay == 1, "tokenizer.optim.layer_decay", decay, "1: the autoencoder has no layers to tell apart")
        finetune = self.evaluate.finetune
        part = finetune.optim.batch_size // finetune.optim.accumulate
        require(
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
            require(
                0 < view.scale[0] <= view.scale[1],
                f"{key}.scale",
                list(view.scale),
                "two rising numbers over 0, at most 1",
            )
            require(view.ratio[0] <= view.ratio[1], f"{key}.ratio", list(view.ratio), "two rising numbers")
        low, high = self.evaluate.finetune.crop_scale
        require(0 < low <= high, "evaluate.finetune.crop_scale", [low, high], "two rising numbers over 0, at most 1")
        if self.tokenizer.pixel == "none":
            weight = self.tokenizer.perceptual.weight
            require(
                weight > 0,
                "tokenizer.perceptual.weight",
                weight,
                "over 0 where tokenizer.pixel is none: no loss would be left",
            )

    def _check_dense(self) -> None:
        """Check segmentation and detection, where they run: other backbones than the preset's may go without them."""
        vit, tasks = self.pretrain.vit, self.evaluate.tasks
        segmentation, detection = self.evaluate.segmentation, self.evaluate.detection
        for on, name, side in (
            (tasks.segmentation, "segmentation", segmentation.image_size),
            (tasks.detection, "detection", detection.image_size),
        ):
            require(
                not on or side % vit.patch_size == 0,
                f"evaluate.{name}.image_size",
                side,
                f"a multiple of pretrain.vit.patch_size ({vit.patch_size})",
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

    def _check_paths(self) -> None:
        """Refuse paths that mean something on this machine only: they would enter dvc.yaml and dvc.lock."""
        checkpoint, evaluate = self.perceptual_net.timm.checkpoint, self.evaluate
        for key, path in (
            ("dataset.path", self.dataset.path),
            ("evaluate.segmentation.path", evaluate.segmentation.path),
            ("evaluate.detection.path", evaluate.detection.path),
            ("evaluate.agreement.path", evaluate.agreement.path),
        ):
            require(
                path is None or _is_tracked(path),
                key,
                path,
                "a relative path below data/ without `..`"
                + (
                    "; `make params DATA=…` takes images from elsewhere in"
                    if key == "dataset.path"
                    else ", where `dvc add` tracks it"
                ),
            )
        require(
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
    config = cast(Config, schema.build(Config, raw))
    config.check()
    return config


def _check_heads(key: str, vit: Vit) -> None:
    require(
        vit.embed_dim % vit.num_heads == 0,
        f"{key}.num_heads",
        vit.num_heads,
        f"a divisor of {key}.embed_dim ({vit.embed_dim})",
    )


def _is_tracked(path: str) -> bool:
    """Whether a path is one below `data/`."""
    parts = PurePosixPath(path).parts
    return _is_inside(path) and len(parts) > 1 and parts[0] == "data"


def _is_inside(path: str) -> bool:
    """Whether a path stays in the repository, whoever reads it."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith(("/", "~")) and ".." not in parts
