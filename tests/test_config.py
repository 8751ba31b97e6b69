"""Parameters: presets compose, and wrong values are refused in one line that names the key."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.params import load_params, parse_params
from peco.mim.model import MaskedImageModel, build_backbone
from peco.perceptual.features import FeatureNet
from peco.stages.perceptual_net import vit_args
from peco.tokenizer.model import PerceptualTokenizer
from pipelines.workflow.compose import PRESETS, compose_params, render

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    return compose_params("tiny", [])


@pytest.fixture
def raw(composed: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(composed)


def put(raw: dict[str, Any], key: str, value: object) -> None:
    *groups, leaf = key.split(".")
    for group in groups:
        raw = raw[group]
    raw[leaf] = value


def parameter_count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Backbone without head, in millions: ViT-B and ViT-L as timm's beit_*_patch16_224 without classifier, ViT-H at the paper's scale.
BACKBONES = {"imagenet_vit_b": 85.8, "imagenet_vit_l": 303.4, "imagenet_vit_h": 631.0, "tiny": 0.8, "cifar": 0.8}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_its_models_can_be_built(preset: str) -> None:
    cfg = parse_params(compose_params(preset, []))
    assert cfg.preset == preset
    with torch.device("meta"):
        backbone, _, _ = build_backbone(cfg.pretrain.vit, cfg.loader.image_size, cfg.pretrain.layer_scale, 0.0)
        model = MaskedImageModel(backbone, cfg.tokenizer.quantizer.codes)
        tokenizer = PerceptualTokenizer(cfg.tokenizer.autoencoder, cfg.tokenizer.quantizer)
        net = timm.create_model(
            cfg.perceptual_net.vit.arch, num_classes=0, **vit_args(cfg.perceptual_net.vit, cfg.loader.image_size)
        )
    if preset in BACKBONES:
        assert parameter_count(backbone) / 1e6 == pytest.approx(BACKBONES[preset], abs=0.06)
    assert model.head.out_features == cfg.tokenizer.quantizer.codes
    assert tokenizer.factor * cfg.tokenizer.grid == cfg.tokenizer.image_size
    if preset.startswith("imagenet"):
        assert parameter_count(net) / 1e6 == pytest.approx(85.8, abs=0.1)  # the paper's perceptual network is a ViT-B


@pytest.mark.parametrize(
    ("preset", "epochs", "layers"),
    [("imagenet_vit_b", 800, 12), ("imagenet_vit_l", 800, 24), ("imagenet_vit_h", 800, 32)],
)
def test_imagenet_presets_are_the_papers_schedules(preset: str, epochs: int, layers: int) -> None:
    cfg = parse_params(compose_params(preset, []))
    optim = cfg.pretrain.optim
    assert (optim.epochs, optim.batch_size, optim.lr, optim.weight_decay, optim.clip_grad) == (
        epochs,
        2048,
        1.5e-3,
        0.05,
        3.0,
    )
    assert cfg.pretrain.vit.depth == layers
    assert cfg.tokenizer.quantizer.codes == 8192 and cfg.perceptual_net.blocks == (3, 6, 9, 12)
    patches = (cfg.loader.image_size // cfg.pretrain.vit.patch_size) ** 2
    assert cfg.pretrain.masking.count / patches == pytest.approx(75 / 196, abs=0.002)


@pytest.mark.parametrize("preset", PRESETS)
def test_written_parameters_read_back_as_they_were(preset: str) -> None:
    values = compose_params(preset, [])
    assert parse_params(yaml.safe_load(render(values))) == parse_params(values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "tokenizer.quantizer.codes",
            0,
            "tokenizer.quantizer.codes: 0 is not allowed; expected a number from 2 to 65536",
        ),
        ("tokenizer.quantizer.codes", "many", "tokenizer.quantizer.codes: 'many' is not allowed; expected an integer"),
        ("tokenizer.quantizer.codes", True, "tokenizer.quantizer.codes: True is not allowed; expected an integer"),
        ("tokenizer.pixel", "l3", "tokenizer.pixel: 'l3' is not allowed; expected one of l1, l2, none"),
        ("pretrain.optim.lr", float("nan"), "pretrain.optim.lr: nan is not allowed; expected a finite number"),
        ("pretrain.optim.lr", -1, "pretrain.optim.lr: -1 is not allowed"),
        ("pretrain.optim.betas", [0.9], "pretrain.optim.betas: [0.9] is not allowed; expected a list of 2 items"),
        ("pretrain.optim.betas", 0.9, "pretrain.optim.betas: 0.9 is not allowed; expected a list"),
        (
            "pretrain.optim.precision",
            "fp16",
            "pretrain.optim.precision: 'fp16' is not allowed; expected one of fp32, bf16",
        ),
        (
            "pretrain.optim.batch_size",
            60,
            "pretrain.optim.batch_size: 60 is not allowed; expected a multiple of loader.lanes (16)",
        ),
        ("pretrain.optim.warmup_epochs", 99, "pretrain.optim.warmup_epochs: 99.0 is not allowed"),
        (
            "dataset.labels",
            "tars",
            "dataset.labels: 'tars' is not allowed; expected auto, folders, paths or none where dataset.source is scenes",
        ),
        (
            "dataset.image_field",
            "jpg",
            "dataset.image_field: 'jpg' is not allowed; expected null where dataset.source is scenes",
        ),
        (
            "dataset.class_numbers",
            "id",
            "dataset.class_numbers: 'id' is not allowed; expected auto where dataset.source is scenes",
        ),
        ("pretrain.masking.count", 64, "pretrain.masking.count: 64 is not allowed; expected less than the 64 patches"),
        (
            "pretrain.vit.num_heads",
            3,
            "pretrain.vit.num_heads: 3 is not allowed; expected a divisor of pretrain.vit.embed_dim",
        ),
        ("tokenizer.image_size", 128, "tokenizer.image_size: 128 is not allowed; expected 64"),
        (
            "perceptual_net.image_size",
            128,
            "perceptual_net.image_size: 128 is not allowed; expected null with source train",
        ),
        ("perceptual_net.blocks", [5], "perceptual_net.blocks: 5 is not allowed; expected at most"),
        (
            "perceptual_net.moco.crop_size",
            20,
            "perceptual_net.moco.crop_size: 20 is not allowed; expected a multiple of",
        ),
        ("perceptual_net.vit.patch_size", 7, "perceptual_net.vit.patch_size: 7 is not allowed; expected a divisor of"),
        (
            "evaluate.finetune.rand_augment",
            "rand-m9-nonsense",
            "evaluate.finetune.rand_augment: 'rand-m9-nonsense' is not",
        ),
        ("pretrain.optim.lr", "1e-3x", "pretrain.optim.lr: '1e-3x' is not allowed; expected a number"),
        ("tokens.view.scale", [0.9, 0.5], "tokens.view.scale: [0.9, 0.5] is not allowed"),
        ("dataset", 3, "dataset: 3 is not allowed; expected a group of parameters"),
        (
            "pretrain.optim.betas",
            [0.9, 1.0],
            "pretrain.optim.betas[1]: 1.0 is not allowed; expected a number from 0 to",
        ),
        (
            "tokenizer.optim.ema",
            0.999,
            "tokenizer.optim.ema: 0.999 is not allowed; expected null: averaged weights are not supported",
        ),
        ("tokenizer.optim.layer_decay", 0.9, "tokenizer.optim.layer_decay: 0.9 is not allowed; expected 1: "),
        ("seed", 2**63, f"seed: {2**63} is not allowed; expected an integer below 2**63"),
        ("dataset.seed", 2**63, f"dataset.seed: {2**63} is not allowed; expected an integer below 2**63"),
        *(
            (f"{group}.optim.accumulate", 3, f"{group}.optim.accumulate: 3 is not allowed; expected a divisor of")
            for group in ("perceptual_net", "tokenizer", "pretrain", "evaluate.finetune")
        ),
    ],
)
def test_a_wrong_value_is_reported_with_what_is_allowed(
    raw: dict[str, Any], key: str, value: object, message: str
) -> None:
    put(raw, key, value)
    with pytest.raises(PecoError) as caught:
        parse_params(raw)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_a_fine_tuning_that_mixes_needs_pairs(raw: dict[str, Any], mixing: str) -> None:
    put(raw, "evaluate.finetune.optim.batch_size", 16)
    put(raw, "evaluate.finetune.optim.accumulate", 16)
    parse_params(raw)
    put(raw, f"evaluate.finetune.{mixing}", 0.5)
    with pytest.raises(PecoError, match=r"^evaluate\.finetune\.optim\.batch_size: 16 is not allowed; .* pairs$"):
        parse_params(raw)


def test_detection_refuses_patch_sizes_that_its_pyramid_can_not_take() -> None:
    line = r"^evaluate\.tasks\.detection: True is not allowed; expected false: .* of 4, 8, 16 or 32, not 14"
    with pytest.raises(PecoError, match=line):
        compose_params("imagenet_vit_h", ["evaluate.tasks.detection=true", "evaluate.detection.path=data/coco"])


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_an_evaluation_on_own_data_needs_their_path_when_it_is_switched_on(task: str) -> None:
    with pytest.raises(
        PecoError, match=rf"^evaluate\.{task}\.path: 'data/scenes.yaml' is not allowed; expected the tracked"
    ):
        compose_params("imagenet_vit_b", [f"evaluate.tasks.{task}=true"])
    compose_params("imagenet_vit_b", [f"evaluate.tasks.{task}=true", f"evaluate.{task}.path=data/mine"])


def test_the_side_of_detection_images_is_a_multiple_of_32() -> None:
    with pytest.raises(
        PecoError, match=r"^evaluate\.detection\.image_size: 48 is not allowed; expected a multiple of 32"
    ):
        compose_params("tiny", ["evaluate.detection.image_size=48"])


def test_the_largest_seed_is_accepted(raw: dict[str, Any]) -> None:
    put(raw, "seed", 2**63 - 1)
    assert parse_params(raw).seed == 2**63 - 1


def test_a_folder_in_place_of_the_file_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match=r"can't be read \(Is a directory\)"):
        load_params(tmp_path)


def test_unknown_and_missing_keys_are_named(raw: dict[str, Any]) -> None:
    put(raw, "tokenizer.quantizer.code", 512)
    with pytest.raises(PecoError, match=r"^tokenizer\.quantizer\.code: unknown parameter; allowed: codes, "):
        parse_params(raw)
    del raw["tokenizer"]["quantizer"]["code"], raw["pretrain"]["optim"]["lr"]
    with pytest.raises(PecoError, match=r"^pretrain\.optim\.lr: missing"):
        parse_params(raw)


def test_an_integer_is_accepted_as_a_number(raw: dict[str, Any]) -> None:
    put(raw, "tokenizer.perceptual.weight", 0)
    assert parse_params(raw).tokenizer.perceptual.weight == 0.0


@pytest.mark.parametrize(("text", "number"), [("1e-05", 1e-5), ("1e-3", 1e-3), ("15E4", 15e4), (".5e+1", 5.0)])
def test_numbers_may_be_written_as_dvc_writes_them(raw: dict[str, Any], text: str, number: float) -> None:
    """`dvc exp run -S pretrain.optim.lr=0.00001` writes 1e-05, which PyYAML reads as a text."""
    put(raw, "pretrain.optim.min_lr", 0)
    put(raw, "pretrain.optim.lr", yaml.safe_load(text))
    assert parse_params(raw).pretrain.optim.lr == number


@pytest.mark.parametrize("text", [None, "a: [", "3", "\xff", "seed: 1\nseed: 2"])
def test_an_unreadable_file_is_reported_in_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PecoError) as caught:
        load_params(path)
    assert "params.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("huge", [], "preset: 'huge' is not allowed; expected one of smoke, tiny"),
        ("tiny", ["nosuch=3"], "nosuch"),
        ("tiny", ["perceptual_net=nosuch"], "nosuch"),
        ("tiny", ["pretrain.optim.lr=fast"], "pretrain.optim.lr: 'fast' is not allowed; expected a number"),
    ],
)
def test_bad_choices_are_refused_when_composing(preset: str, overrides: list[str], message: str) -> None:
    with pytest.raises(PecoError) as caught:
        compose_params(preset, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


NETS = {
    "dino_vit_b": (3, 6, 9, 12),
    "supervised_vit_b": (3, 6, 9, 12),
    "resnet50": (2, 3, 4, 5),
    "vgg16": (1, 2, 3, 4, 5),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", NETS)
def test_each_perceptual_network_of_the_ablation_is_one_override(preset: str, net: str) -> None:
    cfg = parse_params(compose_params(preset, [f"perceptual_net={net}"])).perceptual_net
    assert cfg.source == "timm" and cfg.timm.pretrained and cfg.blocks == NETS[net]
    with torch.device("meta"):
        FeatureNet(timm.create_model(cfg.timm.model, num_classes=0), cfg.blocks)


def test_the_shape_of_a_network_that_is_not_trained_here_does_not_matter(raw: dict[str, Any]) -> None:
    for key, value in (
        ("source", "timm"),
        ("vit.patch_size", 7),
        ("vit.depth", 1),
        ("vit.num_heads", 3),
        ("moco.crop_size", 20),
        ("optim.accumulate", 3),
    ):
        put(raw, f"perceptual_net.{key}", value)
    assert parse_params(raw).perceptual_net.source == "timm"


@pytest.mark.parametrize(
    ("preset", "groups", "key", "value"),
    [
        ("tiny", ["tokens=online"], "tokens.views", 0),
        ("smoke", ["tokens=stored"], "tokens.views", 8),
        ("cifar", ["evaluate=classification"], "evaluate.finetune.optim.epochs", 100),
        ("imagenet_vit_b", ["pretrain=beit_large"], "pretrain.vit.depth", 24),
        ("imagenet_vit_l", ["pretrain=beit_base"], "pretrain.vit.depth", 12),
        ("imagenet_vit_b", ["pretrain=beit_huge", "tokenizer=paper_256"], "tokenizer.image_size", 256),
        ("cifar", ["perceptual_net=tiny"], "perceptual_net.vit.patch_size", 8),
        ("tiny", ["dataset=webdataset"], "dataset.source", "webdataset"),
    ],
)
def test_a_group_given_with_a_preset_replaces_its_group_completely(
    preset: str, groups: list[str], key: str, value: object
) -> None:
    found: Any = compose_params(preset, groups)
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_groups_that_do_not_fit_the_preset_are_refused() -> None:
    with pytest.raises(PecoError, match=r"^tokenizer\.image_size: 224 is not allowed; expected 128: "):
        compose_params("tiny", ["tokenizer=paper"])
    compose_params("tiny", ["tokenizer=paper", "tokenizer.image_size=128"])


def test_a_preset_chooses_groups_and_leaves_their_values_alone() -> None:
    for preset in PRESETS:
        text = (ROOT / "peco" / "conf" / "preset" / f"{preset}.yaml").read_text()
        assert yaml.safe_load(text).keys() <= {"defaults", "preset", "dataset", "loader", "report", "resources"}


def test_a_stage_sees_only_what_it_declares(raw: dict[str, Any]) -> None:
    seen = schema.restrict(parse_params(raw), ["seed", "evaluate.knn"])
    assert seen.seed == 0 and seen.evaluate.knn.neighbors == (5, 10, 20)
    for name in ("tokenizer", "preset"):
        with pytest.raises(AttributeError, match=name):
            getattr(seen, name)
    with pytest.raises(AttributeError, match=r"evaluate\.linear"):
        _ = seen.evaluate.linear


def test_fingerprints_differ_exactly_where_values_differ(raw: dict[str, Any]) -> None:
    first = schema.fingerprint(parse_params(raw).tokenizer)
    assert schema.fingerprint(parse_params(copy.deepcopy(raw)).tokenizer) == first
    put(raw, "tokenizer.commitment", 0.5)
    assert schema.fingerprint(parse_params(raw).tokenizer) != first


OUTSIDE = ("/photos", "~/photos", "../photos", "data/../../photos")


@pytest.mark.parametrize("path", [*OUTSIDE, "data", "./data/", "photos", "", "https://example.org/data/0.tar"])
def test_the_path_of_images_is_below_data_and_valid_on_any_machine(raw: dict[str, Any], path: str) -> None:
    put(raw, "dataset.path", path)
    with pytest.raises(
        PecoError, match=r"^dataset\.path: .* is not allowed; expected a relative path below data/"
    ) as caught:
        parse_params(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["data/photos", "./data/photos/", "data/a..b/c.tar"])
def test_images_may_lie_anywhere_below_data(raw: dict[str, Any], path: str) -> None:
    put(raw, "dataset.path", path)
    assert parse_params(raw).dataset.path == path


@pytest.mark.parametrize("key", ["perceptual_net", "tokenizer.init", "pretrain.init"])
def test_given_weights_are_an_input_below_data(raw: dict[str, Any], key: str) -> None:
    put(raw, f"{key}.path", "data/net")
    parse_params(raw)
    for path in (*OUTSIDE, "", "artifacts/backbone"):
        put(raw, f"{key}.path", path)
        with pytest.raises(PecoError, match=rf"^{re.escape(key)}\.path: .*expected a relative path below data/"):
            parse_params(raw)
    put(raw, f"{key}.path", "data/scenes.yaml")
    put(raw, f"{key}.source", "path")
    with pytest.raises(
        PecoError, match=rf"^{re.escape(key)}\.path: 'data/scenes.yaml' .* that {re.escape(key)}\.source"
    ):
        parse_params(raw)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.init.train", False, "expected true where tokenizer.init.source is random"),
        ("pretrain.init.head", True, "expected false where pretrain.init.source is random"),
        ("pretrain.init.source", "timm", "pretrain.init.model: None is not allowed; expected the name of a timm model"),
    ],
)
def test_values_of_given_weights_fit_together(raw: dict[str, Any], key: str, value: object, message: str) -> None:
    put(raw, key, value)
    with pytest.raises(PecoError, match=message):
        parse_params(raw)
