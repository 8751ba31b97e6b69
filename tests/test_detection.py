"""Detection: average precision agrees with its definition, the detector learns, the stage gives the same bytes twice."""

import dataclasses
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from peco.annotations.loader import IndexLoader
from peco.annotations.sets import Objects
from peco.boxes.records import RecordedSet
from peco.boxes.yolo import open_yolo
from peco.core import artifacts, config, schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.evaluate.detection import coco_eval
from peco.evaluate.detection import model as detection
from peco.evaluate.detection import pictures as detection_pictures
from peco.evaluate.detection import stage as evaluate_detection
from peco.evaluate.detection.letterbox import DetectionView
from peco.evaluate.detection.model import Detections, SimplePyramid, build_detector, detect
from peco.evaluate.detection.task import DetectionTask, unpack_bits
from peco.mim.model import build_backbone
from peco.networks.backbones import at_random, pretrained
from peco.runtime import paths
from peco.runtime.stage import Skipped, StageRun
from peco.scenes import scenes
from peco.training.distributed import Dist
from peco.training.loop import train
from pipelines.workflow.compose import compose_params

OPTIM = config.Optim(
    epochs=1, batch_size=4, lr=1e-3, min_lr=0, warmup_epochs=0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=1.0,
    layer_decay=1, ema=None, accumulate=1, precision="fp32", compile=False,
)  # fmt: skip
DETECTION = config.Detection(
    source="scenes", path="data/scenes.yaml", scenes=config.AnnotatedScenes(train=8, val=3, size=64, objects=3), image_size=64,
    channels=16, drop_path=0, optim=OPTIM,
)  # fmt: skip


def save_backbone(folder: Path, width: int = 32, depth: int = 2, patch: int = 8) -> Path:
    torch.manual_seed(0)
    vit = config.Vit("beit_base_patch16_224", patch, embed_dim=width, depth=depth, num_heads=2, mlp_ratio=2)
    model, arch, model_args = build_backbone(vit, 4 * patch, 0.1, 0.0)
    artifacts.save_timm(folder, model, arch=arch, model_args=model_args, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone") / "b")


# --- average precision, against a second implementation of COCO's definition

IOUS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)
Overlap = Callable[[Objects, int, Detections, int], float]


def box_overlap(objects: Objects, g: int, found: Detections, d: int) -> float:
    """IoU; for a crowd, the share of the detection inside it."""
    object_4, found_4 = objects.boxes[g].astype(float), found.boxes[d].astype(float)
    sides = np.minimum(object_4[2:], found_4[2:]) - np.maximum(object_4[:2], found_4[:2])
    inside = float(np.prod(sides.clip(0)))
    found_area, object_area = (float(np.prod(box[2:] - box[:2])) for box in (found_4, object_4))
    return inside / (found_area if objects.crowd[g] else found_area + object_area - inside)


def mask_overlap(objects: Objects, g: int, found: Detections, d: int) -> float:
    object_HW, found_HW = objects.masks[g], found.masks[d]  # type: ignore[index]
    inside = float((object_HW & found_HW).sum())
    whole = float(found_HW.sum() if objects.crowd[g] else (object_HW | found_HW).sum())
    return inside / whole if whole else 0.0


def judge(objects: Objects, found: Detections, label: int, iou: float, overlap: Overlap) -> list[tuple[float, bool]]:
    """Score of each counted detection of a class in one image, and True if it is right."""
    order = [d for d in np.argsort(-found.scores, kind="stable") if found.labels[d] == label][:100]
    free = [g for g in range(len(objects.labels)) if objects.labels[g] == label and not objects.crowd[g]]
    crowds = [g for g in range(len(objects.labels)) if objects.labels[g] == label and objects.crowd[g]]
    judged = []
    for d in order:
        overlaps = {g: overlap(objects, g, found, d) for g in free}
        best = max(overlaps, key=lambda g: overlaps[g], default=None)
        if best is not None and overlaps[best] >= iou:
            free.remove(best)
            judged.append((float(found.scores[d]), True))
        elif not any(overlap(objects, g, found, d) >= iou for g in crowds):
            judged.append((float(found.scores[d]), False))
    return judged


