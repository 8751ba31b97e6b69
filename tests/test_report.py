"""The report: one self-contained page, the same bytes every time, with reasons for missing results."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.mim import storage as mim_storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.report import charts, figures
from peco.runtime.stage import StageRun
from peco.sources.base import Ignored, RawSample
from peco.sources.shard_writer import write_shards
from peco.stages import report
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("smoke", []))
SIZE, CODES = CFG.tokenizer.image_size, CFG.tokenizer.quantizer.codes
SCORES: dict[str, dict[str, Any]] = {
    "shards": {"train": 20, "val": 10, "classes": 2, "rejected": 0},
    "perceptual_net": {"knn_accuracy": 0.5, "random_knn_accuracy": 0.25},
    "tokenizer": {"usage": 0.9375, "perplexity": 11.4, "val_psnr": 17.25, "val_l1": 0.1, "val_perceptual": 1.5},
    "pretrain": {"loss": 2.5, "accuracy": 0.125},
    "evaluate/knn": {
        "accuracy": 0.625, "block": "2", "neighbors": 5,
        "random_accuracy": 0.5, "random_block": "norm", "random_neighbors": 5,
    },
    "evaluate/linear": {
        "accuracy": 0.7, "block": "2", "l2": 0.01, "random_accuracy": 0.75, "random_block": "1", "random_l2": 0.1,
        "pixels_accuracy": 0.41, "histogram_accuracy": 0.32,
    },
    "evaluate/finetune": {"accuracy": 0.81, "random_accuracy": 0.81},
}  # fmt: skip


@dataclass
class Source:
    """Images of noise; unlabelled without classes."""

    splits: dict[str, int]
    classes: tuple[str, ...]
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)
    total: int | None = None

    def samples(self) -> Iterator[RawSample]:
        for number, (split, count) in enumerate(self.splits.items()):
            for i in range(count):
                pixels = np.random.default_rng([number, i]).integers(0, 256, (40, 36, 3), dtype=np.uint8)
                out = io.BytesIO()
                Image.fromarray(pixels).save(out, "PNG")
                label = i % len(self.classes) if self.classes else -1
                yield RawSample(split, f"{split}/{i}.png", out.getvalue(), label)


def make_folder(root: Path, splits: dict[str, int], classes: tuple[str, ...], source: Source | None = None) -> Path:
    """Results of the earlier stages, with models at random initialisation."""
    write_shards(
        source or Source(splits, classes), root / "artifacts" / "shards", CFG.dataset, work=root / "work", workers=1
    )
    torch.manual_seed(0)
    tokenizer = PerceptualTokenizer(CFG.tokenizer.autoencoder, CFG.tokenizer.quantizer)
    tokenizer_storage.save(
        root / "artifacts" / "tokenizer",
        tokenizer,
        CFG.tokenizer.autoencoder,
        CFG.tokenizer.quantizer,
        {"image_size": SIZE},
    )
    save_backbone(root, CODES)
    for name, values in SCORES.items():
        write_scores(root, name, values)
    for stage, curves in {"tokenizer": ("loss", "usage"), "pretrain": ("loss", "accuracy", "lr")}.items():
        for curve in curves:
            path = root / "metrics" / "plots" / stage / f"{curve}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"step\t{curve}\n" + "".join(f"{s}\t{1 / s}\n" for s in range(1, 9)))
    return root


def save_backbone(root: Path, outputs: int, target: Literal["tokens", "pixels"] = "tokens") -> None:
    backbone, arch, model_args = build_backbone(CFG.pretrain.vit, CFG.loader.image_size, 0.1, 0.0)
    extra = {"masking": schema.to_dict(CFG.pretrain.masking)}
    model = MaskedImageModel(backbone, outputs)
    path = root / "artifacts" / "backbone"
    mim_storage.save(path, model, target=target, arch=arch, model_args=model_args, extra=extra)


def write_scores(root: Path, name: str, values: dict[str, Any]) -> None:
    path = root / "metrics" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def make_report(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(root)
    report.main(StageRun("report", schema.restrict(CFG, report.PARAMS)))
    return (root / "reports" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("finished"), {"train": 20, "val": 10}, ("ant", "<b>bee & co"))


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "folder"))


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def words(html: str) -> str:
    """The page's text with plain spaces."""
    return re.sub(r"\s+", " ", Elements(html).text)


# --- the page


def test_same_inputs_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_report(folder, monkeypatch)
    again = make_report(folder, monkeypatch)
    elsewhere = make_report(Path(shutil.copytree(folder, tmp_path / "elsewhere")), monkeypatch)
    assert first == again == elsewhere
    assert str(tmp_path) not in first
    assert [path.name for path in (folder / "reports").iterdir()] == ["report.html"]


