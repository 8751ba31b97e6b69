"""Valid inputs, small: what the mutations start from. Here: parameters and images. Paths are relative to the folder of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import yaml
from PIL import Image

from peco.core import config
from peco.core.params import parse_params
from pipelines.workflow.compose import compose_params, render

from .archives import pack_tar, pack_zip
from .files import Files

SET = "data/set"
SIDE = 16
DESCRIPTOR = (Path(__file__).parents[2] / "data/scenes.yaml").read_bytes()


@cache
def parameters(*overrides: str) -> str:
    """The text of params.yaml: `smoke` with every evaluation off, and these settings."""
    off = [f"evaluate.tasks.{name}=false" for name in compose_params("smoke", [])["evaluate"]["tasks"]]
    return render(compose_params("smoke", [*off, *overrides]))


@cache
def smoke() -> config.Config:
    return parse_params(compose_params("smoke", []))


@cache
def picture(number: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A small image of colours that differ by number."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def text(*lines: object) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def as_yaml(value: object) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


def below(folder: str, files: Mapping[str, bytes]) -> Files:
    return {f"{folder}/{name}": data for name, data in files.items()}


def _table(rows: Sequence[tuple[str, ...]], delimiter: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


# --- images


def images(rng: Random) -> Files:
    """A folder of images in one of the layouts."""
    return below(SET, rng.choice(_LAYOUTS)())


def _class_folders() -> Files:
    kinds = (
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("GIF", "gif"),
        ("TIFF", "tif"),
        ("BMP", "bmp"),
        ("WEBP", "webp"),
        ("AVIF", "avif"),
        ("TGA", "tga"),
    )
    return {f"{'cat' if i % 2 else 'dog'}/{i}.{kinds[i][1]}": picture(i, kinds[i][0]) for i in range(8)}


def split_folders() -> Files:
    return {f"{'val' if i % 4 == 0 else 'train'}/{'cat' if i % 2 else 'dog'}/{i}.png": picture(i) for i in range(12)}


def _tiny_imagenet() -> Files:
    train = {f"train/n0000000{i % 2}/images/{i}.jpg": picture(i, "JPEG") for i in range(6)}
    val = {f"val/images/val_{i}.jpg": picture(10 + i, "JPEG") for i in range(3)}
    return {
        **train,
        **val,
        "val/val_annotations.txt": text(*(f"val_{i}.jpg\tn0000000{i % 2}\t0\t0\t9\t9" for i in range(3))),
    }


def _kaggle() -> Files:
    train = {f"ILSVRC/Data/CLS-LOC/train/n0000000{i % 2}/{i}.jpg": picture(i, "JPEG") for i in range(6)}
    val = {f"ILSVRC/Data/CLS-LOC/val/val_{i}.jpg": picture(10 + i, "JPEG") for i in range(3)}
    rows = [("ImageId", "PredictionString"), *((f"val_{i}", f"n0000000{i % 2} 1 1 9 9") for i in range(3))]
    return {**train, **val, "LOC_val_solution.csv": _table(rows, ",")}


def _labels_csv(delimiter: str = ",", name: str = "labels.csv") -> Files:
    rows = [
        ("file", "label", "split"),
        *((f"{i}.png", "cat" if i % 2 else "dog", "val" if i % 3 == 0 else "train") for i in range(8)),
    ]
    return {**{f"images/{i}.png": picture(i) for i in range(8)}, name: _table(rows, delimiter)}


def _metadata() -> Files:
    lines = [json.dumps({"file_name": f"{i}.png", "label": i % 3, "text": "a"}) for i in range(6)]
    return {**{f"train/{i}.png": picture(i) for i in range(6)}, "train/metadata.jsonl": text(*lines)}


def _lists() -> Files:
    files = {f"images/{'cat' if i % 2 else 'dog'}/{i}.jpg": picture(i, "JPEG") for i in range(8)}
    names = [name.removeprefix("images/").removesuffix(".jpg") for name in sorted(files)]
    return {
        **files,
        "meta/train.txt": text(*names[:6]),
        "meta/test.txt": text(*names[6:]),
        "meta/classes.txt": text("cat", "dog"),
    }


_LAYOUTS: tuple[Callable[[], Files], ...] = (
    _class_folders,
    split_folders,
    _tiny_imagenet,
    _kaggle,
    _labels_csv,
    _metadata,
    _lists,
)


def tables(rng: Random) -> Files:
    """Images with a table of labels."""
    return below(
        SET,
        rng.choice([_labels_csv, lambda: _labels_csv("\t", "train.tsv"), _metadata, _kaggle, _tiny_imagenet, _lists])(),
    )


def image_tars(rng: Random) -> Files:
    """A tar of images."""
    return {f"{SET}.tar": pack_tar(rng.choice(_LAYOUTS)())}


def image_zips(rng: Random) -> Files:
    """A zip of images."""
    return {f"{SET}.zip": pack_zip(rng.choice(_LAYOUTS)())}


def parquet(rng: Random) -> Files:
    """Tables of Hugging Face."""
    return {f"{SET}/{split}-00000.parquet": _parquet(number) for number, split in enumerate(("train", "validation"))}


@cache
def _parquet(number: int) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = range(10 * number, 10 * number + 6)
    columns = {"image": [{"bytes": picture(i), "path": f"{i}.png"} for i in rows], "label": [i % 2 for i in rows]}
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    out = pyarrow.BufferOutputStream()
    table = pyarrow.table(columns).replace_schema_metadata({b"huggingface": as_json(features)})
    pyarrow.parquet.write_table(table, out, row_group_size=3)
    return bytes(out.getvalue())


def webdataset(rng: Random) -> Files:
    """A folder of WebDataset tars, perhaps with names of classes or a list of the tars."""
    ending = rng.choice(["cls", "txt", "json", "cls.txt", "index"])
    names = rng.choice(
        [("train-0.tar", "val-0.tar"), ("0.tar", "1.tar"), ("train/0.tar", "valid/0.tar"), ("cat.tar", "dog.tar")]
    )
    files: Files = {}
    for number, name in enumerate(names):
        members: Files = {}
        for i in range(4):
            members[f"{i:04d}.jpg"] = picture(10 * number + i, "JPEG")
            members[f"{i:04d}.{ending}"] = (
                as_json({"label": i % 2, "id": i}) if ending == "json" else str(i % 2).encode()
            )
        files[f"{SET}/{name}"] = pack_tar(members)
    extra = rng.randrange(4)
    if extra == 0:
        files[f"{SET}/classes.txt"] = text("cat", "dog")
    return files


def tar_lists(rng: Random) -> Files:
    """A text or JSON that lists WebDataset tars."""
    tars = {f"data/{name}": data for name, data in webdataset(Random(0)).items()}
    names = [name.removeprefix("data/") for name in tars if name.endswith(".tar")]
    more = [*names, names[0].replace("cat", "{cat,dog}")]
    urls = [{"url": name} for name in names]
    listed = as_json(rng.choice([names, more, {"shards": names, "classes": ["cat", "dog"]}, {"shardlist": urls}]))
    lists = {f"{SET}.json": listed} if rng.random() < 0.5 else {f"{SET}.txt": text("# tars", *names)}
    return {**tars, **lists}


def scenes(rng: Random) -> Files:
    """The descriptor of the procedural set."""
    return {f"{SET}.yaml": DESCRIPTOR}


def params(rng: Random) -> Files:
    """The parameters."""
    return {"params.yaml": parameters().encode(), "data/scenes.yaml": DESCRIPTOR}