def precisions(truth: list[Objects], found: list[Detections], classes: int, overlap: Overlap) -> NDArray[np.float64]:
    """Precision by class, IoU and recall (K, T, R); NaN for a class without objects."""
    result = np.full((classes, len(IOUS), len(RECALLS)), np.nan)
    for label in range(classes):
        total = sum(int(((o.labels == label) & ~o.crowd).sum()) for o in truth)
        for t, iou in enumerate(IOUS):
            if not total:
                continue
            judged = [j for o, d in zip(truth, found, strict=True) for j in judge(o, d, label, iou, overlap)]
            right = np.array([good for _, good in sorted(judged, key=lambda j: -j[0])], dtype=float)
            hits = np.cumsum(right)
            precision, recall = hits / np.arange(1, len(right) + 1), hits / total
            result[label, t] = [precision[recall >= r].max(initial=0.0) for r in RECALLS]
    return result


def random_case(seed: int, images: int = 5, side: int = 24) -> tuple[list[Objects], list[Detections]]:
    """Objects of three of four classes, crowds among them, and detections near them and elsewhere; some images without either."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> NDArray[np.float32]:
        corners = np.sort(rng.random((count, 2, 2)), axis=1) * (side - 4)
        return (corners + np.array([[0, 0], [4, 4]])).reshape(count, 4).astype(np.float32)

    def masks(boxes_N4: NDArray[np.float32]) -> NDArray[np.bool_]:
        rows, columns = np.mgrid[:side, :side]
        inside = [(columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1) for x0, y0, x1, y1 in boxes_N4]
        return np.array(inside, dtype=bool).reshape(-1, side, side) & (rng.random((len(boxes_N4), side, side)) < 0.97)

    truth, found = [], []
    for i in range(images):
        count = int(rng.integers(1, 7)) if i else 0
        object_boxes, labels = boxes(count), rng.integers(0, 3, count)
        truth.append(Objects(object_boxes, labels, masks(object_boxes), rng.random(count) < 0.25))
        near = np.repeat(object_boxes, 2, axis=0) + rng.normal(0, 0.8, (2 * count, 4))
        found_boxes = np.concatenate([near.clip(0, side), boxes(int(rng.integers(1, 9)) if i != 1 else 0)]).astype(
            np.float32
        )
        found_boxes = found_boxes[(found_boxes[:, 2:] > found_boxes[:, :2]).all(axis=1)]
        mostly = np.concatenate([np.repeat(labels, 2), rng.integers(0, 4, len(found_boxes))])[: len(found_boxes)]
        found.append(
            Detections(found_boxes, mostly, rng.random(len(found_boxes)).astype(np.float32), masks(found_boxes))
        )
    return truth, found


def scored(truth: list[Objects], found: list[Detections], classes: int, masks: bool = True) -> dict[str, Any]:
    expected = [entry for i, objects in enumerate(truth) for entry in coco_eval.truth_entries(i, objects)]
    detected = [entry for i, detections in enumerate(found) for entry in coco_eval.detection_entries(i, detections)]
    detected = json.loads(json.dumps(detected))  # as they are sent between processes
    names = [f"class {k}" for k in range(classes)]
    return coco_eval.average_precision(names, len(truth), expected, detected, masks=masks)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_agrees_with_its_definition(seed: int) -> None:
    truth, found = random_case(seed)
    scores = scored(truth, found, classes=4)
    for kind, overlap in (("box", box_overlap), ("mask", mask_overlap)):
        precision_KTR = precisions(truth, found, 4, overlap)
        assert scores[f"{kind}_ap"] == pytest.approx(np.nanmean(precision_KTR), abs=1e-6)
        assert scores[f"{kind}_ap50"] == pytest.approx(np.nanmean(precision_KTR[:, 0]), abs=1e-6)
        assert scores[f"{kind}_ap75"] == pytest.approx(np.nanmean(precision_KTR[:, 5]), abs=1e-6)
        per_class = {f"class {k}": p.mean() for k, p in enumerate(precision_KTR) if not np.isnan(p).any()}
        assert scores[f"{kind}_ap_per_class"] == pytest.approx(per_class, abs=1e-6)
        assert 0.05 < scores[f"{kind}_ap"] < 0.95  # neither trivial nor hopeless
        assert "class 3" not in per_class  # no object is one


def test_only_the_hundred_highest_scores_of_an_image_count() -> None:
    box = np.array([[2, 2, 12, 12]], dtype=np.float32)
    wrong = np.repeat(box + 12, 100, axis=0)
    found = Detections(
        np.concatenate([wrong, box]), np.zeros(101, dtype=np.int64), np.linspace(1, 0.5, 101, dtype=np.float32), None
    )
    truth = Objects(box, np.zeros(1, dtype=np.int64), None, np.zeros(1, dtype=bool))
    assert scored([truth], [found], 1, masks=False)["box_ap"] == 0
    last = dataclasses.replace(found, scores=np.linspace(0.5, 1, 101, dtype=np.float32))
    assert scored([truth], [last], 1, masks=False)["box_ap"] == pytest.approx(1)


def test_scores_without_objects_are_left_out_and_pycocotools_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    truth, found = random_case(0)
    nothing = [dataclasses.replace(o, crowd=np.ones_like(o.crowd)) for o in truth]
    assert scored(nothing, found, 4) == {"box_ap_per_class": {}, "mask_ap_per_class": {}}
    blind = [Detections(d.boxes[:0], d.labels[:0], d.scores[:0], None) for d in found]
    assert scored(truth, blind, 4, masks=False)["box_ap"] == 0.0
    assert capfd.readouterr() == ("", "")


# --- model


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_the_pyramid_has_strides_4_to_32_for_any_patch(patch: int, tmp_path: Path) -> None:
    model = artifacts.load_timm(save_backbone(tmp_path / "b", patch=patch), img_size=64, num_classes=0)
    maps = SimplePyramid(model, 16)(torch.rand(2, 3, 64, 64))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "0": (2, 16, 16, 16), "1": (2, 16, 8, 8), "2": (2, 16, 4, 4), "3": (2, 16, 2, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [3, 6, 9, 12]), (4, [1, 2, 3, 4]), (2, [1, 1, 2, 2]), (24, [6, 12, 18, 24])]
)
def test_maps_come_from_evenly_spaced_blocks_up_to_the_last(depth: int, blocks: list[int]) -> None:
    """A change in a block changes the maps of its level and of the coarser ones, and no finer map."""
    torch.manual_seed(0)
    vit = config.Vit("beit_base_patch16_224", patch_size=8, embed_dim=16, depth=depth, num_heads=2, mlp_ratio=1)
    model, _, _ = build_backbone(vit, 32, 0.1, 0.0)
    pyramid, x = SimplePyramid(model.eval(), 8), torch.rand(1, 3, 32, 32)
    for block in blocks:
        before = pyramid(x)
        with torch.no_grad():
            model.blocks[block - 1].gamma_1.add_(1)
        changed = [not torch.equal(before[name], after) for name, after in pyramid(x).items()]
        assert changed == [other >= block for other in blocks], block


def test_other_patch_sizes_are_refused(tmp_path: Path) -> None:
    model = artifacts.load_timm(save_backbone(tmp_path / "b", patch=14))
    with pytest.raises(
        PecoError, match=r"patches of 14 pixels are not allowed for detection; expected a power of two, such as 16"
    ):
        SimplePyramid(model, 16)


def test_anchors_follow_the_size_of_the_image() -> None:
    for side in (64, 224, 1024):
        sizes = [size for level in detection.anchor_sizes(side) for size in level]
        assert sizes == sorted(sizes) and len(sizes) == 8
        assert sizes[0] == max(8, side / 32) and sizes[-1] == 0.75 * side


def test_pretrained_and_random_detectors_differ_in_the_backbone_only(backbone: Path) -> None:
    trained, random = (
        build_detector(make(backbone, 3), 5, DETECTION, masks=True, seed=3).state_dict()
        for make in (pretrained, at_random)
    )
    different = {name for name, value in trained.items() if not torch.equal(value, random[name])}
    assert different and all(name.startswith("backbone.backbone.") for name in different)
    stored = artifacts.load_timm(backbone, img_size=64, num_classes=0).state_dict()
    assert all(torch.equal(trained[f"backbone.backbone.{name}"], value) for name, value in stored.items())
    other = build_detector(pretrained(backbone, 4), 5, DETECTION, masks=True, seed=4).state_dict()
    assert not torch.equal(other["roi_heads.box_head.fc6.weight"], trained["roi_heads.box_head.fc6.weight"])


def test_images_are_normalized_for_the_backbone(backbone: Path) -> None:
    model: Any = build_detector(pretrained(backbone), 5, DETECTION, masks=False, seed=0)
    image = torch.rand(3, 64, 64)
    images, _ = model.transform([image])
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(images.tensors, ((image - mean) / std)[None])
    assert images.image_sizes == [(64, 64)]


def scene_batch(count: int, folder: Path, side: int = 64) -> tuple[Any, dict[str, torch.Tensor]]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scenes.yaml"
    path.write_text(f"generator: scenes\nversion: {scenes.VERSION}\nseed: 0\n")
    data, _ = evaluate_detection.open_splits(dataclasses.replace(DETECTION, path=str(path)))
    loader = IndexLoader(len(data), DetectionView(data, 0, side, (0.8, 1.25)), batch_size=count, seed=0)
    return data, next(loader.batches(0, 1))


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("objects", [True, False])
def test_every_parameter_takes_part_in_every_loss(backbone: Path, masks: bool, objects: bool, tmp_path: Path) -> None:
    _, batch = scene_batch(2, tmp_path)
    if not masks:
        del batch["masks"]
    if not objects:  # as after a crop
        batch["labels"][:] = -1
    task = DetectionTask(build_detector(pretrained(backbone), 10, DETECTION, masks=masks, seed=0)).train()
    loss, terms = task(batch, 0, 1)
    loss.backward()
    assert torch.isfinite(loss) and loss.item() == pytest.approx(sum(float(v) for v in terms.values()), rel=1e-5)
    assert ("loss_mask" in terms) == masks
    groups = task.param_groups(dataclasses.replace(DETECTION.optim, layer_decay=0.5))
    scale = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    of = {name: scale[id(p)] for name, p in task.named_parameters()}
    assert {value for name, value in of.items() if ".backbone.backbone." not in name} == {1.0}
    last = max(int(name.split(".blocks.")[1].split(".")[0]) for name in of if ".blocks." in name)
    assert of[f"model.backbone.backbone.blocks.{last}.mlp.fc1.weight"] == 0.5
    assert of["model.backbone.backbone.patch_embed.proj.weight"] == 0.5 ** (last + 2)
    assert [name for name, p in task.named_parameters() if p.grad is None] == []
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(task(batch, 0, 1)[0])


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 5))
def test_masks_are_packed_in_bits(seed: int, width: int, count: int) -> None:
    masks = np.random.default_rng(seed).random((count, 3, width)) < 0.5
    bits = torch.from_numpy(np.packbits(masks, axis=-1))
    unpacked = unpack_bits(bits, width)
    assert unpacked.dtype == torch.uint8 and (unpacked.numpy() == masks).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(64, 64), (40, 90)]))
def test_pasting_inverts_the_mask_heads_training_targets(seed: int, size: tuple[int, int]) -> None:
    height, width = size
    rng = np.random.default_rng(seed)
    x0, y0 = rng.random(2) * [width / 2, height / 2]
    x1, y1 = x0 + 10 + rng.random() * (width / 2 - 12), y0 + 10 + rng.random() * (height / 2 - 12)
    rows, columns = np.mgrid[:height, :width] + 0.5
    ellipse = ((columns - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((rows - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25
    box = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)
    target = project_masks_on_boxes(torch.from_numpy(ellipse)[None].float(), box, torch.zeros(1, dtype=torch.int64), 28)
    unsure = 0.1 + 0.8 * target
    pasted = detection.paste(unsure, box, height, width)[0].numpy()
    assert (pasted & ellipse).sum() / (pasted | ellipse).sum() > 0.9  # torchvision's own: under 0.8 at the worst
    whole = torch.ones_like(target) - 0.1
    rectangle = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
    assert (detection.paste(whole, box, height, width)[0].numpy() == rectangle).all()


def test_detections_are_in_pixels_of_the_image(backbone: Path) -> None:
    model = build_detector(pretrained(backbone), 5, DETECTION, masks=True, seed=0)
    images = [Image.new("RGB", (120, 50), "red"), Image.new("RGB", (20, 33), "blue")]
    for image, found in zip(images, detect(model, images, 64), strict=True):
        count = len(found.labels)
        assert count and found.boxes.shape == (count, 4) and found.boxes.dtype == np.float32
        assert (found.boxes[:, :2] >= 0).all() and (found.boxes[:, 2:] <= image.size).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert found.boxes.max() > 0.8 * max(image.size)  # scaled back
        assert found.masks is not None and found.masks.shape == (count, image.height, image.width)
        assert set(found.labels.tolist()) <= set(range(5)) and (np.diff(found.scores) <= 0).all()


def test_pictures_are_deterministic_and_of_a_readable_size() -> None:
    truth, found = random_case(1)
    image = Image.new("RGB", (24, 24), "white")
    names = ["ant", "bee", "cat", "dog"]
    for objects in (truth[2], found[2], truth[0]):
        first, second = (detection_pictures.draw(image, objects, names) for _ in range(2))
        assert first.size == (264, 264) and first.tobytes() == second.tobytes()
    plain = detection_pictures.draw(image, truth[0], names)
    assert detection_pictures.draw(image, found[2], names, limit=0).tobytes() == plain.tobytes()
    assert detection_pictures.draw(Image.new("RGB", (1000, 100)), truth[0], names).size == (480, 48)


# --- stage


def stage_run(params: config.Config) -> StageRun:
    return StageRun("evaluate@detection", schema.restrict(params, evaluate_detection.PARAMS))


@pytest.fixture
def params(tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> config.Config:
    """A repository with scenes and a backbone, as current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PECO_WORK", str(tmp_path / "work"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scenes.yaml").write_text(f"generator: scenes\nversion: {scenes.VERSION}\nseed: 0\n")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / paths.BACKBONE).symlink_to(backbone)
    whole = parse_params(compose_params("tiny", []))
    return dataclasses.replace(whole, evaluate=dataclasses.replace(whole.evaluate, detection=DETECTION))