def test_the_page_is_self_contained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html = make_report(folder, monkeypatch)
    page_ = Elements(html)
    assert "://" not in html and "@import" not in html and "url(" not in html
    assert not [tag for tag, _ in page_.found if tag in ("script", "link", "iframe", "object")]
    for image in page_.all("img"):
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert (str(picture.width), str(picture.height)) == (image["width"], image["height"])


def test_the_page_is_accessible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html = make_report(folder, monkeypatch)
    page_ = Elements(html)
    assert page_.all("html")[0]["lang"] == "en"
    assert len(page_.all("img")) > 3 * CFG.report.images and all(image["alt"] for image in page_.all("img"))
    assert len(page_.all("svg")) == 5 + 1 and all(svg["aria-label"] for svg in page_.all("svg"))
    assert len(page_.all("caption")) == len(page_.all("table")) == 3
    assert all(cell["scope"] in ("row", "col") for cell in page_.all("th"))
    ids = [attributes["id"] for _, attributes in page_.found if "id" in attributes]
    assert len(ids) == len(set(ids)) and {str(a["href"])[1:] for a in page_.all("a")} < set(ids)


def test_results_are_shown_next_to_their_baselines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(make_report(folder, monkeypatch))
    assert (
        "PeCo backbone against the same network at random initialisation: "
        "+12.5 points in kNN, \u22125.0 points in the linear probe and 0.0 points fine-tuned." in text
    )
    assert (
        "Features kNN Linear probe Fine-tuned PeCo backbone 62.5 70.0 81.0 Random initialisation 50.0 75.0 81.0" in text
    )
    assert "Colour histogram \u2013 32.0 \u2013 Raw pixels \u2013 41.0 \u2013" in text
    assert "kNN: block 2, 5 neighbours (random initialisation: the final norm, 5 neighbours)." in text
    assert "Always predicting the most frequent class gives 50.0 %" in text
    assert "Codebook usage 93.8 %" in text and "PSNR 17.25 dB" in text
    assert "Perceptual network 50.0 Random initialisation 25.0" in text


def test_data_parameters_and_versions_are_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html = make_report(folder, monkeypatch)
    text = words(html)
    assert "20 training and 10 validation images" in text and "Nothing was left out." in text
    assert "<b>bee & co 10 train · 5 val" in text, "names are data, not markup"
    assert "<b>bee & co" not in html
    assert "val 10 2 all" in text
    assert "shuffle_buffer: 16" in text and "resources" not in text.partition("preset: smoke")[2]
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "Images seen: the perceptual network 32, the tokenizer 32 and pre-training 32." in text


@pytest.mark.parametrize(("source", "limited"), [("scenes", True), ("images", False), ("webdataset", False)])
def test_only_the_built_in_scenes_do_not_compare_codebooks(source: str, limited: bool) -> None:
    text = report.describe(CFG, {"source": source, "splits": {"train": {"samples": 9}}})
    assert ("don't compare codebooks" in text) == limited


def test_skipped_evaluations_have_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("knn", "linear", "finetune"):
        write_scores(folder, f"evaluate/{name}", {"skipped": "train and val share no class"})
    (folder / "metrics" / "evaluate" / "finetune.json").unlink()
    text = words(make_report(folder, monkeypatch))
    assert "kNN: skipped, since train and val share no class." in text
    assert "Fine-tuned: no result; the stage evaluate@finetune has not run." in text
    assert "PeCo backbone skipped skipped \u2013" in text
    assert "No evaluation was run on this data" in text


def test_what_was_left_out_is_shown_next_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source({"train": 9}, (), notes=["read as: collection"])
    source.ignored.extend("masks", [f"<{i}>.png" for i in range(5)], by_rule=True)
    html = make_report(make_folder(tmp_path, {"train": 9}, (), source), monkeypatch)
    text = words(html)
    assert "Some files were left out: see below." in text
    assert "5 masks: <0>.png, <1>.png, <2>.png, …" in text and "<0>.png" not in html
    assert "read as: collection" in text


def test_unlabeled_training_images_alone_give_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path, {"train": 9}, ())
    shutil.rmtree(folder / "metrics")
    text = words(make_report(folder, monkeypatch))
    assert "train 9 0 none" in text and "the training split (there is no other)" in text
    assert "image 8" in text and "The tokenizer has no scores" in text and "No stage has published curves" in text
    assert "It has no score: that needs labels." in text


