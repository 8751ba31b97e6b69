"""UPerNet on a backbone: the model, the sliding window, the scores, and the stage."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from peco.annotations.scenes import open_segmentation
from peco.annotations.sets import IGNORE
from peco.annotations.stages import index_loader
from peco.core import artifacts, config, schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.evaluate.segmentation import model as segmentation
from peco.evaluate.segmentation import stage as evaluate_segmentation
from peco.evaluate.segmentation.model import (
    UperNet,
    build_segmenter,
    evaluate_segmenter,
    predict,
    scores,
)
from peco.evaluate.segmentation.stage import AnnotatedCrop
from peco.evaluate.segmentation.task import SegmentationTask
from peco.masks.folder import open_folder
from peco.mim import storage as mim_storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.networks.backbones import at_random, pretrained
from peco.runtime import paths
from peco.runtime.stage import Skipped, StageRun
from peco.scenes import scenes
from peco.training.distributed import Dist
from peco.training.loop import train
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("smoke", []))
SEGMENTATION = CFG.evaluate.segmentation
SIZE = SEGMENTATION.image_size
CLASSES = 5


def save_backbone(folder: Path, vit: config.Vit, size: int) -> Path:
    torch.manual_seed(0)
    backbone, arch, model_args = build_backbone(vit, size, 0.1, 0.0)
    mim_storage.save(folder, MaskedImageModel(backbone, 16), arch=arch, model_args=model_args)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("model") / "backbone", CFG.pretrain.vit, SIZE)


@pytest.fixture(scope="module")
def model(folder: Path) -> UperNet:
    return build_segmenter(pretrained(folder), CLASSES, SEGMENTATION, seed=0).eval()


# --- scores


def torchmetrics_scores(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    right = torch.from_numpy(predicted), torch.from_numpy(truth)
    each = MulticlassJaccardIndex(classes, average="none", ignore_index=IGNORE)(*right)
    return {
        "miou": MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORE)(*right).item(),
        "pixel_accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE)(*right).item(),
        "iou": each.tolist(),
    }


@given(st.integers(2, 7), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_scores_agree_with_torchmetrics(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = rng.permutation(classes)[: rng.integers(1, classes + 1)]  # the others are absent from the truth
    truth = rng.choice(np.r_[present, IGNORE], (3, 9, 11)).astype(np.int32)
    truth[0, 0, 0] = present[0]
    predicted = rng.choice(rng.permutation(classes)[: rng.integers(1, classes + 1)], truth.shape).astype(np.int32)
    predicted = np.where(rng.random(truth.shape) < 0.4, np.maximum(truth, 0), predicted)
    matrix = sum(segmentation.confusion(t, p, classes) for t, p in zip(truth, predicted, strict=True))
    assert isinstance(matrix, np.ndarray) and matrix.dtype == np.int64 and matrix.sum() == (truth != IGNORE).sum()
    found = scores(matrix, [str(i) for i in range(classes)])
    expected = torchmetrics_scores(truth, predicted, classes)
    assert found["miou"] == pytest.approx(expected["miou"], abs=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=1e-6)
    known = truth != IGNORE
    for i, value in enumerate(expected["iou"]):
        occurs = (truth[known] == i).any() or (predicted[known] == i).any()
        assert (str(i) in found["iou"]) == occurs
        assert not occurs or found["iou"][str(i)] == pytest.approx(value, abs=1e-6)


def test_scores_agree_with_a_calculation_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1, IGNORE]], dtype=np.int32)
    predicted = np.array([[0, 1, 1, 2, 2]], dtype=np.int32)
    found = scores(segmentation.confusion(truth, predicted, 4), ["sky", "road", "car", "dog"])
    assert found["iou"] == {"sky": 1 / 2, "road": 1 / 3, "car": 0.0}  # car is only predicted, dog nowhere
    assert found["miou"] == pytest.approx(5 / 18) and found["pixel_accuracy"] == 0.5


def test_counts_beyond_32_bits_are_exact() -> None:
    matrix = np.array([[3_000_000_000, 1], [1, 3_000_000_000]], dtype=np.int64)
    assert scores(2 * matrix, ["a", "b"])["iou"]["a"] == 6_000_000_000 / 6_000_000_004


# --- sliding window


class Pixelwise(nn.Module):
    """Logits of a pixel are its own colours, so that windows can't matter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean_C11", torch.zeros(3, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        assert x_BCHW.shape[2:] == (self.size, self.size)
        return x_BCHW


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(st.integers(1, 200), st.integers(3, 64))
def test_windows_cover_everything_and_overlap_by_a_third(extra: int, size: int) -> None:
    length = size + extra - 1
    starts = segmentation._starts(length, size)
    assert starts[0] == 0 and starts[-1] == length - size
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= size * 2 / 3).all()