def results(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "metrics").rglob("*")) if p.is_file()}


def test_the_stage_scores_both_starts_and_gives_the_same_bytes_twice(
    params: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_detection.main(stage_run(params))
    first = results(tmp_path)
    scores = json.loads(first["metrics/evaluate/detection.json"])
    details = json.loads(first["metrics/pictures/detection/details.json"])
    assert (scores["train_images"], scores["images"], scores["masks"]) == (8, 3, True)
    for kind in ("box", "mask"):
        for name in ("ap", "ap50", "ap75"):
            assert 0 <= scores[f"{kind}_{name}"] <= 1 and 0 <= scores[f"random_{kind}_{name}"] <= 1
        assert set(details[f"{kind}_ap_per_class"]) <= set(scenes.CLASSES)
    pictures = {
        f"metrics/pictures/detection/{n:02d}-{kind}.png" for n in range(3) for kind in ("truth", "pretrained", "random")
    }
    assert set(first) == pictures | {"metrics/evaluate/detection.json", "metrics/pictures/detection/details.json"}
    monkeypatch.setenv("PECO_WORK", str(tmp_path / "other"))  # no checkpoint to resume from
    evaluate_detection.main(stage_run(params))
    assert results(tmp_path) == first


def test_a_task_that_is_switched_off_is_skipped(params: config.Config) -> None:
    tasks = dataclasses.replace(params.evaluate.tasks, detection=False)
    off = dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, tasks=tasks))
    with pytest.raises(Skipped, match=r"evaluate\.tasks"):
        evaluate_detection.main(stage_run(off))


