"""Trainings that start from given weights: which fit, what becomes of them, and what is refused before anything runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from test_stages import CFG, change, metrics, run_of
from test_stages import here as here
from test_stages import made as made
from torch import Tensor, nn

from peco.core import artifacts, config, schema
from peco.core.errors import PecoError
from peco.mim import start, storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.runtime import paths
from peco.stages import perceptual_net, pretrain, tokenizer, tokens
from peco.tokenizer import storage as tokenizer_storage
from pipelines.workflow import given as given_weights
from pipelines.workflow.edits import parameters_of
from pipelines.workflow.graph import load_graph

ROOT = Path(__file__).parents[1]
VIT = config.Vit("beit_base_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=4)
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CODES = 16


def init(path: Path, head: bool = False) -> config.BackboneInit:
    return config.BackboneInit("path", str(path), None, None, head)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with random values everywhere, also where initialisation has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_backbone(folder: Path, vit: config.Vit = VIT, **changes: Any) -> MaskedImageModel:
    backbone, arch, model_args = build_backbone(vit, 32, 0.1, 0.0, **changes)
    model = randomized(MaskedImageModel(backbone, CODES))
    storage.save(folder, model, arch=arch, model_args=model_args)
    return model


def save_network(folder: Path, arch: str, mean: float = 0.5, **args: Any) -> nn.Module:
    model = randomized(timm.create_model(arch, num_classes=0, **SIZES, **args))
    artifacts.save_timm(folder, model, arch=arch, model_args=SIZES | args, mean=[mean] * 3, std=(0.2, 0.3, 0.4))
    return model


def started(
    source: config.BackboneInit, size: int = 32, vit: config.Vit = VIT, layer_scale: float | None = 0.1
) -> tuple[MaskedImageModel, str]:
    weights = start.read(source, size)
    assert weights is not None
    backbone, _, _ = build_backbone(vit, size, layer_scale, 0.0, position_embedding=weights.position_embedding)
    model = MaskedImageModel(backbone, CODES).eval()
    return model, start.load(model, weights, vit, head=source.head)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# A backbone


def test_a_backbone_of_another_run_comes_back_with_mask_token_and_head(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "b")
    model, line = started(init(tmp_path / "b", head=True))
    assert equal(model, source)
    assert line == f"starts from {tmp_path / 'b'}: {len(source.backbone.state_dict())} tensors"
    model, line = started(init(tmp_path / "b"))
    assert equal(model.backbone, source.backbone) and torch.equal(model.mask_token, source.mask_token)
    assert not torch.equal(model.head.weight, source.head.weight)
    assert line.endswith("; new: prediction head")


@pytest.mark.parametrize("position_embedding", [False, True])
def test_positions_are_resampled_as_timm_does(tmp_path: Path, position_embedding: bool) -> None:
    save_backbone(tmp_path / "b", position_embedding=position_embedding)
    model, _ = started(init(tmp_path / "b"), 64)
    assert equal(model.backbone, timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True, img_size=64))


def test_a_file_and_the_model_of_a_hub_are_taken_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_backbone(tmp_path / "b").backbone
    mask = torch.ones(1, 1, 32)
    others = {"mask_token": mask, "lm_head.bias": torch.zeros(3)}
    safetensors.torch.save_file(source.state_dict() | others, tmp_path / "w.safetensors")
    model, line = started(init(tmp_path / "w.safetensors"))
    assert equal(model.backbone, source) and torch.equal(model.mask_token, mask)
    assert line.endswith("tensors; new: prediction head; left out: lm_head.bias")
    asked: list[tuple[config.TimmNet, int]] = []

    def by_name(net: config.TimmNet, size: int, key: str) -> nn.Module:
        asked.append((net, size))
        return artifacts.load_timm(tmp_path / "b")

    monkeypatch.setattr("peco.networks.timm_nets.by_name", by_name)
    model, _ = started(config.BackboneInit("timm", "data/scenes.yaml", "hf-hub:some/beit", "0123abc", False))
    assert equal(model.backbone, source)
    assert asked == [(config.TimmNet("hf-hub:some/beit", True, "0123abc"), 32)]


def test_a_plain_vision_transformer_gives_the_same_features_of_the_same_images(tmp_path: Path) -> None:
    """Its statistics of images are folded in, its key bias changes nothing, its layer scale and position embedding are kept."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "scaled": {"init_values": 0.5},
        "pooled": {"global_pool": "avg"},
        "class token without a position": {"no_embed_class": True},
    }
    for name, args in kinds.items():
        source = save_network(tmp_path / name, "vit_tiny_patch16_224", mean=0.4, **args)
        model, line = started(init(tmp_path / name))
        x = torch.rand(2, 3, 32, 32)
        mean, std = artifacts.normalization(artifacts.load_timm(tmp_path / name))
        expected = source.forward_features((x - mean) / std)
        expected = source.fc_norm(expected) if name == "pooled" else expected
        torch.testing.assert_close(model.backbone.forward_features(2 * x - 1), expected, rtol=1e-4, atol=1e-5)
        assert "relative position bias (0)" in line and ("layer scale (1)" in line) == (name != "scaled")