@given(st.integers(0, 30), st.booleans())
@settings(deadline=None, max_examples=15)
def test_a_model_of_single_pixels_gives_every_pixel_its_own_class(extra: int, upright: bool) -> None:
    images = [noise(*(sides if upright else sides[::-1])) for sides in ((16, 16 + extra), (16, 20), (16, 16))]
    for image, predicted in zip(images, predict(Pixelwise(16), images), strict=True):
        assert predicted.dtype == np.int32 and np.array_equal(predicted, np.asarray(image).argmax(axis=2))


def test_one_window_is_the_plain_prediction(model: UperNet) -> None:
    image = noise(SIZE, SIZE)
    x_BCHW = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        plain = model(x_BCHW)[0].argmax(0)
    assert np.array_equal(predict(model, [image])[0], plain.numpy())


def test_overlapping_windows_are_averaged_and_other_sizes_resized(model: UperNet) -> None:
    image = noise(SIZE + 20, SIZE)
    x_BCHW = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    step = int(SIZE * 2 / 3)
    with torch.no_grad():
        windows = {left: model(x_BCHW[..., left : left + SIZE])[0] for left in (0, 20)}
    assert step >= 20
    expected = np.empty((SIZE, SIZE + 20), dtype=np.int64)
    for column in range(SIZE + 20):
        seen = [w[:, :, column - left] for left, w in windows.items() if 0 <= column - left < SIZE]
        expected[:, column] = torch.stack(seen).mean(0).argmax(0).numpy()
    single, larger = predict(model, [image, noise(3 * SIZE, 2 * SIZE + 1)])
    assert np.mean(single == expected) > 0.999  # ties by rounding
    assert larger.shape == (2 * SIZE + 1, 3 * SIZE)


def test_ranks_share_a_split(model: UperNet, tmp_path: Path) -> None:
    data = open_segmentation(descriptor(tmp_path), dataclasses.replace(SEGMENTATION.scenes, val=11), "val")
    many = build_many(model)
    whole = evaluate_segmenter(many, data)
    parts = [evaluate_segmenter(many, data, rank, 3) for rank in range(3)]
    assert np.array_equal(sum(parts), whole) and whole.sum() == 11 * SIZE * SIZE
    doubled = evaluate_segmenter(many, data, all_reduce=lambda matrix: 2 * matrix)
    assert np.array_equal(doubled, 2 * whole)


def build_many(model: UperNet) -> Any:
    """A model with as many classes as the scenes; its predictions don't matter."""

    class Wide(nn.Module):
        size, mean_C11 = model.size, model.mean_C11

        def forward(self, x_BCHW: Tensor) -> Tensor:
            return F.pad(model(x_BCHW), (0, 0, 0, 0, 0, 11 - CLASSES), value=-1e9)

    return Wide()


def descriptor(folder: Path) -> Path:
    path = folder / "data/scenes.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"generator: scenes\nversion: {scenes.VERSION}\nseed: 0\n")
    return path


