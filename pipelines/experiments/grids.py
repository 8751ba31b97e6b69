"""What is run beside each other: the variants of `make compare`, and the grids of `make ablation`.

A point is a name and settings, as `dvc exp run -S` takes them, that are put on top of the params.yaml that stands. Points that
depend on the size of a preset (blocks, masks, codes) are computed from what stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peco.core import schema
from peco.core.config import Config
from peco.core.errors import PecoError
from pipelines.workflow.compose import compose_params


@dataclass(frozen=True)
class Point:
    """One choice of parameters, which is run over seeds."""

    key: str  # a part of its experiments' names
    title: str  # in tables
    settings: tuple[str, ...] = ()
    codebook: bool = (
        True  # whether its backbone learns from its tokenizer, so that scores of the codebook mean anything
    )


VARIANTS = {
    point.key: point
    for point in (
        Point("peco", "PeCo"),
        Point("pixel", "pixel codebook", ("tokenizer.perceptual.weight=0",)),
        Point("regression", "pixel regression", ("pretrain.target=pixels",), codebook=False),
        Point("vqkd", "feature-distilled codebook", ("tokenizer.objective=vqkd",)),
    )
}


def variants(config: Config, keys: Sequence[str]) -> list[Point]:
    """The variants of these names in the order of `VARIANTS`, PeCo first. PeCo is what stands, with the user's settings.

    Raises:
        PecoError: there is no such variant, PeCo is not among them, or what stands is another one than PeCo.
    """
    for key in keys:
        if key not in VARIANTS:
            raise PecoError(f"VARIANTS={key}: there is no such variant; here are {', '.join(VARIANTS)}")
    if "peco" not in keys:
        raise PecoError(f"VARIANTS={' '.join(keys)}: not allowed; peco must be among them, the others stand beside it")
    for point in VARIANTS.values():
        for setting in point.settings:
            key, _, value = setting.partition("=")
            if str(_lookup(config, key)) in (value, f"{value}.0"):
                raise PecoError(
                    f"{key}: {value} in params.yaml or SET, so PeCo would be the {point.title} too; set it back"
                )
    return [point for key, point in VARIANTS.items() if key in keys]


def _lookup(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@dataclass(frozen=True)
class Ablation:
    """A grid: what it asks in a line, and its points on top of what stands."""

    question: str
    points: Callable[[Config], list[Point]]


def _values(key: str, *values: object) -> Callable[[Config], list[Point]]:
    return lambda _: [_point(key, value) for value in values]


def _scaled(key: str, *factors: float) -> Callable[[Config], list[Point]]:
    """Multiples of what stands."""
    return lambda config: [_point(key, round(_lookup(config, key) * factor)) for factor in factors]


def _point(key: str, value: object) -> Point:
    return Point(_text(value), _text(value), (f"{key}={_text(value)}",))


def _networks(config: Config) -> list[Point]:
    """What stands, and networks from the hub by what their groups in `peco/conf/perceptual_net` say."""
    net = config.perceptual_net
    stands = "self-supervised ViT, trained here" if net.source == "train" else net.timm.model
    groups = {"supervised_vit_b": "supervised ViT-B", "resnet50": "supervised ResNet-50", "vgg16": "supervised VGG-16"}
    points = [Point(group, title, tuple(_group_settings(config, group))) for group, title in groups.items()]
    return [Point("stands", stands), *points]


def _group_settings(config: Config, group: str) -> Iterator[str]:
    """The values of a ready-made network's group that differ from what stands."""
    composed = compose_params("tiny", [f"perceptual_net={group}"])["perceptual_net"]
    stands = schema.to_dict(config.perceptual_net)
    # `vit`, `moco` and `optim` are of a network that is trained here.
    for name in ("source", "blocks"):
        if composed[name] != stands[name]:
            yield f"perceptual_net.{name}={_text(composed[name])}"
    for name, value in composed["timm"].items():
        if value != stands["timm"][name]:
            yield f"perceptual_net.timm.{name}={_text(value)}"


def _text(value: object) -> str:
    """A value as an override has it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _layers(config: Config) -> list[Point]:
    blocks = config.perceptual_net.blocks
    half = -(-len(blocks) // 2)
    parts = {"all": blocks, "early": blocks[:half], "late": blocks[-half:], "first": blocks[:1], "last": blocks[-1:]}
    return [
        Point(name, f"{name}: {' '.join(map(str, part))}", (f"perceptual_net.blocks={_text(part)}",))
        for name, part in parts.items()
    ]


def _masks(config: Config) -> list[Point]:
    patches = (config.loader.image_size // config.pretrain.vit.patch_size) ** 2
    shares = (0.2, 0.4, 0.6, 0.8)
    return [
        Point(
            str(share), f"{share:.0%}, {round(share * patches)} of {patches} patches",
            (f"pretrain.masking.count={round(share * patches)}",),
        )
        for share in shares
    ]  # fmt: skip


def _online(config: Config) -> list[Point]:
    stored = Point("stored", f"{config.tokens.views} stored views")
    fresh = Point("online", "fresh views, tokens while training", ("tokens.views=0",))
    return [stored, fresh] if config.tokens.views else [fresh]


ABLATIONS = {
    "perceptual_net": Ablation("the perceptual network: what stands, or a supervised ViT-B, ResNet-50, VGG-16", _networks),
    "layers": Ablation("the blocks of the perceptual network that the loss compares", _layers),
    "weight": Ablation(
        "the weight of the perceptual term", _values("tokenizer.perceptual.weight", 0, 0.1, 0.3, 1, 3)
    ),
    "pixel": Ablation("the pixel term: L1, L2 or none", _values("tokenizer.pixel", "l1", "l2", "none")),
    "adversarial": Ablation("without and with the adversarial term", _values("tokenizer.adversarial.weight", 0, 0.1)),
    "codes": Ablation("the number of codes, from a quarter of what stands to four times it",
                      _scaled("tokenizer.quantizer.codes", 1 / 4, 1 / 2, 1, 2, 4)),
    "dim": Ablation("the width of a code, from a quarter of what stands to twice it",
                    _scaled("tokenizer.quantizer.dim", 1 / 4, 1 / 2, 1, 2)),
    "l2_codes": Ablation("codes of unit length or not", _values("tokenizer.quantizer.l2_normalize", True, False)),
    "masking": Ablation("the share of the patches that is masked", _masks),
    "views": Ablation("the number of stored views", _values("tokens.views", 1, 2, 4)),
    "online": Ablation("stored views, or fresh ones with tokens computed while training", _online),
    "target": Ablation("what is predicted: PeCo's tokens, a pixel codebook's, a feature-distilled one's, or pixels",
                       lambda config: variants(config, list(VARIANTS))),
}  # fmt: skip
