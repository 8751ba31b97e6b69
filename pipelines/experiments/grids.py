"""The variants of `make compare` and the grids of `make ablation`.

A variant is a name and settings, as `dvc exp run -S` takes them, that are put on top of the current params.yaml. Variants that
depend on the size of a preset (blocks, masks, codes) are computed from the current parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from peco.core import schema
from peco.core.config import Config
from peco.core.errors import PecoError
from pipelines.workflow.compose import compose_params


@dataclass(frozen=True)
class Variant:
    """One choice of parameters, which is run over seeds.

    Attributes:
        key: a part of its experiments' names.
        title: its name in tables.
        codebook: True if its backbone learns from its tokenizer; otherwise scores of the codebook mean nothing.
    """

    key: str
    title: str
    settings: tuple[str, ...] = ()
    codebook: bool = True


VARIANTS = {
    variant.key: variant
    for variant in (
        Variant("peco", "PeCo"),
        Variant("pixel", "pixel codebook", ("tokenizer.perceptual.weight=0",)),
        Variant("regression", "pixel regression", ("pretrain.target=pixels",), codebook=False),
        Variant("vqkd", "feature-distilled codebook", ("tokenizer.objective=vqkd",)),
    )
}


def variants(config: Config, keys: Sequence[str]) -> list[Variant]:
    """The variants with these keys in the order of `VARIANTS`, PeCo first. PeCo has the current parameters.

    Raises:
        PecoError: there is no such variant, PeCo is not among them, or the current parameters are those of another variant.
    """
    for key in keys:
        if key not in VARIANTS:
            raise PecoError(f"VARIANTS={key}: there is no such variant; allowed: {', '.join(VARIANTS)}")
    if "peco" not in keys:
        raise PecoError(
            f"VARIANTS={' '.join(keys)}: not allowed; peco must be among them, the others are compared with it"
        )
    for variant in VARIANTS.values():
        for setting in variant.settings:
            key, _, value = setting.partition("=")
            if str(attrgetter(key)(config)) in (value, f"{value}.0"):
                raise PecoError(
                    f"{key}: {value} in params.yaml or SET, so PeCo would be the {variant.title} too; set it back"
                )
    return [variant for key, variant in VARIANTS.items() if key in keys]


@dataclass(frozen=True)
class Ablation:
    """A grid: its subject in one line, and its variants of the current parameters."""

    question: str
    variants: Callable[[Config], list[Variant]]


def _values(key: str, *values: object) -> Callable[[Config], list[Variant]]:
    return lambda _: [_variant(key, value) for value in values]


def _scaled(key: str, *factors: float, digits: int | None = None) -> Callable[[Config], list[Variant]]:
    """Multiples of the current value, rounded to whole numbers or to `digits` decimals."""
    return lambda config: [_variant(key, round(attrgetter(key)(config) * factor, digits)) for factor in factors]


def _variant(key: str, value: object) -> Variant:
    return Variant(_text(value), _text(value), (f"{key}={_text(value)}",))


def _networks(config: Config) -> list[Variant]:
    """The current network, and networks from the hub with the values of their groups in `peco/conf/perceptual_net`."""
    net = config.perceptual_net
    current = "self-supervised ViT, trained here" if net.source == "train" else net.timm.model
    groups = {"supervised_vit_b": "supervised ViT-B", "resnet50": "supervised ResNet-50", "vgg16": "supervised VGG-16"}
    ready_made = [Variant(group, title, tuple(_group_settings(config, group))) for group, title in groups.items()]
    return [Variant("current", current), *ready_made]


def _group_settings(config: Config, group: str) -> Iterator[str]:
    """The values of a ready-made network's group that differ from the current ones."""
    composed = compose_params("tiny", [f"perceptual_net={group}"])["perceptual_net"]
    current = schema.to_dict(config.perceptual_net)
    # `vit`, `moco` and `optim` belong to a network that is trained here.
    for name in ("source", "blocks"):
        if composed[name] != current[name]:
            yield f"perceptual_net.{name}={_text(composed[name])}"
    for name, value in composed["timm"].items():
        if value != current["timm"][name]:
            yield f"perceptual_net.timm.{name}={_text(value)}"