# --- model


@pytest.mark.parametrize(
    ("patch", "grid", "sides"),
    [
        (16, 4, [16, 8, 4, 2]),
        (14, 4, [16, 8, 4, 2]),
        (8, 8, [16, 8, 4, 2]),
        (8, 2, [4, 2, 1, 1]),  # too small for further pooling
        (4, 5, [5, 3, 2, 1]),
        (32, 2, [16, 8, 4, 2]),
    ],
)
def test_pyramid_has_strides_4_8_16_32(tmp_path: Path, patch: int, grid: int, sides: list[int]) -> None:
    vit = dataclasses.replace(CFG.pretrain.vit, patch_size=patch)
    cfg = dataclasses.replace(SEGMENTATION, image_size=patch * grid)
    model = build_segmenter(pretrained(save_backbone(tmp_path / "b", vit, patch * grid)), CLASSES, cfg, seed=0)
    levels = [level(torch.rand(2, vit.embed_dim, grid, grid)) for level in model.pyramid]
    assert [tuple(level.shape) for level in levels] == [(2, vit.embed_dim, side, side) for side in sides]
    assert model(torch.rand(2, 3, patch * grid, patch * grid)).shape == (2, CLASSES, patch * grid, patch * grid)


def test_features_come_from_the_blocks(folder: Path) -> None:
    model = build_segmenter(pretrained(folder), CLASSES, dataclasses.replace(SEGMENTATION, blocks=(1, 2, 2, 2)), seed=0)
    seen: list[list[Tensor]] = []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(list(args[0][2:])))
    tokens: dict[int, Tensor] = {}
    for i, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: tokens.update({i: out}))
    model.eval()(torch.rand(1, 3, SIZE, SIZE))
    grid = SIZE // CFG.pretrain.vit.patch_size
    maps = [tokens[i][:, 1:].mT.reshape(1, -1, grid, grid) for i in (0, 1, 1, 1)]
    for level, expected, found in zip(model.pyramid, maps, seen[0], strict=True):
        torch.testing.assert_close(found, level(expected))


def test_other_sizes_than_the_backbones_resample_the_position_bias(folder: Path) -> None:
    cfg = dataclasses.replace(SEGMENTATION, image_size=2 * SIZE)
    small, large = (build_segmenter(pretrained(folder), CLASSES, c, seed=0) for c in (SEGMENTATION, cfg))
    assert (small.size, large.size) == (SIZE, 2 * SIZE)
    grid = SIZE // CFG.pretrain.vit.patch_size
    tables = [m.backbone.blocks[0].attn.relative_position_bias_table for m in (small, large)]
    assert [len(t) for t in tables] == [(2 * grid - 1) ** 2 + 3, (4 * grid - 1) ** 2 + 3]
    middles = [
        t[:-3].reshape(2 * n - 1, 2 * n - 1, -1)[n - 1, n - 1] for t, n in zip(tables, (grid, 2 * grid), strict=True)
    ]
    torch.testing.assert_close(*middles)  # no displacement is no displacement at any size
    torch.testing.assert_close(tables[0][-3:], tables[1][-3:])  # of the class token
    assert large(torch.rand(1, 3, 2 * SIZE, 2 * SIZE)).shape == (1, CLASSES, 2 * SIZE, 2 * SIZE)


def test_a_plain_vit_works_too(tmp_path: Path) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    half = (0.5, 0.5, 0.5)
    artifacts.save_timm(tmp_path / "vit", vit, arch="vit_tiny_patch16_224", model_args=args, mean=half, std=half)
    cfg = dataclasses.replace(SEGMENTATION, image_size=2 * SIZE)
    task = SegmentationTask(build_segmenter(pretrained(tmp_path / "vit"), CLASSES, cfg, seed=0)).train()
    large = {name: value.repeat_interleave(2, -1).repeat_interleave(2, -2) for name, value in batch(2).items()}
    task(large, 0, 1)[0].backward()
    assert all(p.grad is not None for p in task.parameters())


