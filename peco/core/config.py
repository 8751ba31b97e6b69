"""The parameters: names, types and allowed values.

`params.yaml` is the one source of parameters. It is composed from `peco/conf` (see `pipelines/params.py`) and read into these
frozen dataclasses (see `peco/core/params.py`). The annotation of a field holds its type and range. A group's method `check` (which
gets the group's dotted name) holds the checks across its fields, `peco/core/config_checks.py` those across groups. Every error is
one line that names the key, the value and what is allowed.

A stage sees only the parameters that it declares (`schema.restrict`), so DVC's record of a stage's parameters is complete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from peco.core.resources import ResourceKinds
from peco.core.schema import Count, Fraction, Natural, NonNegative, Pattern, Positive, Range, require, require_all

RandAugment = Annotated[
    str,
    Pattern(
        r"rand(-(m|n|mmax)\d+|-inc[01]|-(p|mstd)\d+(\.\d+)?|-t(weights|3aw?))*",
        "timm's notation, such as rand-m9-mstd0.5-inc1, or null",
    ),
]


@dataclass(frozen=True)
class Scenes:
    """The built-in procedural set: numbers of images, and their side in pixels."""

    train: Count
    val: Count
    size: Annotated[int, Range(32, 512)]


@dataclass(frozen=True)
class Dataset:
    """The source of images, and how they are packed into shards.

    `path` is a tracked input below `data/`, since dvc.lock names it and must be valid on any machine: a folder or tar in
    ImageFolder layout (`source: images`), a folder of WebDataset tars or a list of their addresses (`source: webdataset`), or the
    descriptor of the procedural set (`source: scenes`).
    """

    source: Literal["scenes", "images", "webdataset"]
    path: str
    scenes: Scenes
    resize: Annotated[int, Range(8)] | None  # short side to shrink to, pixels; null keeps the original bytes
    samples_per_shard: Count
    val_fraction: Fraction  # share for val; used only if the input has no val split
    max_rejected: Fraction  # share of unreadable images above which the stage fails
    max_ignored: Fraction  # share of images that the layout has no place for, above which it fails
    max_pixels: Count  # of an image; larger ones are rejected
    range_16bit: tuple[Natural, Natural]  # values of 16-bit images that become 0 and 255
    labels: Literal[
        "auto", "folders", "paths", "tars", "none"
    ]  # are folders classes? auto: by the rules of docs/data.md
    label_field: (
        str | None
    )  # where labels are: a column of a table, a member or a JSON key of WebDataset; null: the usual names
    image_field: (
        str | None
    )  # WebDataset: ending of the member with the image, or `all`; null: the only one with an image's ending
    class_numbers: Literal["auto", "index", "id"]  # WebDataset: are numbers positions or names of classes?
    seed: Natural  # of the split and of the order in the shards; the seed of training is the top-level one

    def check(self, key: str) -> None:
        low, high = self.range_16bit
        tars = self.source == "webdataset"
        only = f"where {key}.source is {self.source}"
        require_all(
            self,
            key,
            ("range_16bit", low < high <= 65535, "two rising whole numbers from 0 to 65535"),
            (
                "labels",
                self.labels != ("paths" if tars else "tars"),
                f"auto, folders, {'tars' if tars else 'paths'} or none {only}",
            ),
            ("image_field", tars or self.image_field is None, f"null {only}"),
            ("class_numbers", tars or self.class_numbers == "auto", f"auto {only}"),
        )


@dataclass(frozen=True)
class Loader:
    """Model input size and the global order of samples (see `peco/data/order.py`)."""

    image_size: Annotated[int, Range(16)]
    lanes: Count  # streams that the samples are read in
    shuffle_buffer: Count  # samples in a shuffle window of a lane


@dataclass(frozen=True)
class ViewDistribution:
    """The distribution that views are drawn from (`peco/data/views.py`)."""

    scale: tuple[Fraction, Fraction]  # area of the crop over the area of the image
    ratio: tuple[Positive, Positive]  # width over height of the crop
    flip: Fraction
    # strengths of brightness, contrast, saturation, hue
    jitter: tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Range(0, 0.5)]]
    jitter_prob: Fraction
    grayscale: Fraction
    blur: Fraction
    solarize: Fraction

    def check(self, key: str) -> None:
        require_all(
            self,
            key,
            ("scale", 0 < self.scale[0] <= self.scale[1], "two rising numbers over 0, at most 1"),
            ("ratio", self.ratio[0] <= self.ratio[1], "two rising numbers"),
        )


@dataclass(frozen=True)
class Optim:
    """Optimisation of one trained stage. Learning rates are absolute, for this global batch size."""

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

    def steps(self, samples: int) -> int:
        """Optimizer steps of a training on `samples` samples."""
        return math.ceil(self.epochs * samples / self.batch_size)

    def images_seen(self, samples: int) -> int:
        """Images in all steps of a training on `samples` samples: whole batches, counting repeats."""
        return self.steps(samples) * self.batch_size

    def check(self, key: str) -> None:
        batch = self.batch_size
        require_all(
            self,
            key,
            ("accumulate", batch % self.accumulate == 0, f"a divisor of {key}.batch_size ({batch})"),
            ("min_lr", self.min_lr <= self.lr, f"at most {key}.lr ({self.lr:g})"),
            ("warmup_epochs", self.warmup_epochs <= self.epochs, f"at most {key}.epochs ({self.epochs:g})"),
        )


@dataclass(frozen=True)
class Vit:
    """A timm vision transformer: a registered architecture and its size."""

    arch: str
    patch_size: Count
    embed_dim: Count
    depth: Count
    num_heads: Count
    mlp_ratio: Positive

    def check(self, key: str) -> None:
        width = self.embed_dim
        require_all(self, key, ("num_heads", width % self.num_heads == 0, f"a divisor of {key}.embed_dim ({width})"))


def is_descriptor(path: str) -> bool:
    """True for the path of a descriptor (of the scenes), which holds the place of an input that isn't named yet."""
    return PurePosixPath(path).suffix in (".yaml", ".yml")


