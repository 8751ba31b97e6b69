"""Model folders: whole or absent, equal bytes for equal content, readable by plain timm, one clear line if they are broken."""

import json
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

import peco
from peco.core import artifacts, config, publishing, versions
from peco.core.errors import PecoError
from peco.mim import storage as mim_storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer

ROOT = Path(__file__).parents[1]
VIT = config.Vit("beit_base_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=4)
AUTOENCODER = config.Autoencoder(channels=(8, 16), stem_stride=4, res_blocks=1, attention=True)
QUANTIZER = config.Quantizer(codes=16, dim=4, l2_normalize=True, decay=0.99, restart_after=10, kmeans_iters=0)


def make_backbone(directory: Path, layer_scale: float | None = 0.1, codes: int = 16) -> MaskedImageModel:
    torch.manual_seed(0)
    backbone, arch, model_args = build_backbone(VIT, 32, layer_scale, drop_path=0.1)
    for block in backbone.blocks:  # zero at initialisation, so a failure to load them would not be noticed
        torch.nn.init.normal_(block.attn.relative_position_bias_table)
    model = MaskedImageModel(backbone, codes).eval()
    mim_storage.save(directory, model, arch=arch, model_args=model_args, extra={"image_size": 32})
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_backbone(tmp_path / "backbone")
    return tmp_path / "backbone"


def digest(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


# --- plain timm


@pytest.mark.parametrize("layer_scale", [0.1, None])
def test_plain_timm_loads_the_backbone(tmp_path: Path, layer_scale: float | None) -> None:
    model = make_backbone(tmp_path / "m", layer_scale)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.forward_features(x), model.backbone.forward_features(x), rtol=0, atol=0)
    assert loaded.num_classes == 0
    data = timm.data.resolve_model_data_config(loaded)
    assert tuple(data["mean"]) == tuple(data["std"]) == (0.5, 0.5, 0.5)
    assert data["input_size"] == (3, 32, 32) and data["crop_pct"] == 1.0


def test_plain_timm_loads_it_with_another_head(folder: Path) -> None:
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    x = torch.randn(2, 3, 32, 32)
    assert classifier(x).shape == (2, 7)
    torch.testing.assert_close(classifier.forward_features(x), plain.forward_features(x), rtol=0, atol=0)


def test_plain_timm_loads_it_at_another_size(folder: Path) -> None:
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    larger = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=64).eval()
    assert larger.forward_features(torch.randn(2, 3, 64, 64)).shape == (2, 65, 32)
    assert larger.blocks[0].attn.relative_position_bias_table.shape == (15 * 15 + 3, 2)
    # As timm itself resizes the loaded model.
    plain.set_input_size((64, 64))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(larger.forward_features(x), plain.forward_features(x))


def test_any_timm_architecture_can_be_saved(tmp_path: Path) -> None:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).eval()
    artifacts.save_timm(
        tmp_path / "m",
        model,
        arch="vit_tiny_patch16_224",
        model_args=arguments,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    loaded = artifacts.load_timm(tmp_path / "m", num_classes=3)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded.forward_features(x), model.forward_features(x))
    mean, std = artifacts.normalization(loaded)
    assert mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3]) and std.flatten().tolist() == pytest.approx(
        [0.4, 0.5, 0.6]
    )


@pytest.mark.parametrize(
    "arguments", [{"out_indices": 2}, {"out_indices": (0, 1)}, {"out_indices": [0], "img_size": 64}]
)
def test_features_of_blocks_are_those_of_plain_timm(folder: Path, arguments: dict[str, object]) -> None:
    own = peco.load_backbone(folder, features_only=True, **arguments)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, **arguments).eval()
    x = torch.rand(2, 3, *(2 * [arguments.get("img_size", 32)])) * 2 - 1
    features = own(x)
    assert [tuple(f.shape[2:]) for f in features] == [tuple(f.shape[2:]) for f in plain(x)]
    for found, expected in zip(features, plain(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_backbone_without_weights_and_other_sizes_of_one_model(folder: Path) -> None:
    random = peco.load_backbone(folder, pretrained=False, num_classes=3)
    assert random(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert not torch.equal(random.blocks[0].mlp.fc1.weight, peco.load_backbone(folder).blocks[0].mlp.fc1.weight)
    model = peco.load_backbone(folder)
    model.set_input_size((64, 64))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.forward_features(x), peco.load_backbone(folder, img_size=64).forward_features(x))
    (feature,) = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert feature.shape == (1, 32, 8, 8)
    for arguments, message in (
        ({"depth": 1}, "features_only=True with out_indices"),
        ({"dynamic_img_size": True}, "dynamic_img_size"),
    ):
        with pytest.raises(PecoError, match=message):
            peco.load_backbone(folder, **arguments)


@pytest.mark.parametrize(
    ("version", "fits"), [("1.0.30", False), ("0.9.16", False), ("1.0.31", True), ("1.1.0.dev0", True)]
)
def test_an_older_timm_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, fits: bool) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    versions.require_timm.cache_clear()
    if fits:
        artifacts.load_timm(folder)
    else:
        with pytest.raises(PecoError, match=rf"^timm: version {version} is too old; `pip install 'timm>=1\.0\.31'`$"):
            artifacts.load_timm(folder)
    monkeypatch.undo()
    versions.require_timm.cache_clear()


def test_the_oldest_timm_is_that_of_the_project() -> None:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"timm>={'.'.join(map(str, versions.TIMM))}" in lines


# --- the range of images


def test_images_that_are_not_normalized_are_warned_of_once(folder: Path) -> None:
    x = torch.rand(2, 3, 32, 32)
    for arguments in ({}, {"features_only": True, "out_indices": [0]}):
        model = peco.load_backbone(folder, **arguments)
        with pytest.warns(
            UserWarning, match=r"as of images in \[0, 1\]; it takes normalised ones, with values from -1 to 1"
        ):
            model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)
    with pytest.warns(UserWarning, match="the first batch has values from .* to 255; it takes normalised images"):
        peco.load_backbone(folder).forward_features(torch.full((1, 3, 32, 32), 255.0))