def test_pretrained_and_random_differ_in_the_backbone_only(folder: Path) -> None:
    trained, random, again = (
        build_segmenter(make(folder, 1), CLASSES, SEGMENTATION, seed=1).state_dict()
        for make in (pretrained, at_random, at_random)
    )
    for name, value in trained.items():
        assert torch.equal(random[name], again[name])
        if not name.startswith("backbone."):
            assert torch.equal(value, random[name])
    weights = mim_storage.load(folder).state_dict()["backbone.blocks.0.attn.qkv.weight"]
    assert torch.equal(trained["backbone.blocks.0.attn.qkv.weight"], weights)
    assert not torch.equal(random["backbone.blocks.0.attn.qkv.weight"], weights)


def test_a_missing_block_is_refused(folder: Path) -> None:
    with pytest.raises(PecoError, match=r"blocks: 9 is not allowed; the backbone has blocks 1 to 2"):
        build_segmenter(pretrained(folder), CLASSES, dataclasses.replace(SEGMENTATION, blocks=(1, 1, 2, 9)), seed=0)


def test_every_parameter_has_a_gradient_and_layer_decay_applies(folder: Path) -> None:
    cfg = dataclasses.replace(SEGMENTATION, blocks=(1, 1, 1, 1))  # the second block is of no use
    task = SegmentationTask(build_segmenter(pretrained(folder), CLASSES, cfg, seed=0)).train()
    loss, _ = task(batch(4), 0, 1)
    loss.backward()
    assert all(p.grad is not None for p in task.parameters())
    scale = {
        id(p): group.get("lr_scale", 1.0)
        for group in task.param_groups(dataclasses.replace(cfg.optim, layer_decay=0.5))
        for p in group["params"]
    }
    of = {name: scale[id(p)] for name, p in task.named_parameters()}
    assert len(scale) == len(of)
    assert of["model.head.1.weight"] == of["model.decoder.fusion_block.0.weight"] == 1
    assert of["model.backbone.blocks.0.mlp.fc1.weight"] == of["model.backbone.blocks.0.norm1.bias"] == 0.5
    assert of["model.backbone.patch_embed.proj.weight"] == 0.25


def batch(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(IGNORE, CLASSES, (count, SIZE, SIZE), generator=generator, dtype=torch.int32)
    return {"image": torch.rand(count, 3, SIZE, SIZE, generator=generator), "mask": mask}


def test_loss_is_the_cross_entropy_of_known_pixels_and_that_of_a_batch_the_mean_of_its_parts(model: UperNet) -> None:
    task, whole = SegmentationTask(model).eval(), batch(4)
    halves = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 2), slice(2, 4))]
    with torch.no_grad():
        loss = task(whole, 0, 1)[0]
        mean = torch.stack([task(half, 0, 1)[0] for half in halves]).mean()
        log_p = torch.log_softmax(model(whole["image"]).double(), dim=1)
    known = whole["mask"] != IGNORE
    picked = log_p.gather(1, whole["mask"].clamp(min=0).long()[:, None])[:, 0]
    assert loss.item() == pytest.approx(-picked[known].sum().item() / known.numel(), abs=1e-6)
    assert loss.item() == pytest.approx(mean.item(), abs=1e-6)
    nothing = {**whole, "mask": torch.full_like(whole["mask"], IGNORE)}
    assert task(nothing, 0, 1)[0].item() == 0


