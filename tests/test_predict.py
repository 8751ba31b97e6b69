"""`peco predict`: right results in each format, all kinds of inputs, and runs that were stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from peco import cli
from peco.core import artifacts
from peco.data import views
from peco.data.images import Picture
from peco.evaluate.detection import model as detection
from peco.evaluate.detection import storage as detectors
from peco.evaluate.segmentation import model as segmentation
from peco.evaluate.segmentation import storage as segmenters
from peco.runtime import model_card
from peco.use import coco

COUNT = 7
LARGE = {"input_size": [3, 40, 40]}  # of models for 32 pixels


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_models(root)
    changed = [
        ("classifier", "other", {}),
        ("segmenter", "damaged", {"peco": {"channels": 0}}),
        ("classifier", "renamed", {"peco": {"classes": ["a", "b"]}}),
        ("detector", "odd_patches", {"model_args": {"patch_size": 6}}),
        *((kind, f"large_{kind}", {"pretrained_cfg": LARGE}) for kind in ("classifier", "segmenter", "detector")),
    ]
    for source, name, groups in changed:
        shutil.copytree(root / source, root / name)
        path = root / name / artifacts.CONFIG
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {group: config[group] | values for group, values in groups.items()}))
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with seven images in `photos`, two of them in a folder below."""
    monkeypatch.chdir(tmp_path)
    for path in tiny_models.save_images(Path("photos"), COUNT)[-2:]:
        (path.parent / "sub").mkdir(exist_ok=True)
        path.rename(path.parent / "sub" / path.name)


def predict(model: Path | str, *arguments: str) -> None:
    assert cli.main(["predict", str(model), *arguments]) == 0


def records(folder: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


def rgb(name: str) -> Image.Image:
    return Image.open(name).convert("RGB")


def test_classes_and_scores_are_those_of_plain_timm(models: Path) -> None:
    predict(models / "classifier", "photos", "-o", "out", "--top-k", "2", "--batch-size", "3", "--csv")
    model = timm.create_model(f"local-dir:{models / 'classifier'}", pretrained=True).eval()
    assert tuple(model.pretrained_cfg["label_names"]) == tiny_models.CLASSES
    found = records()
    assert [record["image"] for record in found] == [
        "photos/0.png", "photos/1.jpg", "photos/2.png", "photos/3.jpg", "photos/4.png",
        "photos/sub/5.jpg", "photos/sub/6.png",
    ]  # fmt: skip
    for record in found:
        image = Picture(np.asarray(rgb(record["image"])))
        pixels_HWC = torch.tensor(views.apply(image, views.center(*image.size), model.pretrained_cfg["input_size"][1]))
        with torch.no_grad():
            probability_K = model(2 * pixels_HWC.permute(2, 0, 1)[None].float() / 255 - 1).softmax(1)[0]
        names = [tiny_models.CLASSES[k] for k in probability_K.argsort(descending=True)]
        assert [entry["class"] for entry in record["classes"]] == names[:2]
        scores = [entry["score"] for entry in record["classes"]]
        np.testing.assert_allclose(scores, probability_K.sort(descending=True).values[:2], atol=1e-5)
    with open("out/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({record["classes"][0]["class"] for record in found}) > 1
    assert rows[1] == {"image": "photos/0.png", "rank": "2", **{k: str(v) for k, v in found[0]["classes"][1].items()}}


def test_a_segmenter_writes_the_class_index_of_each_pixel(models: Path) -> None:
    predict(models / "segmenter", "photos", "-o", "out", "--csv")
    model, classes = segmenters.load(models / "segmenter")
    for record in records():
        image = rgb(record["image"])
        mask = np.asarray(Image.open(Path("out") / record["mask"]))
        assert (mask == segmentation.predict(model, [image])[0]).all()
        assert mask.shape == (image.height, image.width)
        for name, share in record["shares"].items():
            assert share == pytest.approx((mask == classes.index(name)).mean(), abs=1e-6)
    assert json.loads(Path("out/classes.json").read_text()) == list(classes)


def test_the_best_of_many_classes_is_found_in_parts_of_them() -> None:
    logits_KHW = torch.randn(50, 9, 7, generator=torch.Generator().manual_seed(0))
    large_KHW = torch.nn.functional.interpolate(logits_KHW[None], size=(31, 20), mode="bilinear")[0]
    assert (segmentation._best(logits_KHW, 31, 20) == large_KHW.argmax(0).numpy()).all()
    assert (segmentation._best(logits_KHW, 9, 7) == logits_KHW.argmax(0).numpy()).all()


def test_a_detector_writes_results_that_pycocotools_reads(models: Path) -> None:
    predict(models / "detector", "photos", "-o", "out", "--min-score", "0.2", "--csv")
    truth = COCO("out/coco_images.json")
    truth.dataset["annotations"] = []
    truth.createIndex()
    found = truth.loadRes("out/coco_results.json")
    detector = detectors.load(models / "detector")
    total = 0
    for entry in truth.dataset["images"]:
        image = rgb(entry["file_name"])
        assert (entry["width"], entry["height"]) == image.size
        (expected,) = detection.detect(detector.model, [image], detector.size)
        kept = int((expected.scores >= 0.2).sum())
        results = found.loadAnns(found.getAnnIds(imgIds=[entry["id"]]))
        assert len(results) == kept
        total += kept
        for n, result in enumerate(results):
            x0, y0, x1, y1 = expected.boxes[n]
            np.testing.assert_allclose(result["bbox"], [x0, y0, x1 - x0, y1 - y0], atol=0.02)
            assert result["category_id"] == expected.labels[n] + 1
            assert expected.masks is not None and (found.annToMask(result) == expected.masks[n]).all()
    assert total > 0
    assert [c["name"] for c in truth.dataset["categories"]] == list(tiny_models.CLASSES)
    with open("out/predictions.csv") as file:
        assert len(file.readlines()) == total + 1


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
@settings(deadline=None)
def test_masks_are_encoded_as_by_pycocotools(mask_HW: np.ndarray) -> None:
    expected = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    assert coco.encode(mask_HW) == {"size": list(expected["size"]), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_pictures_show_the_prediction_on_each_image(models: Path, kind: str) -> None:
    predict(models / kind, "photos/0.png", "photos/sub", "-o", "out", "--pictures")
    pictures = sorted(path.relative_to("out/pictures").as_posix() for path in Path("out/pictures").rglob("*.png"))
    assert pictures == ["photos/0.png.png", "photos/sub/5.jpg.png", "photos/sub/6.png.png"]
    picture = Image.open("out/pictures/photos/0.png.png")
    assert picture.mode == "RGB" and max(picture.size) >= 240  # 60 pixels, enlarged by four


def pack(kind: str) -> None:
    """Pack `photos` as `photos.KIND`."""
    if kind == "zip":
        with zipfile.ZipFile("photos.zip", "w") as zipped:
            for path in sorted(Path("photos").rglob("*.*g")):
                zipped.write(path, path.relative_to("photos"))
    else:
        with tarfile.open(f"photos.{kind}", "w:gz" if kind.endswith("gz") else "w") as tar:
            tar.add("photos", arcname=".")


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["photos"], COUNT),
        (["photos/sub", "photos", "photos/0.png"], COUNT),
        (["photos/*.jpg"], 2),
        (["photos/**/*.jpg"], 3),
        (["photos.tar"], COUNT),
        (["photos.tar.gz"], COUNT),
        (["photos.zip"], COUNT),
        (["shards"], COUNT),
        (["photos.tar", "photos"], 2 * COUNT),
    ],
)
def test_each_image_that_the_arguments_name_is_predicted_once(models: Path, arguments: list[str], count: int) -> None:
    for kind in ("tar", "tar.gz", "zip"):
        pack(kind)
    Path("shards").mkdir()
    shutil.copy("photos.tar", "shards/train-00000.tar")  # as WebDataset names them
    predict(models / "classifier", *arguments, "-o", "out", "--top-k", "1")
    names = [record["image"] for record in records()]
    assert len(names) == len(set(names)) == count
    scores = {Path(record["image"]).name: record["classes"][0]["score"] for record in records()}
    predict(models / "classifier", "photos", "-o", "plain", "--top-k", "1")
    for record in records("plain"):
        name = Path(record["image"]).name
        assert scores.get(name, record["classes"][0]["score"]) == pytest.approx(record["classes"][0]["score"], abs=1e-5)