@pytest.mark.parametrize("arch", ["resnet18", "test_convnext"])
def test_features_of_any_timm_network_are_those_of_plain_timm(tmp_path: Path, arch: str) -> None:
    """Cut for features, a ConvNeXt has other names for its layers."""
    source = timm.create_model(arch, num_classes=0)
    artifacts.save_timm(tmp_path / "net", source, arch=arch, model_args={}, mean=[0.5] * 3, std=[0.5] * 3)
    plain = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True, features_only=True).eval()
    x = torch.rand(1, 3, 64, 64) - 0.5
    for found, expected in zip(peco.load_backbone(tmp_path / "net", features_only=True)(x), plain(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_normalized_images_dark_ones_too_are_not_warned_of(folder: Path) -> None:
    noise, dark = torch.randn(1, 3, 32, 32).clamp(-1, 1), torch.full((1, 3, 32, 32), -0.9)
    for images in (noise, dark, 1.2 * noise):  # resampling overshoots
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            peco.load_backbone(folder)(images)


@pytest.mark.parametrize("change", [lambda x: 2 * x - 1, lambda x: 255 * x, lambda x: (x - 0.45) / 0.22])
def test_a_tokenizer_refuses_a_first_batch_of_another_range(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tokenizer = PerceptualTokenizer(AUTOENCODER, QUANTIZER).eval()
    x = torch.rand(2, 3, 32, 32)
    with pytest.raises(PecoError, match=r"^tokenizer: expected images in \[0, 1\], got values from"):
        tokenizer.tokenize(change(x))
    for fine in (x, 0.01 * x, torch.zeros_like(x), 1.2 * x - 0.1):  # resampling overshoots
        PerceptualTokenizer(AUTOENCODER, QUANTIZER).eval().tokenize(fine)


# --- our own loading


def test_backbone_with_its_prediction_head_comes_back(folder: Path) -> None:
    model = make_backbone(folder)
    loaded = mim_storage.load(folder)
    masked = torch.tensor([[0, 3, 6, 9], [1, 4, 7, 15]])
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x, masked), model(x, masked), rtol=0, atol=0)
    assert not loaded.training


def test_tokenizer_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = PerceptualTokenizer(AUTOENCODER, QUANTIZER).eval()
    tokenizer_storage.save(tmp_path / "t", tokenizer, AUTOENCODER, QUANTIZER, extra={"image_size": 32})
    loaded = peco.load_tokenizer(tmp_path / "t")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.tokenize(x), tokenizer.tokenize(x))
    torch.testing.assert_close(loaded.reconstruct(x), tokenizer.reconstruct(x), rtol=0, atol=0)
    assert artifacts.section(tmp_path / "t", "tokenizer")["image_size"] == 32