def require_named(source: str, path: str, key: str) -> None:
    """Refuse `source: path` without a path.

    Raises:
        PecoError: naming the key.
    """
    allowed = f"the tracked input that {key}.source asks for"
    require(source != "path" or not is_descriptor(path), f"{key}.path", path, allowed)


@dataclass(frozen=True)
class TimmNet:
    """Any timm model, with weights from the hub if `pretrained`."""

    model: str
    pretrained: bool
    revision: str | None  # commit of the hub repository; null: the newest


@dataclass(frozen=True)
class MoCo:
    """MoCo v3 (arXiv 2104.02057)."""

    hidden_dim: Count
    out_dim: Count
    temperature: Positive
    momentum: Fraction
    freeze_patch_embed: bool
    pool: Literal["token", "avg"]  # input of the loss: the class token, as in the paper, or the mean of the patches
    crop_size: Annotated[int, Range(8)] | None  # side of the views in pixels; null: loader.image_size
    view: ViewDistribution


@dataclass(frozen=True)
class PerceptualNet:
    """The perceptual network: trained on the images (`source: train`), or an existing one.

    `source: timm` takes a timm model by name. `source: path` takes the weights in `path`, a tracked input below `data/`: a timm
    folder, such as the perceptual network of another run, or a .safetensors file with the weights of `timm.model`.
    """

    source: Literal["train", "timm", "path"]
    path: str  # the descriptor of the scenes until another one is named
    timm: TimmNet
    vit: Vit
    moco: MoCo
    optim: Optim
    blocks: tuple[Count, ...]  # compared by the tokenizer's loss; counted from 1
    image_size: Annotated[int, Range(8)] | None  # at which images enter an existing network; None: as they come

    def check(self, key: str) -> None:
        require_named(self.source, self.path, key)
        if self.source != "train":
            return
        none = "null with source train: the network is trained at loader.image_size"
        require(self.image_size is None, f"{key}.image_size", self.image_size, none)
        crop, patch, depth = self.moco.crop_size, self.vit.patch_size, self.vit.depth
        allowed = f"a multiple of {key}.vit.patch_size ({patch})"
        require_all(self, key, ("moco.crop_size", crop is None or crop % patch == 0, allowed))
        for block in self.blocks:
            require(block <= depth, f"{key}.blocks", block, f"at most {key}.vit.depth ({depth})")