def _text(value: object) -> str:
    """A value in the notation of an override."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _layers(config: Config) -> list[Variant]:
    blocks = config.perceptual_net.blocks
    half = -(-len(blocks) // 2)
    parts = {"all": blocks, "early": blocks[:half], "late": blocks[-half:], "first": blocks[:1], "last": blocks[-1:]}
    return [
        Variant(name, f"{name}: {' '.join(map(str, part))}", (f"perceptual_net.blocks={_text(part)}",))
        for name, part in parts.items()
    ]


def _masks(config: Config) -> list[Variant]:
    patches = (config.loader.image_size // config.pretrain.vit.patch_size) ** 2
    shares = (0.2, 0.4, 0.6, 0.8)
    return [
        Variant(
            str(share), f"{share:.0%}, {round(share * patches)} of {patches} patches",
            (f"pretrain.masking.count={round(share * patches)}",),
        )
        for share in shares
    ]  # fmt: skip


def _online(config: Config) -> list[Variant]:
    stored = Variant("stored", f"{config.tokens.views} stored views")
    fresh = Variant("online", "fresh views, tokens while training", ("tokens.views=0",))
    return [stored, fresh] if config.tokens.views else [fresh]


def _starts(config: Config) -> list[Variant]:
    """Given and random weights, each at the current length and at a third of it.

    Raises:
        PecoError: no weights are given.
    """
    init, epochs = config.pretrain.init, config.pretrain.optim.epochs
    if init.source == "random":
        raise PecoError(
            "pretrain.init.source: random; NAME=start compares with given weights, name them (docs/experiments.md)"
        )
    found = []
    for key, title, length in (("", "", epochs), ("-third", ", a third as long", round(epochs / 3, 3))):
        settings = (f"pretrain.optim.epochs={_text(length)}",)
        found.append(Variant(f"given{key}", f"given weights{title}", settings))
        random = ("pretrain.init.source=random", *(("pretrain.init.head=false",) if init.head else ()))
        found.append(Variant(f"random{key}", f"random weights{title}", (*random, *settings)))
    return found


ABLATIONS = {
    "perceptual_net": Ablation("the perceptual network: the current one, or a supervised ViT-B, ResNet-50, VGG-16", _networks),
    "layers": Ablation("the blocks of the perceptual network that the loss compares", _layers),
    "weight": Ablation(
        "the weight of the perceptual term", _values("tokenizer.perceptual.weight", 0, 0.1, 0.3, 1, 3)
    ),
    "pixel": Ablation("the pixel term: L1, L2 or none", _values("tokenizer.pixel", "l1", "l2", "none")),
    "adversarial": Ablation("without and with the adversarial term", _values("tokenizer.adversarial.weight", 0, 0.1)),
    "codes": Ablation("the number of codes, from a quarter of the current one to four times it",
                      _scaled("tokenizer.quantizer.codes", 1 / 4, 1 / 2, 1, 2, 4)),
    "dim": Ablation("the width of a code, from a quarter of the current one to twice it",
                    _scaled("tokenizer.quantizer.dim", 1 / 4, 1 / 2, 1, 2)),
    "l2_codes": Ablation("codes of unit length or not", _values("tokenizer.quantizer.l2_normalize", True, False)),
    "masking": Ablation("the share of the patches that is masked", _masks),
    "views": Ablation("the number of stored views", _values("tokens.views", 1, 2, 4)),
    "online": Ablation("stored views, or fresh ones with tokens computed while training", _online),
    "start": Ablation("the start of pre-training: given weights or random ones, at the current length and at a third", _starts),
    "lr": Ablation("the learning rate of pre-training, from a third of the current one to three times it",
                   _scaled("pretrain.optim.lr", 1 / 3, 1, 3, digits=6)),
    "warmup": Ablation("the warm-up of pre-training, from none to four times the current one",
                       _scaled("pretrain.optim.warmup_epochs", 0, 1, 4, digits=3)),
    "target": Ablation("the target of pre-training: PeCo's tokens, a pixel codebook's, a feature-distilled one's, or pixels",
                       lambda config: variants(config, list(VARIANTS))),
}  # fmt: skip
