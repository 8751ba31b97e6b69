"""The reference: any timm network, evaluated next to the backbone under equal conditions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from peco.core import config
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.evaluate.detection.model import build_detector
from peco.evaluate.detection.task import DetectionTask
from peco.evaluate.finetune.model import build_classifier
from peco.evaluate.finetune.task import FinetuneTask
from peco.evaluate.segmentation.model import UperNet, build_segmenter
from peco.networks import backbones
from peco.networks.timm_nets import whole_patches
from peco.probes.features import extract
from pipelines.workflow.compose import compose_params

SIDE = 64
CFG = parse_params(
    compose_params("smoke", [f"evaluate.{task}.image_size={SIDE}" for task in ("segmentation", "detection")])
)
# Convolutional networks, two of them with batch normalisation, and a vision transformer.
NETWORKS = ("test_convnext", "test_efficientnet", "test_resnet", "test_vit")


def save_weights(folder: Path, name: str, **options: Any) -> config.Reference:
    """Random weights of a timm model with its head, as a file that the parameters name."""
    torch.manual_seed(1)
    model = timm.create_model(name, **options)
    path = folder / f"{name}.safetensors"
    save_file(model.state_dict(), path)
    return config.Reference("path", str(path), name, None)


@pytest.fixture(scope="module", params=NETWORKS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> config.Reference:
    return save_weights(tmp_path_factory.mktemp("reference"), request.param)


def test_its_features_are_those_of_timm(net: config.Reference) -> None:
    model = backbones.reference(net, SIDE)(num_classes=0)
    plain = timm.create_model(str(net.model), num_classes=0, pretrained_cfg_overlay={"file": net.path}, pretrained=True)
    x_BCHW = torch.rand(2, 3, whole_patches(model, SIDE), whole_patches(model, SIDE))
    found, _ = extract(model, [{"image": x_BCHW, "label": torch.tensor([0, 1])}])
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    if "pooled" in found:
        with torch.no_grad():
            expected = plain.eval()((x_BCHW - mean) / std)
        torch.testing.assert_close(found["pooled"], expected)
    else:
        assert list(found) == [*map(str, range(1, len(plain.blocks) + 1)), "norm"]
        with torch.no_grad():
            tokens = plain.eval().forward_features((x_BCHW - mean) / std)[:, plain.num_prefix_tokens :]
        torch.testing.assert_close(found["norm"], tokens.mean(1))


def every_weight_learns(task: torch.nn.Module, batch: dict[str, Any]) -> None:
    """Check that one step gives a finite loss and every trainable weight a gradient, as the training loop requires."""
    loss, _ = task.train()(batch, 0, 1)
    loss.backward()
    assert torch.isfinite(loss)
    assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_classifier_is_trained_from_its_weights_with_a_new_head(net: config.Reference) -> None:
    cfg = CFG.evaluate.finetune
    # 1000 classes as in the file: its own head must not be taken over.
    model, again, other = (build_classifier(backbones.reference(net, SIDE, seed), 1000, cfg) for seed in (0, 0, 1))
    body, head = model.state_dict(), model.get_classifier().state_dict()  # type: ignore[operator]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in body.items())
    different = [name for name, value in body.items() if not torch.equal(value, other.state_dict()[name])]
    assert {name.rpartition(".")[2] for name in different} == set(head) and len(different) == len(head)
    size = whole_patches(model, SIDE)
    every_weight_learns(
        FinetuneTask(model, 1000, cfg), {"image": torch.rand(4, 3, size, size), "label": torch.tensor([0, 1, 2, 3])}
    )


def test_a_segmenter_is_built_on_four_of_its_levels(net: config.Reference) -> None:
    model = build_segmenter(backbones.reference(net, SIDE), 3, CFG.evaluate.segmentation, seed=0, any_network=True)
    logits_BKHW = model(torch.rand(2, 3, SIDE, SIDE))
    assert logits_BKHW.shape == (2, 3, SIDE, SIDE)
    logits_BKHW.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_pyramid_level_of_a_network_with_its_own_strides_is_not_resampled(tmp_path: Path) -> None:
    reference = save_weights(tmp_path, "test_resnet")
    model = build_segmenter(
        backbones.reference(reference, SIDE), 3, CFG.evaluate.segmentation, seed=0, any_network=True
    )
    assert all(isinstance(level, torch.nn.Identity) for level in model.pyramid)
    assert isinstance(model, UperNet) and model.block_indices == [1, 2, 3, 4]


def test_a_detector_is_built_on_four_of_its_levels(net: config.Reference) -> None:
    model = build_detector(backbones.reference(net, SIDE), 2, CFG.evaluate.detection, masks=True, seed=0)
    maps = model.backbone(torch.rand(1, 3, SIDE, SIDE))  # type: ignore[operator]
    assert [tuple(level.shape[2:]) for level in maps.values()] == [(SIDE // s, SIDE // s) for s in (4, 8, 16, 32)]
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, SIDE, SIDE, dtype=torch.uint8),
    }
    losses = DetectionTask(model).model([torch.rand(3, SIDE, SIDE)], [target])  # type: ignore[operator]
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_weights_of_a_file_need_the_name_of_their_network(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match=r"evaluate\.reference\.model: None is not allowed; expected timm's name"):
        dataclasses.replace(save_weights(tmp_path, "test_resnet"), model=None).check("evaluate.reference")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (config.Reference("timm", "", "no_such_net", None), r"^evaluate\.reference\.model: no_such_net: Unknown model"),
        (
            config.Reference("path", "data/none", "test_resnet", None),
            r"^evaluate\.reference\.path: data/none: no such file",
        ),
        (
            config.Reference("path", __file__, None, None),
            r"^evaluate\.reference\.path: .*test_reference\.py: not a \.safetensors file; `python -m peco\.convert`",
        ),
        (
            config.Reference("timm", "", "inception_v3", None),
            r"^evaluate\.reference\.model: inception_v3: doesn't work on images of 64",
        ),
        (
            config.Reference("timm", "", "deit_tiny_distilled_patch16_224", None),
            r"^evaluate\.reference: deit_tiny_distilled_patch16_224: takes no head of 2 classes",
        ),
        (
            config.Reference("timm", "", "eva02_tiny_patch14_224", None),
            r"^evaluate\.segmentation\.image_size: 64 is not allowed for evaluate\.reference, whose patches have 14 pixels",
        ),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_before_the_run(reference: config.Reference, message: str) -> None:
    with pytest.raises(PecoError, match=message):
        backbones.check_reference(dataclasses.replace(CFG.evaluate, reference=reference), SIDE)


def test_detection_refuses_patches_that_are_no_power_of_two() -> None:
    reference = config.Reference("timm", "", "eva02_tiny_patch14_224", None)
    tasks = dataclasses.replace(CFG.evaluate.tasks, segmentation=False)
    detection = dataclasses.replace(CFG.evaluate.detection, image_size=224)
    with pytest.raises(PecoError, match="patches of 14 pixels are not allowed for detection"):
        backbones.check_reference(
            dataclasses.replace(CFG.evaluate, reference=reference, tasks=tasks, detection=detection), 224
        )


def test_a_network_that_does_not_know_drop_path_is_refused_before_the_run() -> None:
    finetune = dataclasses.replace(CFG.evaluate.finetune, drop_path=0.1)
    reference = config.Reference("timm", "", "vgg11", None)
    with pytest.raises(PecoError, match=r"vgg11: .*drop_path_rate"):
        backbones.check_reference(dataclasses.replace(CFG.evaluate, reference=reference, finetune=finetune), SIDE)


def test_batch_normalization_is_frozen(tmp_path: Path) -> None:
    """Its statistics would differ from process to process."""
    model = backbones.reference(save_weights(tmp_path, "test_resnet"), SIDE)(num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(torch.rand(4, 3, SIDE, SIDE)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_last_four_of_more_levels_are_taken() -> None:
    assert backbones.chosen_levels(timm.create_model("vgg11"), 4) == [2, 3, 4, 5]
    assert backbones.chosen_levels(timm.create_model("test_vit", depth=6), 4) == [1, 2, 4, 5]