def test_an_interrupted_report_keeps_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_report(folder, monkeypatch)
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_report(folder, monkeypatch)
    assert (folder / "reports" / "report.html").read_text(encoding="utf-8") == old


def test_models_that_do_not_fit_together_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_backbone(folder, CODES + 1)
    with pytest.raises(PecoError, match=rf"predicts {CODES + 1} codes .* has {CODES} on .* `dvc repro pretrain`"):
        make_report(folder, monkeypatch)


@pytest.mark.parametrize("name", ["evaluate/knn.json", "plots/pretrain/loss.tsv"])
def test_damaged_metrics_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (folder / "metrics" / name).write_text("oops\n1\n")
    with pytest.raises(PecoError, match=name):
        make_report(folder, monkeypatch)


# --- pictures


def test_codes_are_counted_and_shown_by_rank(finished: Path) -> None:
    models = figures.load_models(finished / "artifacts/tokenizer", finished / "artifacts/backbone")
    x = torch.rand(12, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tokens = models.tokenizer.tokenize(x).numpy()
    codes = figures.study_codes(models.tokenizer, x, gallery=4, patches=3)
    assert codes.images == 12 and codes.histogram_K.tolist() == np.bincount(tokens.ravel(), minlength=CODES).tolist()
    assert codes.usage == len(np.unique(tokens)) / CODES
    p = np.bincount(tokens.ravel()) / tokens.size
    assert codes.perplexity == pytest.approx(2 ** -sum(q * math.log2(q) for q in p if q))
    assert [e.count for e in codes.gallery] == sorted((e.count for e in codes.gallery), reverse=True)
    factor = models.tokenizer.factor
    for entry in codes.gallery:
        assert entry.count == codes.histogram_K[entry.code]
        first = np.argwhere(tokens == entry.code)[0]
        image, row, column = first.tolist()
        pixels = figures.to_pixels(x)[image, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert (entry.patches[0] == pixels).all()


def test_pictures_of_predictions_show_the_mask_and_the_prediction(finished: Path) -> None:
    models = figures.load_models(finished / "artifacts/tokenizer", finished / "artifacts/backbone")
    x = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    predictions = figures.draw_predictions(models, x, x)
    true = figures.to_pixels(models.tokenizer.reconstruct(x))
    for i, prediction in enumerate(predictions):
        original, masked, predicted, shown = prediction.pictures
        hidden = (masked != original).any(axis=2)
        assert np.count_nonzero(hidden) == pytest.approx(prediction.count * models.tokenizer.factor**2, rel=0.01)
        assert (masked[hidden] == 128).all()
        assert (shown == true[i]).all()
        assert prediction.count == CFG.pretrain.masking.count
        assert prediction.correct is not None and (prediction.correct < prediction.count) == (predicted != shown).any()


def test_predicted_pixels_are_shown_without_the_decoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Visible patches stay as they are; hidden ones have their true mean and the model's pattern."""
    save_backbone(folder, 3 * CFG.pretrain.vit.patch_size**2, target="pixels")
    models = figures.load_models(folder / "artifacts/tokenizer", folder / "artifacts/backbone")
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    for prediction in figures.draw_predictions(models, x, x):
        original, masked, predicted = prediction.pictures
        hidden = (masked != original).any(axis=2)
        assert prediction.correct is None
        assert (predicted[~hidden] == original[~hidden]).all()
        assert (predicted[hidden] != original[hidden]).any()
    page = make_report(folder, monkeypatch)
    assert "predicted pixels" in page and "predicted tokens" not in page


def load_readme_picture() -> Any:
    """The script that makes the picture of the README."""
    path = Path(__file__).parents[1] / "docs" / "images" / "readme_picture.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [1, 8])
def test_the_picture_of_the_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.chdir(folder)
    readme_picture = load_readme_picture()
    assert readme_picture.main(["--images", str(count)]) == 0
    with Image.open("docs/images/scenes.png") as picture:
        assert picture.width == pytest.approx(readme_picture.WIDTH, rel=0.1)


def test_the_picture_of_the_readme_needs_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_readme_picture().main([]) == 2


# --- charts

values = st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-12)


def coordinates(svg: str) -> list[tuple[float, float]]:
    """Of the line, the area, the point and of every straight line."""
    pairs = [tuple(pair.split(",")) for points in re.findall(r'points="([^"]*)"', svg) for pair in points.split()]
    pairs += re.findall(r'cx="([^"]*)" cy="([^"]*)"', svg)
    for x1, x2, y1, y2 in re.findall(r'x1="([^"]*)" x2="([^"]*)" y1="([^"]*)" y2="([^"]*)"', svg):
        pairs += [(x1, y1), (x2, y2)]
    return [(float(x), float(y)) for x, y in pairs]


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=12), st.integers(0, 10**7), st.booleans(), st.booleans())
def test_nothing_is_drawn_outside_the_chart(ys: list[float], start: int, zero: bool, area: bool) -> None:
    series = [(start + 3.0 * i, y) for i, y in enumerate(ys)]
    svg = charts.line_chart(series, label="x", zero=zero, area=area, reference=(ys[0], "here"))
    assert "nan" not in svg and "inf" not in svg
    drawn = coordinates(svg)
    assert len(drawn) > len(ys)
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in drawn)