@dataclass(frozen=True)
class Quantizer:
    """The codebook: codes, their width, and how they are learned."""

    codes: Annotated[int, Range(2, 65536)]  # a token is stored as uint16
    dim: Count
    l2_normalize: bool
    decay: Fraction
    restart_after: Natural  # steps without use after which a code is restarted; 0: never
    kmeans_iters: Natural  # 0: the first codes are random encoder outputs


@dataclass(frozen=True)
class Perceptual:
    """The perceptual term: `weight` is the paper's lambda. The blocks that it compares are `perceptual_net.blocks`."""

    weight: NonNegative
    normalize: Literal["channel", "token", "none"]


@dataclass(frozen=True)
class Autoencoder:
    """Encoder and decoder of the tokenizer."""

    channels: tuple[Count, ...]  # width per resolution, highest first
    stem_stride: Literal[1, 2, 4, 8]  # 1, the paper's: the first layer has full resolution
    res_blocks: Count
    attention: bool


@dataclass(frozen=True)
class Adversarial:
    """A PatchGAN with VQGAN's hinge loss (arXiv 2012.09841): sharper pictures and, as the paper reports, no better transfer.

    Unlike in VQGAN, the weight is fixed and the discriminator shares the tokenizer's optimizer.
    """

    weight: NonNegative  # 0: no discriminator
    # fraction of training before the adversarial term enters the tokenizer's loss; the discriminator learns from the first step
    start: Fraction
    channels: Count  # width of the discriminator's first layer, doubled by each further one
    layers: Annotated[int, Range(1, 8)]  # each halves the resolution


