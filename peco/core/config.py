"""The parameters: what there is, of which type, and what is allowed.

`params.yaml` is the one source of parameters. It is composed from `peco/conf` (see `pipelines/params.py`) and read here
into frozen dataclasses. A constraint stands beside the field it belongs to; what ties several fields together is checked
by `consistency.check`. Every error is one line that names the key, the value and what is allowed.

A stage sees only the parameters it declares (`schema.restrict`), so that DVC's record of what a stage depends on can't be wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from peco.core.resources import ResourceKinds
from peco.core.schema import Count, Fraction, Natural, NonNegative, Pattern, Positive, Range

RandAugment = Annotated[
    str,
    Pattern(
        r"rand(-(m|n|mmax)\d+|-inc[01]|-(p|mstd)\d+(\.\d+)?|-t(weights|3aw?))*",
        "timm's notation, such as rand-m9-mstd0.5-inc1, or null",
    ),
]


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
class ViewDistribution:
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

    def steps(self, samples: int) -> int:
        """Optimizer steps of a training over `samples` samples."""
        return math.ceil(self.epochs * samples / self.batch_size)

    def images_seen(self, samples: int) -> int:
        """Images that it sees, repeats counted: whole batches."""
        return self.steps(samples) * self.batch_size


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
    view: ViewDistribution


@dataclass(frozen=True)
class PerceptualNet:
    source: Literal["train", "timm"]
    timm: TimmNet
    vit: Vit
    moco: MoCo
    optim: Optim
    blocks: tuple[Count, ...]  # compared by the tokenizer's loss; counted from 1


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
class Adversarial:
    """A PatchGAN with VQGAN's hinge loss (arXiv 2012.09841): sharper pictures and, as the paper reports, no better transfer.

    Unlike VQGAN's, its weight is fixed and the discriminator shares the tokenizer's optimizer.
    """

    weight: NonNegative  # 0: there is no discriminator
    start: (
        Fraction  # share of the training before the tokenizer hears of it; the discriminator learns from the first step
    )
    channels: Count  # of the discriminator's first layer; each further one has twice as many
    layers: Annotated[int, Range(1, 8)]  # each halves the resolution


@dataclass(frozen=True)
class Tokenizer:
    """The codebook and what it is trained for.

    `objective: peco` reconstructs the image, in pixels and in features of the perceptual network. `objective: vqkd` predicts the
    features of the last of `perceptual_net.blocks` from the codes, as BEiT v2 does (arXiv 2208.06366); its decoder learns to
    paint, by `pixel`, what the codes hold, and has no influence on them but through the common `optim.clip_grad`.
    """

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


@dataclass(frozen=True)
class Tokens:
    views: Annotated[int, Range(0, 1000)]  # stored views of a sample; 0: fresh views, tokens computed while training
    view: ViewDistribution


@dataclass(frozen=True)
class Masking:
    """Block-wise masking as in BEiT (arXiv 2106.08254)."""

    count: Count  # masked patches of an image
    min_block: Count
    min_aspect: Annotated[float, Range(0.01, 1)]


@dataclass(frozen=True)
class Pretrain:
    """Masked image modelling. `target: pixels` is a baseline without codebook: normalised pixels, as in MAE (arXiv 2111.06377)."""

    target: Literal["tokens", "pixels"]
    vit: Vit
    layer_scale: Positive | None
    drop_path: Fraction
    masking: Masking
    optim: Optim


@dataclass(frozen=True)
class Knn:
    neighbors: tuple[Count, ...]
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
    rand_augment: RandAugment | None
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
    scale: tuple[Positive, Positive]  # short side before a crop for training, in units of image_size
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
    """Perceptual agreement on triplets made of the images.

    With `source: bapps` also on the 2AFC items in `path`, a tracked input.
    """

    source: Literal["generated", "bapps"]
    path: str
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
