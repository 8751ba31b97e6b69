"""One small set of boxes and masks for tests, `TRUTH`, as COCO, COCO's panoptic annotations, YOLO and Pascal VOC."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from peco.annotations.sets import DetectionSet
from peco.boxes.open import open_splits
from peco.core import config

OPTIM = config.Optim(
    epochs=1, batch_size=2, lr=1e-3, min_lr=0, warmup_epochs=0, weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None,
    layer_decay=1, ema=None, accumulate=1, precision="fp32", compile=False,
)  # fmt: skip
DETECTION = config.Detection(
    source="scenes", path="data/scenes.yaml", scenes=config.AnnotatedScenes(train=4, val=2, size=64, objects=3), image_size=64,
    channels=16, drop_path=0, optim=OPTIM,
)  # fmt: skip
CLASSES = ("cat", "dog", "eel")
WIDTH, HEIGHT = 64, 32  # powers of two: shares of them are exact

# Box x0, y0, x1, y1 in whole pixels, class. The masks are rectangles, which are the same in every format.
Truth = list[tuple[tuple[int, int, int, int], int]]
TRUTH: dict[str, list[Truth]] = {
    "train": [[((2, 4, 20, 30), 0), ((16, 8, 64, 16), 2)], [], [((0, 0, 64, 32), 1), ((5, 6, 7, 9), 0)]],
    "val": [[((1, 1, 3, 4), 2)], []],
}


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)


def outline(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def filled(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed counts by their definition: runs down the columns, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    turns = np.flatnonzero(np.diff(flat)) if mask.any() else np.array([], dtype=int)
    return [int(n) for n in np.diff(np.concatenate([[0], turns, [mask.size]]))]


def coco_json(split: str, segmentation: str = "polygons") -> dict[str, Any]:
    images, annotations = [], []
    for i, objects in enumerate(TRUTH[split]):
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for box, label in objects:
            entry: dict[str, Any] = {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": 10 * label + 5}
            entry |= {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "iscrowd": 0}
            if segmentation == "polygons":
                entry["segmentation"] = [outline(box)]
            elif segmentation == "runs":
                entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs_of(filled(box))}
            annotations.append(entry)
    categories = [{"id": 10 * i + 5, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root: Path, segmentation: str = "polygons") -> Path:
    for split, objects in TRUTH.items():
        write_json(root / "annotations" / f"instances_{split}2017.json", coco_json(split, segmentation))
        for i in range(len(objects)):
            save_image(root / f"{split}2017" / f"{i}.png")
    return root


def spoil_coco(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    content = coco_json(split)
    change(content)
    write_json(root / f"annotations/instances_{split}2017.json", content)


def write_panoptic(root: Path) -> Path:
    """Later objects hide earlier ones in the masks; boxes stay whole."""
    for split, images in TRUTH.items():
        content = coco_json(split)
        content["categories"].append({"id": 99, "name": "sky", "isthing": 0})
        annotations = []
        for i, objects in enumerate(images):
            save_image(root / "images" / f"{split}2017" / f"{i}.png")
            numbers = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
            segments = [{"id": 7, "category_id": 99, "bbox": [0, 0, 1, 1], "iscrowd": 0}]
            for n, (box, label) in enumerate(objects):
                number = 70_000 * (n + 1)  # needs all three channels
                numbers[filled(box)] = number
                size = [box[2] - box[0], box[3] - box[1]]
                segments.append({"id": number, "category_id": 10 * label + 5, "bbox": [*box[:2], *size], "iscrowd": 0})
            rgb = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=2).astype(np.uint8)
            png = root / "annotations" / f"panoptic_{split}2017" / f"{i}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(png)
            annotations.append({"image_id": 100 + i, "file_name": f"{i}.png", "segments_info": segments})
        write_json(root / "annotations" / f"panoptic_{split}2017.json", content | {"annotations": annotations})
    return root


def write_yolo(root: Path, polygons: bool = True) -> Path:
    root.mkdir(parents=True)
    names = dict(zip((3, 7, 8), CLASSES, strict=True))
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": names}))
    for split, images in TRUTH.items():
        for i, objects in enumerate(images):
            save_image(root / "images" / split / f"{i}.png")
            labels = root / "labels" / split / f"{i}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            lines = []
            for (x0, y0, x1, y1), label in objects:
                if polygons:
                    values = [v / (WIDTH, HEIGHT)[k % 2] for k, v in enumerate(outline((x0, y0, x1, y1)))]
                else:
                    values = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
                lines.append(" ".join(map(str, [(3, 7, 8)[label], *values])))
            if lines:  # an image without objects has no file
                labels.write_text("\n".join(lines) + "\n")
    return root


def write_voc(root: Path) -> Path:
    for split, images in TRUTH.items():
        names = [f"{split}_{i}" for i in range(len(images))]
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n")
        for name, objects in zip(names, images, strict=True):
            save_image(root / "JPEGImages" / f"{name}.png")
            entries = "".join(voc_object(box, CLASSES[label]) for box, label in objects)
            path = root / "Annotations" / f"{name}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{entries}</annotation>"
            )
    return root


def voc_object(box: tuple[int, int, int, int], name: str, extra: str = "") -> str:
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True))
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def opened(source: str, root: Path) -> tuple[DetectionSet, DetectionSet]:
    return open_splits(replace(DETECTION, source=source, path=str(root)))  # type: ignore[arg-type]


def coco_in_one_folder(root: Path, of_train: str = "") -> None:
    write_coco(root)
    for split in TRUTH:
        content = coco_json(split)
        for entry in content["images"]:
            image = root / f"{split}2017" / entry["file_name"]
            if split == "train":
                entry["file_name"] = of_train + entry["file_name"]
            (root / "images").mkdir(exist_ok=True)
            image.rename(root / "images" / entry["file_name"])
        write_json(root / f"annotations/instances_{split}2017.json", content)