def test_unreadable_images_are_listed_and_the_others_done(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/text.jpg").write_text("no image")
    Path("photos/cut.png").write_bytes(Path("photos/0.png").read_bytes()[:500])
    Path("photos/bad.tar").write_bytes(b"no tar")
    command = ["predict", str(models / "classifier"), "photos", "-o", "out", "--batch-size", "2"]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("error: 3 of the images can't be read, such as ")
    listed = dict(line.split("\t") for line in Path("out/unreadable.tsv").read_text().splitlines())
    assert listed["photos/text.jpg"] == "not an image of a known format"
    assert listed["photos/cut.png"] == "truncated"
    assert "can't be read as an archive" in listed["photos/bad.tar"]
    assert len(records()) == COUNT
    for name in ("text.jpg", "cut.png", "bad.tar"):
        Path("photos", name).unlink()
    shutil.copy("photos/0.png", "photos/text.jpg")
    assert cli.main(command) == 0
    assert [record["image"] for record in records()][COUNT:] == ["photos/text.jpg"]
    assert not Path("out/unreadable.tsv").exists()


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_names_of_any_bytes_are_kept(models: Path, kind: str) -> None:
    """In the lines as they are; in the table, which is UTF-8, bytes that are not text as a backslash and a number."""
    names = ['a, "b" c.png', "ünï.png", "two\nlines.png", os.fsdecode(b"latin\xe9.png")]
    Path("odd").mkdir()
    for name in names:
        shutil.copy("photos/0.png", Path("odd", name))
    predict(models / kind, "odd", "-o", "out", "--csv", "--pictures")
    assert sorted(record["image"] for record in records()) == sorted(f"odd/{name}" for name in names)
    with open("out/predictions.csv", newline="", encoding="utf-8") as file:
        written = {row["image"] for row in csv.DictReader(file)}
    assert written == {f"odd/{name}" for name in [*names[:3], "latin\\udce9.png"]}
    assert all(Path(f"out/pictures/odd/{name}.png").is_file() for name in names)


def test_very_long_names_have_pictures_of_their_own(models: Path) -> None:
    names = [f"long/{'n' * 250}{n}.png" for n in range(2)]
    Path("long").mkdir()
    for name in names:
        shutil.copy("photos/0.png", name)
    predict(models / "segmenter", "long", "-o", "out", "--pictures")
    assert [record["image"] for record in records()] == names
    assert len({record["mask"] for record in records()}) == len(list(Path("out/pictures/long").iterdir())) == 2
    assert all(Path("out", record["mask"]).is_file() for record in records())


def test_a_table_of_an_earlier_run_is_renewed(models: Path) -> None:
    predict(models / "classifier", "photos/0.png", "-o", "out", "--top-k", "1", "--csv")
    predict(models / "classifier", "photos", "-o", "out", "--top-k", "1")
    assert len(Path("out/predictions.csv").read_text().splitlines()) == COUNT + 1


@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_results(models: Path, left: float) -> None:
    command = [str(models / "segmenter"), "photos", "--batch-size", "2", "--csv"]
    predict(*command, "-o", "whole")
    shutil.copytree("whole", "killed")
    lines = Path("killed/predictions.jsonl")
    content = lines.read_bytes()
    lines.write_bytes(content[: int(left * len(content))])  # a kill may leave a part of a line
    Path("killed/predictions.csv").unlink()
    predict(*command, "-o", "killed")
    for path in Path("whole").rglob("*.*"):
        if path.is_file():
            assert (Path("killed") / path.relative_to("whole")).read_bytes() == path.read_bytes()


def test_results_in_the_folder_of_images_are_no_images(models: Path) -> None:
    for _ in range(2):
        predict(models / "segmenter", "photos", "-o", "photos/out", "--pictures")
    assert len(records("photos/out")) == COUNT


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("classifier none.jpg -o new", "none.jpg: no such file or folder"),
        ("classifier none*.jpg -o new", "none*.jpg: no file matches this pattern"),
        ("classifier empty -o new", "empty: no images there"),
        ("backbone photos -o new", "MODELS/backbone: expected the folder of a classifier, segmenter or detector"),
        (
            "skipped/classifier photos -o new",
            "skipped/classifier: holds no model, since its evaluation was skipped: no labels",
        ),
        ("none photos -o new", "MODELS/none: no such model folder"),
        ("classifier photos -o out --top-k 2", "out: holds results with top_k 5, not 2; choose another folder"),
        ("segmenter photos -o out", 'out: holds results with kind "classifier", not "segmenter"'),
        ("other photos -o out", "out: holds results of another model; choose another folder"),
        ("classifier photos -o editor", "editor/settings.json: not the settings of a folder of results"),
        (
            "odd_patches photos -o new",
            "MODELS/odd_patches/config.json: patches of 6 pixels are not allowed for detection",
        ),
        (
            "damaged photos -o new",
            "MODELS/damaged/config.json: not the parameters of a segmenter (channels: 0 is not allowed",
        ),
        *(
            (
                f"large_{kind} photos -o new",
                f"MODELS/large_{kind}/config.json: input_size has 40 pixels, img_size is 32; expected the same",
            )
            for kind in ("classifier", "segmenter", "detector")
        ),
        ("renamed photos -o new", "MODELS/renamed/config.json: 2 names for the 3 classes of the model"),
        ("segmenter clash -o new", "clash/1.png: its results would be where clash/1.png.png/0.png needs a folder"),
        ("classifier photos -o notes", "notes: is no folder of results and not empty"),
        ("classifier photos -o photos/0.png", "photos/0.png: is no folder of results"),
    ],
)
def test_an_error_is_one_line(models: Path, capsys: pytest.CaptureFixture[str], arguments: str, line: str) -> None:
    Path("empty").mkdir()
    Path("clash/1.png.png").mkdir(parents=True)
    for name in ("clash/1.png", "clash/1.png.png/0.png"):
        shutil.copy("photos/0.png", name)
    Path("notes").mkdir()
    Path("notes/today.txt").touch()
    Path("editor").mkdir()
    Path("editor/settings.json").write_text("{} // of an editor")
    model_card.write_skipped(Path("skipped/classifier"), "no labels")
    predict(models / "classifier", "photos", "-o", "out")
    capsys.readouterr()
    model, *rest = arguments.split()
    assert cli.main(["predict", model if "/" in model else str(models / model), *rest]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line.replace('MODELS', str(models))}")
    assert err.count("\n") == 1


@given(st.lists(st.sampled_from(["a", "..", ".", "b.png"]), min_size=1, max_size=5))
def test_files_of_results_stay_within_their_folder(parts: list[str]) -> None:
    from peco.use.predict import _file_name

    assert ".." not in Path(_file_name("/".join(["", *parts]))).parts
    assert not Path(_file_name("/".join(["", *parts]))).is_absolute()