@dataclass(frozen=True)
class TokenizerInit:
    """The start of the tokenizer: at random, or from the tokenizer folder in `path`, a tracked input below `data/`.

    Grid, image size and codes of that tokenizer must be those of the parameters.
    """

    source: Literal["random", "path"]
    path: str  # the descriptor of the scenes until another one is named
    train: bool  # false: it is used as it is

    def check(self, key: str) -> None:
        require_named(self.source, self.path, key)
        require_all(self, key, ("train", self.train or self.source == "path", f"true where {key}.source is random"))


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer: autoencoder, codebook and objective.

    `objective: peco` reconstructs the image, in pixels and in features of the perceptual network. `objective: vqkd` predicts the
    features of the last of `perceptual_net.blocks` from the codes, as BEiT v2 does (arXiv 2208.06366). Its pixel decoder is trained
    on detached codes by `pixel`; it affects them only through shared gradient clipping (`optim.clip_grad`).
    """

    init: TokenizerInit
    objective: Literal["peco", "vqkd"]
    image_size: Annotated[int, Range(16)]  # of the tokenizer's input; its grid must equal the backbone's
    autoencoder: Autoencoder
    quantizer: Quantizer
    pixel: Literal["l1", "l2", "none"]
    perceptual: Perceptual
    adversarial: Adversarial
    commitment: NonNegative
    view: ViewDistribution
    optim: Optim

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return self.autoencoder.stem_stride << (len(self.autoencoder.channels) - 1)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image_size // self.factor

    def check(self, key: str) -> None:
        size, adversarial, vqkd = self.image_size, self.adversarial, self.objective == "vqkd"
        has_loss = vqkd or self.perceptual.weight > 0 or self.pixel != "none"
        layers_fit = adversarial.weight == 0 or 2**adversarial.layers <= size
        condition = f"where {key}.objective is vqkd"
        layers = f"at most {size.bit_length() - 1}: each layer halves {key}.image_size ({size})"
        ema = "null: averaged weights are not supported here, the codebook belongs to the current encoder"
        require(size % self.factor == 0, f"{key}.autoencoder", self.factor, f"a divisor of {key}.image_size ({size})")
        require_all(
            self,
            key,
            ("pixel", not vqkd or self.pixel != "none", f"l1 or l2 {condition}: the decoder has no other loss"),
            ("adversarial.weight", not vqkd or adversarial.weight == 0, f"0 {condition}: no code is trained on images"),
            ("perceptual.weight", has_loss, f"over 0 where {key}.pixel is none: no loss would be left"),
            ("adversarial.layers", layers_fit, layers),
            ("optim.ema", self.optim.ema is None, ema),
            ("optim.layer_decay", self.optim.layer_decay == 1, "1: the autoencoder's layers are not numbered"),
        )


@dataclass(frozen=True)
class Tokens:
    """The token targets of pre-training, and the views that they belong to."""

    views: Annotated[int, Range(0, 1000)]  # stored views of a sample; 0: fresh views, tokens computed while training
    view: ViewDistribution


@dataclass(frozen=True)
class Masking:
    """Block-wise masking as in BEiT (arXiv 2106.08254)."""

    count: Count  # masked patches of an image
    min_block: Count
    min_aspect: Annotated[float, Range(0.01, 1)]

    def check(self, key: str) -> None:
        require_all(self, key, ("min_block", self.min_block <= self.count, f"at most {key}.count ({self.count})"))


@dataclass(frozen=True)
class BackboneInit:
    """The weights that the backbone starts from.

    `source: path` takes those in `path`, a tracked input below `data/`: a timm folder, such as the backbone of another run, or a
    .safetensors file. `source: timm` takes those of a timm model from the hub.
    """

    source: Literal["random", "timm", "path"]
    path: str  # the descriptor of the scenes until another one is named
    model: str | None  # timm's name
    revision: str | None  # commit of the hub repository; null: the newest
    head: (
        bool  # start also the prediction head from that of a peco backbone, trained on the tokens of the same tokenizer
    )

    def check(self, key: str) -> None:
        require_named(self.source, self.path, key)
        named = self.source != "timm" or self.model is not None
        only = f"false where {key}.source is {self.source}"
        require_all(
            self,
            key,
            ("model", named, f"the name of a timm model where {key}.source is timm"),
            ("head", not self.head or self.source == "path", only),
        )


@dataclass(frozen=True)
class Pretrain:
    """Masked image modelling. `target: pixels` is a baseline without codebook: normalised pixels, as in MAE (arXiv 2111.06377)."""

    init: BackboneInit
    target: Literal["tokens", "pixels"]
    vit: Vit
    layer_scale: Positive | None
    drop_path: Fraction
    masking: Masking
    optim: Optim


@dataclass(frozen=True)
class Reference:
    """A network that is evaluated next to the backbone, as a stronger baseline than random initialisation.

    `source: path` takes the weights in `path`, a tracked input below `data/`: a timm folder, or a .safetensors file with the
    weights of `model`. `source: timm` takes those of the timm model `model` from the hub.
    """

    source: Literal["none", "timm", "path"]
    path: str  # the descriptor of the scenes until another one is named
    model: str | None  # timm's name
    revision: str | None  # commit of the hub repository; null: the newest

    @property
    def name(self) -> str:
        """The network in tables and pictures."""
        return self.model if self.source == "timm" and self.model else PurePosixPath(self.path).stem

    def check(self, key: str) -> None:
        require_named(self.source, self.path, key)
        needed = self.source == "timm" or (self.source == "path" and self.path.endswith(".safetensors"))
        allowed = "timm's name of the network, for a name from the hub or the weights of a file"
        require_all(self, key, ("model", not needed or self.model is not None, allowed))


@dataclass(frozen=True)
class Knn:
    neighbors: tuple[Count, ...]
    temperature: Positive


@dataclass(frozen=True)
class Linear:
    l2: tuple[NonNegative, ...]  # regularisation strengths tried
    max_iter: Count


@dataclass(frozen=True)
class Finetune:
    labels: Fraction  # share of train to learn from, of each class
    drop_path: Fraction
    mixup: NonNegative
    cutmix: NonNegative
    label_smoothing: Fraction
    rand_augment: RandAugment | None
    crop_scale: tuple[Fraction, Fraction]
    random_erase: Fraction
    optim: Optim

    def check(self, key: str) -> None:
        batch, accumulate = self.optim.batch_size, self.optim.accumulate
        require_all(
            self,
            key,
            ("labels", self.labels > 0, "a number over 0, at most 1"),
            ("crop_scale", 0 < self.crop_scale[0] <= self.crop_scale[1], "two rising numbers over 0, at most 1"),
            (
                "optim.batch_size",
                batch // accumulate % 2 == 0 or not (self.mixup or self.cutmix),
                f"a multiple of 2 x {key}.optim.accumulate ({accumulate}): mixup and cutmix need pairs",
            ),
        )


@dataclass(frozen=True)
class AnnotatedScenes:
    """Scenes of the built-in set with several objects each, for segmentation and detection."""

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
    ignore: Annotated[int, Range(0, 65535)] | None  # value in the masks that is neither learned nor scored
    image_size: Annotated[int, Range(16)]  # side of training crops and test windows, pixels
    scale: tuple[Positive, Positive]  # range of the short side before a training crop, in units of image_size
    blocks: tuple[Count, Count, Count, Count]  # their features become the pyramid; counted from 1
    channels: Count  # of the decoder
    drop_path: Fraction
    optim: Optim

    def check(self, key: str) -> None:
        require_all(self, key, ("scale", self.scale[0] <= self.scale[1], "two rising numbers"))


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
    """Perceptual agreement on triplets generated from the images; with `source: bapps` also on the 2AFC items in `path`."""

    source: Literal["generated", "bapps"]
    path: str
    references: Count  # images that triplets are generated from


@dataclass(frozen=True)
class CodebookEval:
    images: Count  # codes are counted and reconstructions scored on them
    l2: tuple[NonNegative, ...]  # strengths tried by the linear probes
    max_iter: Count


@dataclass(frozen=True)
class Tasks:
    """Switches of the evaluations. One that is switched off is marked as skipped in its metrics."""

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
    holdout: Annotated[float, Range(0.01, 0.5)]  # share of train that hyperparameters are chosen on
    reference: Reference
    knn: Knn
    linear: Linear
    finetune: Finetune
    segmentation: Segmentation
    detection: Detection
    agreement: Agreement
    codebook: CodebookEval

    def check(self, key: str) -> None:
        for task, uses_scenes, path in (
            ("segmentation", self.segmentation.source == "scenes", self.segmentation.path),
            ("detection", self.detection.source == "scenes", self.detection.path),
            ("agreement", self.agreement.source == "generated", self.agreement.path),
        ):
            # `path` is the descriptor of the scenes until a folder is named.
            named = uses_scenes or not is_descriptor(path)
            allowed = f"the tracked input that {key}.{task}.source asks for"
            require(named or not getattr(self.tasks, task), f"{key}.{task}.path", path, allowed)
        pyramid = "a multiple of 32, the stride in pixels of the pyramid's coarsest map"
        side = self.detection.image_size
        require_all(self, key, ("detection.image_size", side % 32 == 0 or not self.tasks.detection, pyramid))


@dataclass(frozen=True)
class Report:
    images: Annotated[int, Range(1, 64)]


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