@dataclasses.dataclass(frozen=True)
class Second(Dist):
    """The second of two processes; the first one sends `first`, filled up with zeros."""

    first: bytes = b""

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.int64:
            return torch.cat([torch.tensor([len(self.first)]), tensor])
        assert len(tensor) == max(len(self.first), len(tensor))
        sent = torch.frombuffer(bytearray(self.first.ljust(len(tensor), b"\0")), dtype=torch.uint8)
        return torch.cat([sent, tensor])


@pytest.mark.parametrize("first", [[], [{"image_id": 0, "score": 0.1}] * 3])
def test_entries_of_all_processes_are_gathered_in_rank_order(first: list[dict[str, Any]]) -> None:
    second = [{"image_id": 1, "score": 1 / 3}]
    dist = Second(rank=1, world=2, first=json.dumps(first).encode())
    assert evaluate_detection.gather_entries(second, dist) == first + second
    assert evaluate_detection.gather_entries(second, Dist()) == second


# --- real photos


def eight_photos(root: Path, tmp_path: Path, polygons: bool) -> RecordedSet:
    """The first photos with at most three objects, each over a fifth of the longer side in width and height."""
    folder = root / ("instance_segmentation" if polygons else "object_detection")
    (folder / "images").symlink_to(root / "images")
    if polygons:
        panoptic = json.loads((root / "panoptic_segmentation/annotations/panoptic_val2017.json").read_text())
        names = {c["id"]: c["name"] for c in panoptic["categories"] if c["isthing"]}
        content = {"train": "images/train2017", "val": "images/val2017", "names": names}
        (folder / "data.yaml").write_text(yaml.safe_dump(content))
    sets = open_yolo(folder)
    records = [
        r
        for data in sets
        for r in data.records
        if 1 <= len(r.labels) <= 3 and ((r.boxes[:, 2:] - r.boxes[:, :2]) >= 0.2 * max(r.photo.size)).all()
    ]
    return RecordedSet("eight photos", sets[0].classes, polygons, records[:8], sets[0].skipped)


