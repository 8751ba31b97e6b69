"""`peco export`: what other programs compute from the file is what the model computes."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import tiny_models
import torch
import transformers
from PIL import Image
from torch import Tensor

import peco
from peco import cli
from peco.data import views
from peco.data.images import Picture
from peco.use.export import Features

SIZE = tiny_models.CFG.loader.image_size


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_models(root)
    return root


def export(model: Path, to: str, output: Path, *options: str) -> None:
    assert cli.main(["export", str(model), "--to", to, "-o", str(output), *options]) == 0


@torch.no_grad()
def expected(folder: Path, x_BCHW: Tensor) -> list[Tensor]:
    """Outputs by the public loaders."""
    if folder.name == "tokenizer":
        return [peco.load_tokenizer(folder).tokenize(x_BCHW)]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=x_BCHW.shape[-1]).eval()
    if folder.name == "classifier":
        return [model(2 * x_BCHW - 1)]
    return [model(2 * x_BCHW - 1), model.forward_features(2 * x_BCHW - 1)[:, 1:]]


def images(count: int, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def close(found: Tensor, want: Tensor) -> None:
    if want.dtype == torch.int64:
        assert torch.equal(found, want)
    else:
        torch.testing.assert_close(found, want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("backbone", ["features", "tokens"]), ("classifier", ["logits"]), ("tokenizer", ["tokens"])],
)
def test_onnxruntime_computes_the_same_for_any_number_of_images(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, outputs: list[str]
) -> None:
    path = tmp_path / "model.onnx"
    export(models / name, "onnx", path)
    printed = capsys.readouterr().out
    assert "opset 20" in printed and "largest difference from the original" in printed
    (opset,) = [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""]
    assert opset == 20
    session = onnxruntime.InferenceSession(path)
    assert [out.name for out in session.get_outputs()] == outputs
    for count in (1, 5):
        x_BCHW = images(count)
        found = session.run(None, {"image": x_BCHW.numpy()})
        for got, want in zip(found, expected(models / name, x_BCHW), strict=True):
            close(torch.tensor(got), want)


def test_torch_export_computes_the_same_for_any_number_of_images(models: Path, tmp_path: Path) -> None:
    name, size = "backbone", 2 * SIZE
    export(models / name, "torch-export", tmp_path / "model.pt2", "--size", str(size))
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 5):
        x_BCHW = images(count, size)
        for got, want in zip(program(x_BCHW), expected(models / name, x_BCHW), strict=True):
            close(got, want)


@pytest.mark.parametrize("position_embedding", [False, True])  # as after a start from a plain ViT
def test_transformers_loads_a_backbone_as_its_beit_without_timm(tmp_path: Path, position_embedding: bool) -> None:
    models = tmp_path / "models"
    tiny_models.save_backbone(models / "backbone", position_embedding=position_embedding)
    export(models / "backbone", "transformers", tmp_path / "beit")
    model = transformers.AutoModel.from_pretrained(tmp_path / "beit").eval()
    assert type(model).__name__ == "BeitModel"
    x_BCHW = images(3)
    with torch.no_grad():
        tokens_BLD = model(2 * x_BCHW - 1).last_hidden_state
    features_BD, patches_BLD = expected(models / "backbone", x_BCHW)
    close(tokens_BLD[:, 1:], patches_BLD)
    close(tokens_BLD[:, 1:].mean(1), features_BD)


def test_the_preprocessing_in_transformers_is_that_of_the_evaluations(models: Path, tmp_path: Path) -> None:
    export(models / "backbone", "transformers", tmp_path / "beit")
    ramp = np.add.outer(np.arange(60), np.arange(90))[..., None] * np.array([1.0, 0.8, 0.5])
    image = Image.fromarray(ramp.astype(np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "beit")
    found = processor(image, return_tensors="pt")["pixel_values"][0]
    pixels_HWC = torch.tensor(views.apply(Picture(np.asarray(image)), views.center(*image.size), SIZE))
    torch.testing.assert_close(found, 2 * pixels_HWC.permute(2, 0, 1).float() / 255 - 1, atol=0.05, rtol=0)


def test_transformers_loads_a_classifier_with_its_class_names(models: Path, tmp_path: Path) -> None:
    export(models / "classifier", "transformers", tmp_path / "classifier")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "classifier").eval()
    assert model.config.id2label == dict(enumerate(tiny_models.CLASSES))
    x_BCHW = images(3)
    with torch.no_grad():
        close(model(2 * x_BCHW - 1).logits, expected(models / "classifier", x_BCHW)[0])


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("tokenizer --to transformers", "--to transformers: it has no counterpart of a tokenizer"),
        (
            "segmenter --to onnx",
            "MODELS/segmenter: expected the folder of a backbone, perceptual_net, classifier or tokenizer",
        ),
        ("classifier --to transformers --tolerance -1", "the exported model differs by 0 from the original"),
        ("tokenizer --to onnx --size 33", "--size: 33 is not allowed; expected a multiple of"),
        ("backbone --to onnx --size 33", "--size: 33 is not allowed; expected a multiple of 8"),
        ("classifier --to transformers --size 64", "--size: a wrapped timm model has that of its folder"),
    ],
)
def test_what_can_not_be_exported_is_one_line_and_no_file(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, line: str
) -> None:
    name, *options = command.split()
    assert cli.main(["export", str(models / name), *options, "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line.replace('MODELS', str(models))}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["backbone", "backbone/model.onnx", "classifier"])
def test_no_model_folder_is_overwritten(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    shutil.copytree(models, tmp_path / "m")
    before = {path: path.read_bytes() for path in (tmp_path / "m").rglob("*.*")}
    command = ["export", str(tmp_path / "m/backbone"), "--to", "transformers", "-o", str(tmp_path / "m" / output)]
    assert cli.main(command) == 2
    assert re.search("is in the folder of the model itself|is no export for transformers", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in (tmp_path / "m").rglob("*.*")} == before


def test_an_export_replaces_an_earlier_one(models: Path, tmp_path: Path) -> None:
    for name in ("classifier", "backbone"):
        export(models / name, "transformers", tmp_path / "out")
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")).__name__ == "BeitModel"


def test_what_torch_can_not_export_is_one_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Features, "forward", lambda self, x_BCHW: (x_BCHW if float(x_BCHW.sum()) > 0 else -x_BCHW,))
    for to in ("onnx", "torch-export"):
        assert cli.main(["export", str(models / "backbone"), "--to", to, "-o", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --to {to}: torch can't export the model of") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, to in (("onnxruntime", "onnx"), ("transformers", "transformers")):
        monkeypatch.setitem(sys.modules, package, None)
        assert cli.main(["export", str(models / "backbone"), "--to", to, "-o", str(tmp_path / "out")]) == 2