def test_colors_are_those_of_pascal_voc() -> None:
    classes = np.array([[0, 1, 2, 3], [4, 15, 20, IGNORE]], dtype=np.int32)
    expected = [[(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]]
    expected += [[(0, 0, 128), (192, 128, 128), (0, 64, 128), (255, 255, 255)]]
    assert np.array_equal(segmentation.colorize(classes), np.array(expected))
    all_colors = segmentation.colorize(np.arange(256, dtype=np.int32)[None])[0]
    assert len(np.unique(all_colors, axis=0)) == 256


# --- stage


@pytest.fixture
def workspace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with a backbone and the built-in set."""
    shutil.copytree(folder, tmp_path / paths.BACKBONE)
    descriptor(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("PECO_WORK", "PECO_WORKERS", "PECO_METRICS_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run_of(cfg: config.Config) -> StageRun:
    return StageRun("evaluate@segmentation", schema.restrict(cfg, evaluate_segmentation.PARAMS))


def with_segmentation(**values: Any) -> config.Config:
    cfg = dataclasses.replace(SEGMENTATION, **values)
    return dataclasses.replace(CFG, evaluate=dataclasses.replace(CFG.evaluate, segmentation=cfg))


def outs(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / "metrics").rglob("*")) if p.is_file()}


def test_stage_scores_both_starts_and_gives_the_same_bytes_again(workspace: Path) -> None:
    evaluate_segmentation.main(run_of(CFG))
    first = outs(workspace)
    found = json.loads(first["metrics/evaluate/segmentation.json"])
    counts = {"train_images": SEGMENTATION.scenes.train, "images": SEGMENTATION.scenes.val}
    assert {name: found.pop(name) for name in counts} == counts
    assert found.keys() == {p + s for p in ("", "random_") for s in ("miou", "pixel_accuracy")}
    details = json.loads(first["metrics/pictures/segmentation/details.json"])
    for prefix in ("", "random_"):
        assert details[f"{prefix}iou"].keys() <= {"background", *scenes.CLASSES}
        mean = np.mean(list(details[f"{prefix}iou"].values()))
        assert found[f"{prefix}miou"] == pytest.approx(mean, abs=1e-5)
    kinds = ("image", "truth", "pretrained", "random")
    pictures = {f"metrics/pictures/segmentation/{i:02d}-{kind}.png" for i in range(6) for kind in kinds}
    assert first.keys() == pictures | {
        "metrics/evaluate/segmentation.json",
        "metrics/pictures/segmentation/details.json",
    }
    assert Image.open(workspace / "metrics/pictures/segmentation/00-truth.png").size == (128, 128)
    shutil.rmtree(workspace / "metrics")
    shutil.rmtree(workspace / ".work")
    evaluate_segmentation.main(run_of(CFG))
    assert outs(workspace) == first


def test_stage_on_a_folder_counts_what_it_leaves_out(workspace: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for i in range(count):
            for part, pixels in (
                ("images", rng.integers(0, 256, (40, 400, 3))),
                ("masks", rng.integers(0, 3, (40, 400))),
            ):
                file = workspace / "data/photos" / split / part / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels * (i > 0)).astype(np.uint8)).save(file)
    optim = dataclasses.replace(SEGMENTATION.optim, batch_size=4, epochs=1, ema=0.5)
    cfg = with_segmentation(source="folder", path="data/photos", ignore=0, optim=optim)
    evaluate_segmentation.main(run_of(cfg))
    found = json.loads((workspace / "metrics/evaluate/segmentation.json").read_text())
    assert (found["train_images"], found["images"]) == (4, 2)
    assert found["left_out"] == {"every pixel ignored": 2}
    pictures = workspace / paths.METRICS / "pictures/segmentation"
    assert json.loads((pictures / "details.json").read_text())["iou"].keys() <= {"1", "2"}
    assert len(list(pictures.glob("*.png"))) == 8  # two images of four kinds
    assert Image.open(pictures / "01-random.png").size == (320, 32)


def test_stage_can_be_switched_off_and_reports_a_missing_folder(workspace: Path) -> None:
    tasks = dataclasses.replace(CFG.evaluate.tasks, segmentation=False)
    off = dataclasses.replace(CFG, evaluate=dataclasses.replace(CFG.evaluate, tasks=tasks))
    with pytest.raises(Skipped, match=r"switched off \(evaluate\.tasks\.segmentation\)"):
        evaluate_segmentation.main(run_of(off))
    with pytest.raises(PecoError, match="data/nowhere: no such folder"):
        evaluate_segmentation.main(run_of(with_segmentation(source="folder", path="data/nowhere")))
    assert not (workspace / "metrics").exists()


# --- real photos

PHOTOS, SIDE, LEAST = 8, 64, 16


@pytest.mark.data
def test_eight_photos_can_be_memorized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first photos of the COCO sample, cut to squares of 64 pixels; a class under 16 pixels (a cell of the decoder's grid) in a
    photo is ignored there, and the ids are renumbered without gaps."""
    folder = os.environ.get("PECO_TEST_DATA")
    if not folder or not (Path(folder) / "coco100_det_seg.tar").is_file():
        pytest.skip("PECO_TEST_DATA names no folder with coco100_det_seg.tar")
    data = tmp_path / "data/photos"
    adapt_coco(Path(folder) / "coco100_det_seg.tar", data)
    train_split, val = open_folder(data, 0)
    assert len(train_split) == len(val) == PHOTOS and len(train_split.classes) == 21
    vit = dataclasses.replace(CFG.pretrain.vit, patch_size=8, embed_dim=64, depth=2, num_heads=2)
    optim = dataclasses.replace(
        SEGMENTATION.optim, epochs=330, batch_size=4, lr=4e-3, warmup_epochs=15, weight_decay=0, layer_decay=1
    )
    values = {"image_size": SIDE, "channels": 64, "blocks": (1, 1, 2, 2), "scale": (1, 1), "optim": optim}
    run = run_of(with_segmentation(source="folder", path="data/photos", ignore=0, **values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PECO_WORK", raising=False)
    cfg = run.config.evaluate.segmentation
    model = build_segmenter(pretrained(save_backbone(tmp_path / "b", vit, SIDE)), len(train_split.classes), cfg, seed=0)
    transform = AnnotatedCrop(train_split, 0, SIDE, cfg.scale)
    task = SegmentationTask(model)
    dist = Dist()
    loader = index_loader(run, train_split, transform, cfg.optim, dist)
    work = run.work([Path(cfg.path)])
    train(task, loader, name="overfit", optim=cfg.optim, seed=run.config.seed, dist=dist, work=work).close()
    found = scores(evaluate_segmenter(model, val), val.classes)
    assert found["miou"] > 0.9, found


def adapt_coco(archive: Path, root: Path) -> None:
    """Photos and semantic masks in ADE20K's layout, the same ones in both splits."""
    photos, masks = "images/train2017", "semantic_segmentation/masks/train2017"
    with tarfile.open(archive) as tar:
        files = {m.name.removeprefix("./"): m for m in tar.getmembers()}
        names = sorted(name for name in files if name.startswith(masks) and name.endswith(".png"))[:PHOTOS]
        pairs = [(name.replace(masks, photos).replace(".png", ".jpg"), name) for name in names]
        images = [[Image.open(tar.extractfile(files[name])) for name in pair] for pair in pairs]  # type: ignore[arg-type]
        squares = [[square(picture) for picture in pair] for pair in images]
    for _, mask in squares:
        counts = np.bincount(mask.ravel(), minlength=256)
        mask[(counts < LEAST)[mask]] = 0
    ids = np.unique([0, *np.concatenate([mask.ravel() for _, mask in squares])])
    for split in ("training", "validation"):
        for i, (photo, mask) in enumerate(squares):
            for kind, pixels in (("images", photo), ("annotations", np.searchsorted(ids, mask).astype(np.uint8))):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / kind / split / f"{i}.png")


def square(picture: Image.Image) -> np.ndarray:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    if picture.format == "PNG":
        return np.array(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST, box=box))
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