@pytest.mark.data
@pytest.mark.parametrize("polygons", [False, True], ids=["boxes", "polygons"])
def test_eight_photos_can_be_memorized(polygons: bool, tmp_path: Path) -> None:
    source = Path(os.environ.get("PECO_TEST_DATA", "")) / "coco100_det_seg.tar"
    if not source.is_file():
        pytest.skip("PECO_TEST_DATA names no folder with coco100_det_seg.tar")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "photos", filter="data")
    data = eight_photos(tmp_path / "photos", tmp_path, polygons)
    assert len(data) == 8
    optim = dataclasses.replace(OPTIM, epochs=240, batch_size=8, lr=3e-3, warmup_epochs=12)
    cfg = dataclasses.replace(DETECTION, channels=32, optim=optim)
    model = build_detector(
        pretrained(save_backbone(tmp_path / "b", width=64)), len(data.classes), cfg, masks=polygons, seed=0
    )
    dist, transform = Dist(), DetectionView(data, 0, cfg.image_size, (1.0, 1.0))
    train(
        DetectionTask(model),
        IndexLoader(len(data), transform, batch_size=8, seed=0),
        name="detection",
        optim=optim,
        seed=0,
        dist=dist,
        work=tmp_path,
    ).close()
    scores = evaluate_detection.evaluate_detector(model, data, cfg.image_size, dist)
    assert scores["box_ap"] > 0.9
    assert not polygons or scores["mask_ap50"] > 0.9