def test_overrides_give_a_new_head_whose_weights_follow_the_seed(folder: Path) -> None:
    first, again, other = (peco.load_backbone(folder, num_classes=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert torch.equal(first.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    artifacts.load_timm(folder)
    assert torch.equal(torch.rand(1), expected)


def test_random_like_has_the_architecture_and_none_of_the_weights(folder: Path) -> None:
    trained, random, again = (
        artifacts.load_timm(folder),
        artifacts.random_like(folder, seed=1),
        artifacts.random_like(folder, seed=1),
    )
    assert {n: p.shape for n, p in random.named_parameters()} == {n: p.shape for n, p in trained.named_parameters()}
    assert not torch.equal(random.blocks[0].mlp.fc1.weight, trained.blocks[0].mlp.fc1.weight)
    assert all(
        torch.equal(a, b) for a, b in zip(random.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_import_peco_is_light() -> None:
    code = "import peco, sys; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- bytes and publishing


def test_same_bytes_twice(tmp_path: Path) -> None:
    make_backbone(tmp_path / "a")
    make_backbone(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    text = (tmp_path / "a/config.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"
    assert str(tmp_path) not in text
    assert len({path.stat().st_mode for path in (tmp_path / "a").iterdir()}) == 1  # given by the umask, not private


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(folder: Path) -> None:
    (folder / "stale.txt").write_text("x")
    make_backbone(folder, codes=8)
    assert sorted(digest(folder)) == ["config.json", "mim_head.safetensors", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]
    assert mim_storage.load(folder).head.out_features == 8


def test_a_failure_leaves_the_old_folder_whole(folder: Path) -> None:
    before = digest(folder)

    def fail() -> None:
        with publishing.staging(folder) as tmp:
            (tmp / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(PecoError, match="disk full"):
        fail()
    assert digest(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]


@pytest.mark.parametrize(("number", "inside"), [(5, True), (13, False), (28, False)])
def test_a_failure_to_read_elsewhere_is_not_one_to_write(folder: Path, number: int, inside: bool) -> None:
    def fail() -> None:
        with publishing.staging(folder) as tmp:
            raise OSError(number, "x", str((tmp if inside else folder.parent) / "source"))

    with pytest.raises(OSError, match="x"):
        fail()
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]


def test_a_folder_that_takes_no_file_is_one_line(folder: Path) -> None:
    def fail() -> None:
        with publishing.staging(folder) as tmp:
            raise PermissionError(13, "Permission denied", str(tmp / "model.safetensors"))

    with pytest.raises(PecoError, match="could not be written"):
        fail()


def test_publishing_replaces_files_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file", "new"):
        with publishing.staging(tmp_path / name) as tmp:
            (tmp / "made").write_text("y")
        assert not (tmp_path / name).is_symlink()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["made"]
    assert (tmp_path / "elsewhere/kept").exists()
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    publishing.publish(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"


def test_leftovers_of_a_killed_run_do_no_harm(folder: Path) -> None:
    for name in (".backbone.tmp", ".backbone.old"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "junk").write_text("x")
    make_backbone(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]


# --- one clear line


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "backbone: no such model folder"),
        (lambda d: (d / "config.json").unlink(), "config.json: no such file"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda d: (d / "mim_head.safetensors").unlink(), "mim_head.safetensors: no such file"),
        (lambda d: truncate(d / "model.safetensors"), "model.safetensors: damaged"),
        (lambda d: truncate(d / "mim_head.safetensors"), "mim_head.safetensors: damaged"),
        (lambda d: (d / "model.safetensors").write_bytes(b"not a tensor file"), "model.safetensors: damaged"),
        (lambda d: truncate(d / "config.json"), "config.json: not valid JSON"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]\n"), "holds no model description"),
        (lambda d: (d / "config.json").write_text("{}\n"), "found None"),
    ],
)
def test_a_broken_folder_gives_one_line(folder: Path, damage: object, message: str) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(PecoError, match=message) as caught:
        mim_storage.load(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    described = artifacts.describe(folder)
    described["model_args"]["embed_dim"] = 64
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(PecoError, match=r"has shape .* the model needs") as caught:
        artifacts.load_timm(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("classes", [0, 5])
def test_missing_weights_are_refused_with_any_head(folder: Path, classes: int) -> None:
    weights = artifacts.load_tensors(folder / "model.safetensors")
    del weights["blocks.1.mlp.fc1.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(PecoError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        artifacts.load_timm(folder, num_classes=classes)


def test_a_tokenizer_of_another_shape_is_refused(tmp_path: Path) -> None:
    tokenizer_storage.save(tmp_path / "t", PerceptualTokenizer(AUTOENCODER, QUANTIZER), AUTOENCODER, QUANTIZER)
    described = artifacts.describe(tmp_path / "t")
    described["peco"]["quantizer"]["dim"] = 8
    (tmp_path / "t/config.json").write_text(json.dumps(described))
    with pytest.raises(PecoError, match=r"has shape .* the model needs"):
        tokenizer_storage.load(tmp_path / "t")
    del described["peco"]["autoencoder"]["channels"]
    (tmp_path / "t/config.json").write_text(json.dumps(described))
    with pytest.raises(PecoError, match="not the parameters of a tokenizer"):
        tokenizer_storage.load(tmp_path / "t")


def test_the_wrong_kind_of_folder_is_named(folder: Path, tmp_path: Path) -> None:
    tokenizer_storage.save(tmp_path / "t", PerceptualTokenizer(AUTOENCODER, QUANTIZER), AUTOENCODER, QUANTIZER)
    with pytest.raises(PecoError, match="expected a model folder of kind 'tokenizer', found 'backbone'"):
        peco.load_tokenizer(folder)
    with pytest.raises(PecoError, match="not the folder of a timm model"):
        peco.load_backbone(tmp_path / "t")


def test_an_unknown_override_is_one_line(folder: Path) -> None:
    with pytest.raises(PecoError, match="can't build the model"):
        artifacts.load_timm(folder, no_such_argument=1)