def test_the_position_embedding_takes_part_in_pre_training(tmp_path: Path) -> None:
    save_network(tmp_path / "vit", "vit_tiny_patch16_224")
    model, _ = started(init(tmp_path / "vit"))
    x, masked = torch.rand(1, 3, 32, 32), torch.tensor([[3]])
    hidden = model.backbone.forward_features(2 * x - 1)
    assert model(x, masked).shape == (1, 1, CODES)
    model.mask_token.data = model.backbone.patch_embed(2 * x - 1)[:, 3:4]  # hides nothing
    torch.testing.assert_close(model(x, masked), model.head(hidden[:, 4:5]))


def test_a_bias_that_all_blocks_share_becomes_that_of_each(tmp_path: Path) -> None:
    args = {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False}
    source = save_network(tmp_path / "b", "beit_base_patch16_224", mean=0.5, **args)
    model, _ = started(init(tmp_path / "b"))
    x = torch.rand(2, 3, 32, 32)
    mean, std = artifacts.normalization(artifacts.load_timm(tmp_path / "b"))
    expected = source.forward_features((x - mean) / std)
    torch.testing.assert_close(model.backbone.forward_features(2 * x - 1), expected, rtol=1e-4, atol=1e-5)


def edited(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], Path]:
    """Take a file of changed weights: in a folder, which says what they are of, they would be refused as damaged."""

    def edit(folder: Path) -> Path:
        weights = artifacts.load_tensors(folder / artifacts.WEIGHTS)
        change(weights)
        safetensors.torch.save_file(weights, folder / "changed.safetensors")
        return folder / "changed.safetensors"

    return edit


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        (None, {"depth": 1}, "its depth is 2, but pretrain.vit.depth is 1; set it to 2"),
        (None, {"depth": 3}, "its depth is 2, but pretrain.vit.depth is 3"),
        (None, {"embed_dim": 64}, "its embed_dim is 32, but pretrain.vit.embed_dim is 64"),
        (None, {"num_heads": 4}, "its num_heads is 2, but pretrain.vit.num_heads is 4"),
        (None, {"mlp_ratio": 2}, r"blocks\.0\.mlp\.fc1\.weight is 128x32, the backbone needs 64x32"),
        (None, {"layer_scale": None}, r"has blocks\.0\.gamma_1, which the backbone lacks; set pretrain\.layer_scale"),
        (edited(lambda w: w.pop("blocks.1.norm1.bias")), {}, r"lacks 1 weights of the backbone, such as blocks\.1\.norm1\.bias"),
        (edited(lambda w: w.update(reg_token=torch.zeros(1, 4, 32))), {}, "has reg_token, which the backbone lacks"),
        (edited(lambda w: w["norm.bias"].fill_(torch.nan)), {}, r"norm\.bias holds NaN"),
        (edited(lambda w: w.pop("cls_token")), {}, "not a vision transformer with a class token"),
        (lambda folder: (folder / storage.HEAD).unlink(), {"head": True}, "head: true is not allowed, .* has no prediction head"),
        (lambda folder: (folder / artifacts.WEIGHTS).write_bytes(b"x"), {}, "damaged"),
        (shutil.rmtree, {}, "no such folder or file"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_in_one_line(
    tmp_path: Path, edit: Callable[[Path], object] | None, changes: dict[str, Any], message: str
) -> None:
    save_backbone(tmp_path / "b")
    edited_path = edit(tmp_path / "b") if edit is not None else None
    path = edited_path if isinstance(edited_path, Path) else tmp_path / "b"
    options = {key: changes.pop(key) for key in ("layer_scale",) if key in changes}
    source = init(path, head=changes.pop("head", False))
    with pytest.raises(PecoError, match=rf"pretrain\.init.*{message}") as caught:
        started(source, vit=replace(VIT, **changes), **options)
    assert "\n" not in str(caught.value)


# Stages


def test_a_pre_training_goes_on_from_a_finished_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens.main(run_of(tokens))
    shutil.copytree(paths.BACKBONE, "data/backbone")
    before = storage.load("data/backbone")
    cfg = change(CFG, "pretrain.init", source="path", path="data/backbone", head=True)
    cfg = change(cfg, "pretrain.optim", lr=1e-12, min_lr=0.0)
    pretrain.main(run_of(pretrain, cfg))
    after = storage.load(paths.BACKBONE)
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(tensor, before.state_dict()[name])
    assert "pretrain: starts from data/backbone: " in capsys.readouterr().out
    assert artifacts.describe(paths.BACKBONE)["model_args"] == artifacts.describe("data/backbone")["model_args"]


def test_the_own_perceptual_network_starts_a_backbone(here: Path) -> None:
    """By two parameters, and as perceptual network of other images by two others."""
    tokens.main(run_of(tokens))
    net = save_network(Path("data/net"), "vit_tiny_patch16_224")
    cfg = change(CFG, "perceptual_net", source="path", path="data/net")
    perceptual_net.main(run_of(perceptual_net, cfg))
    assert set(metrics("perceptual_net")) == {"knn_accuracy", "random_knn_accuracy"}
    assert equal(artifacts.load_timm(paths.PERCEPTUAL_NET), net)
    described = artifacts.describe(paths.PERCEPTUAL_NET)
    assert described["architecture"] == "vit_tiny_patch16_224" and described["model_args"]["embed_dim"] == 32
    cfg = change(CFG, "pretrain.init", source="path", path="data/net")
    described = artifacts.describe(Path("data/net"))
    described["peco"] = {**described.get("peco", {}), "licence": "mit", "labels": "yes: of birds"}
    Path("data/net/config.json").write_text(json.dumps(described))
    pretrain.main(run_of(pretrain, cfg))
    assert artifacts.load_timm(paths.BACKBONE).pos_embed.shape == (1, 17, 32)
    assert "given weights (licence: mit; labels: yes: of birds)" in (paths.BACKBONE / "README.md").read_text()


@pytest.fixture
def given_tokenizer(here: Path) -> Path:
    """A tokenizer of another run, and a perceptual network to score it."""
    shutil.copytree(paths.TOKENIZER, "data/tokenizer")
    shutil.rmtree(paths.TOKENIZER)
    cfg = change(CFG, "perceptual_net", source="timm")
    cfg = change(cfg, "perceptual_net.timm", model="test_vit", pretrained=False)
    perceptual_net.main(run_of(perceptual_net, cfg))
    return here / "data/tokenizer"


def test_a_given_tokenizer_is_the_result_as_it_is_or_is_trained_further(given_tokenizer: Path) -> None:
    cfg = change(CFG, "tokenizer.init", source="path", path="data/tokenizer", train=False)
    tokenizer.main(run_of(tokenizer, cfg))
    assert (paths.TOKENIZER / artifacts.WEIGHTS).read_bytes() == (given_tokenizer / artifacts.WEIGHTS).read_bytes()
    assert {"val_psnr", "val_l1", "val_perceptual"} <= set(metrics("tokenizer"))
    assert (paths.PLOTS / "tokenizer").is_dir()
    cfg = change(cfg, "tokenizer.init", train=True)
    cfg = change(cfg, "tokenizer.optim", lr=1e-12, min_lr=0.0, warmup_epochs=0.0)
    tokenizer.main(run_of(tokenizer, cfg))
    before, after = (tokenizer_storage.load(folder) for folder in (given_tokenizer, paths.TOKENIZER))
    for name, parameter in after.named_parameters():
        torch.testing.assert_close(parameter, before.get_parameter(name))
    assert after.quantizer.updates > before.quantizer.updates


def test_another_tokenizer_is_refused(given_tokenizer: Path) -> None:
    cfg = change(CFG, "tokenizer.init", source="path", path="data/tokenizer")
    for key, values, message in (
        ("tokenizer", {"image_size": 64}, "its image_size is 32, but tokenizer.image_size is 64; set it to 32"),
        ("tokenizer.quantizer", {"codes": 32}, "its quantizer.codes is 16, but tokenizer.quantizer.codes is 32"),
        ("tokenizer.autoencoder", {"stem_stride": 8}, "its autoencoder.stem_stride is 4"),
    ):
        with pytest.raises(PecoError, match=f"^tokenizer.init.path: data/tokenizer: {message}"):
            tokenizer_storage.load_given(change(cfg, key, **values).tokenizer)
    with pytest.raises(PecoError, match=r"^tokenizer\.init\.path: .* expected a model folder of kind 'tokenizer'"):
        tokenizer_storage.load_given(change(cfg, "tokenizer.init", path=str(paths.BACKBONE)).tokenizer)


# Before anything runs


def test_given_weights_are_checked_before_anything_runs(given_tokenizer: Path) -> None:
    cfg = change(CFG, "tokenizer.init", source="path", path="data/tokenizer")
    cfg = change(cfg, "pretrain.init", source="path", path=str(paths.BACKBONE), head=True)
    cfg = change(cfg, "perceptual_net", source="path", path=str(paths.PERCEPTUAL_NET))
    given_weights.check_weights(cfg)
    given_weights.check_weights(change(cfg, "pretrain.init", path="data/fetched-later"))
    for key, values, message in (
        ("pretrain.vit", {"depth": 5}, "pretrain.vit.depth is 5"),
        ("tokenizer.quantizer", {"codes": 32}, "tokenizer.quantizer.codes is 32"),
        ("perceptual_net", {"path": "data"}, "perceptual_net.path: "),
        ("pretrain.init", {"source": "timm", "model": "no_such_net"}, "pretrain.init.model: no_such_net: "),
        (
            "pretrain.init",
            {"source": "timm", "model": "test_vit"},
            "its embed_dim is 64, but pretrain.vit.embed_dim is 32",
        ),
    ):
        with pytest.raises(PecoError, match=message):
            given_weights.check_weights(change(cfg, key, **values))
    fixed = change(change(CFG, "perceptual_net", source="timm"), "perceptual_net.timm", model="maxvit_rmlp_pico_rw_256")
    with pytest.raises(PecoError, match=r"^perceptual_net.timm.model: maxvit_\w+: doesn't work on images of 32 pixels"):
        given_weights.check_weights(fixed)


def test_a_changed_schedule_after_a_result_is_named_with_what_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", ".")

    def note(cfg: config.Config, stage: str = "pretrain") -> str | None:
        Path("params.yaml").write_text(yaml.safe_dump(schema.to_dict(cfg)))
        return given_weights.note_on_schedule(load_graph()[stage])

    assert note(CFG) is None  # no result yet
    recorded = {key: schema.to_dict(CFG)[key] for key in ("seed", "loader", "tokens", "pretrain")}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"pretrain": {"params": {"params.yaml": recorded}}}}))
    assert note(CFG) is None
    longer = change(CFG, "pretrain.optim", epochs=4.0)
    assert note(longer) == (
        "pretrain: pretrain.optim.epochs in params.yaml (1.0 -> 4.0), so its last result is not used; pretrain.init "
        "starts it from weights such as its last result (docs/experiments.md)"
    )
    assert note(change(longer, "pretrain", layer_scale=0.2)) is None  # another training
    assert note(longer, "tokenizer") is None and note(longer, "evaluate@knn") is None
    graph = load_graph()
    stages = {}
    for name in ("perceptual_net", "evaluate@finetune"):
        values = parameters_of(graph[name], schema.to_dict(CFG))
        stages[name] = {"params": {"params.yaml": values}}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    for name in stages:
        assert note(CFG, name) is None
        key = f"{name.replace('@', '.')}.optim"
        text = note(change(CFG, key, epochs=4.0), name)
        assert text is not None
        assert re.fullmatch(
            rf"{name}: {key}.epochs in params.yaml .*so its last result is not used: it starts from the .*", text
        )
