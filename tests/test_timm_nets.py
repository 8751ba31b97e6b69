"""Networks that exist already: by timm's name, from a folder or a file, from the hub at a pinned commit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.networks.timm_nets import by_name, by_path, hub_commit

VIT = "vit_tiny_patch16_224"


def timm_net(model: str, pretrained: bool = False) -> config.TimmNet:
    return config.TimmNet(model, pretrained, None)


def test_local_weights_are_loaded_and_resampled_to_the_image_size(tmp_path: Path) -> None:
    source = timm.create_model(VIT, num_classes=10)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = by_path(tmp_path / "w.safetensors", VIT, 64)
    assert model.pos_embed.shape[1] == 17 and model.num_classes == 0
    assert str(tmp_path) not in str(model.pretrained_cfg)
    own = model.state_dict()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in own.items() if name != "pos_embed")


def _without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != "blocks.3.attn.proj.weight"}


def _reshaped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"blocks.3.attn.proj.weight": torch.zeros(7, 7)}


def _broken(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"blocks.3.attn.proj.bias": torch.full((192,), torch.inf)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"lacks 1 weights .*blocks\.3\.attn\.proj\.weight"),
        (_reshaped, "size mismatch"),
        (_broken, "holds NaN"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(change(timm.create_model(VIT).state_dict()), path)
    with pytest.raises(PecoError, match=rf"^perceptual_net\.path: .*{message}"):
        by_path(path, VIT, 32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.safetensors", None, "no such file"),
        ("model.pth", b"x", "peco.convert"),
        ("broken.safetensors", b"broken", "damaged"),
    ],
)
def test_an_unusable_weight_file_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PecoError, match=message) as caught:
        by_path(tmp_path / name, VIT, 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_net", "vit_tiny_patch16_224.no_such_tag", "../folder"])
def test_an_unknown_model_is_one_clear_line(name: str) -> None:
    with pytest.raises(PecoError, match=r"^perceptual_net\.timm\.model: ") as caught:
        by_name(timm_net(name), 32)
    assert "\n" not in str(caught.value)


def test_a_model_without_weights_on_the_hub_is_one_clear_error() -> None:
    with pytest.raises(PecoError, match="no weights on the hub"):
        by_name(timm_net("vit_base_patch16_xp_224", pretrained=True), 32)


def test_the_error_without_a_network_names_the_parameter_for_local_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("cannot reach the hub")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    with pytest.raises(PecoError, match=r"cannot reach the hub; .*set perceptual_net\.source to path"):
        by_name(timm_net("vit_tiny_patch16_224.augreg_in21k", pretrained=True), 32)


@pytest.mark.parametrize(
    ("name", "repository"), [("resnet18.a1_in1k", "timm/resnet18.a1_in1k"), ("hf-hub:some/net", "some/net")]
)
def test_weights_are_requested_at_the_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, repository: str
) -> None:
    requests, source = [], timm.create_model("resnet18")
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    description = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"classifier": "fc"}}
    (tmp_path / "config.json").write_text(json.dumps(description))

    def download(repo_id: str, filename: str, revision: str | None, **_: object) -> str:
        requests.append((repo_id, filename, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = by_name(config.TimmNet(name, True, "0123abc"), 32)
    assert {request for request in requests if request[1] != "config.json"} == {
        (repository, "model.safetensors", "0123abc")
    }
    assert {revision for *_, revision in requests} == {"0123abc"}
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_the_commit_of_unpinned_weights_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    weights = repository / "snapshots" / commit / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), weights)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda **_: str(weights))
    assert hub_commit(by_name(config.TimmNet("resnet18.a1_in1k", True, None), 32)) == commit
    assert hub_commit(by_name(config.TimmNet("resnet18.a1_in1k", True, commit), 32)) == commit


def test_the_commit_of_weights_outside_the_hub_cache_is_unknown() -> None:
    assert hub_commit(timm.create_model("resnet18.a1_in1k")) is None


@pytest.mark.parametrize(
    ("arch", "index"),
    [
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn.relative_position_index"),
        ("beit_base_patch16_224", "blocks.0.attn.relative_position_index"),
        ("resnet18", None),
    ],
)
def test_a_folder_of_the_hub_is_taken_as_timm_writes_it(tmp_path: Path, arch: str, index: str | None) -> None:
    """Older versions of timm stored an index that newer ones compute."""
    sizes: dict[str, Any] = {"beit_base_patch16_224": {"depth": 1, "embed_dim": 32, "num_heads": 2}}.get(arch, {})
    source = timm.create_model(arch, num_classes=5, **sizes)
    timm.models.save_for_hf(source, tmp_path, model_args=sizes, safe_serialization=True)
    if index is not None:
        weights = artifacts.load_tensors(tmp_path / artifacts.WEIGHTS)
        safetensors.torch.save_file(weights | {index: torch.zeros(1)}, tmp_path / artifacts.WEIGHTS)
    first = next(iter(by_path(tmp_path, "unused", 224).parameters()))
    assert torch.equal(first, next(iter(source.parameters())))


def test_a_folder_brings_its_own_architecture_and_statistics(tmp_path: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    source = timm.create_model(VIT, num_classes=5, **sizes).eval()
    artifacts.save_timm(tmp_path / "net", source, arch=VIT, model_args=sizes, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model = by_path(tmp_path / "net", "unused", 36)
    assert model.num_classes == 0 and model.patch_embed.img_size == (40, 40)  # whole patches
    assert model.pretrained_cfg["mean"] == [0.1, 0.2, 0.3] and str(tmp_path) not in str(model.pretrained_cfg)
    same = by_path(tmp_path / "net", "unused", 32)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(same.forward_features(x), source.forward_features(x), rtol=0, atol=0)
    (tmp_path / "net/config.json").write_text("{}")
    with pytest.raises(PecoError, match=r"^perceptual_net\.path: .*not the folder of a timm model"):
        by_path(tmp_path / "net", "unused", 32)