def test_constant_and_single_values_are_drawn() -> None:
    assert "<polyline" in charts.line_chart([(1, 5.0), (2, 5.0)], label="constant")
    single = charts.line_chart([(0, 0.0)], label="single")
    assert "<circle" in single and "<polyline" not in single


def test_values_that_are_not_finite_are_left_out() -> None:
    some = [(1.0, math.nan), (2.0, 1.0), (3.0, math.inf), (4.0, 2.0)]
    assert charts.line_chart(some, label="x") == charts.line_chart([(2.0, 1.0), (4.0, 2.0)], label="x")
    with pytest.raises(ValueError, match="finite"):
        charts.line_chart([(1.0, math.nan)], label="x")


def test_long_series_stay_small_and_keep_their_mean() -> None:
    series = [(float(i), math.sin(i)) for i in range(10_000)]
    thinned = charts.thin(series, 200)
    assert len(thinned) == 200
    assert np.mean([y for _, y in thinned]) == pytest.approx(np.mean([y for _, y in series]))
    assert len(charts.line_chart(series, label="x")) < 6000


@settings(max_examples=100, deadline=None)
@given(values, values)
def test_ticks_are_round_and_enclose_the_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = charts.ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-6 * step and high <= ticks[-1] + 1e-6 * step
    assert np.allclose(np.diff(ticks), step, rtol=1e-3)
    digits = f"{step:.3e}".partition("e")[0]
    assert digits in ("1.000", "2.000", "5.000")


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.5", "1.0"]),
        (-1, 1, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
        (0, 60_000, ["0", "20k", "40k", "60k"]),
        (0, 9e6, ["0", "5M", "10M"]),
        (0, 3e14, ["0", "1e+14", "2e+14", "3e+14"]),
        (0, 0.0015, ["0", "0.0005", "0.0010", "0.0015"]),
        (0, 1e-7, ["0", "5e-08", "1e-07"]),
        (2.6400, 2.6412, ["2.6400", "2.6405", "2.6410", "2.6415"]),
        (7, 7, ["6.0", "6.5", "7.0", "7.5", "8.0"]),
    ],
)
def test_tick_labels_are_short(low: float, high: float, labels: list[str]) -> None:
    assert charts.tick_labels(charts.ticks(low, high)) == labels


def test_other_evaluations_have_a_table_and_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scores(
        folder, "evaluate/segmentation", {"images": 20, "miou": 0.321, "pixel_accuracy": 0.8, "random_miou": 0.123}
    )
    write_scores(folder, "evaluate/detection", {"images": 20, "masks": False, "box_ap": 0.25, "random_box_ap": 0.125})
    write_scores(
        folder,
        "evaluate/agreement",
        {"references": 5, "triplets": 60, "pixels_accuracy": 0.5, "pixels_low": 0.5, "pixels_high": 0.5}
        | {"tokens_hamming_accuracy": 0.625, "tokens_hamming_low": 0.55, "tokens_hamming_high": 0.7},
    )
    write_scores(folder, "evaluate/codebook", {"skipped": "switched off (evaluate.tasks.codebook)"})
    for kind in ("image", "truth", "pretrained", "random"):
        path = folder / "metrics/pictures/segmentation" / f"00-{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(path)
    before = len([1 for name, _ in Elements(make_report(folder, monkeypatch)).found if name == "img"])
    text = Elements(make_report(folder, monkeypatch)).text
    for expected in (
        "mIoU",
        "32.1",
        "12.3",
        "Faster R-CNN",
        "25.0",
        "12.5",
        "Tokens that differ",
        "62.5",
        "55.0",
        "switched off",
    ):
        assert expected in text
    assert "mask AP" not in text
    shutil.rmtree(folder / "metrics/pictures")
    after = len([1 for name, _ in Elements(make_report(folder, monkeypatch)).found if name == "img"])
    assert before - after == 1  # the four pictures of an image are side by side in one
