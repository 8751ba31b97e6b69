"""The user's own images, with and without labels, through the whole `smoke` chain in a fresh checkout."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_chain import STAGES, Checkout

pytestmark = pytest.mark.chain


def photos(folder: Path, *classes: str, count: int = 60) -> Path:
    """Images of gradients and noise, of several sizes, without splits; a folder for each class, or one folder if there are none."""
    for i in range(count):
        rng = np.random.default_rng(i)
        height, width = rng.integers(33, 60, 2)
        ramp = np.linspace(0, 1, height)[:, None, None] * rng.uniform(50, 200, 3)
        pixels = (ramp + rng.uniform(0, 50, (height, width, 3))).astype(np.uint8)
        home = folder / classes[i % len(classes)] if classes else folder
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(home / f"{i}.png" if i % 3 else home / f"{i}.jpg")
    return folder


def words(checkout: Checkout) -> str:
    """The report's text."""
    page = (checkout.path / "reports/report.html").read_text(encoding="utf-8")
    return html.unescape(" ".join(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL).split()))


def dvc(checkout: Checkout, *arguments: str) -> str:
    return checkout.run(sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A finished chain on images without labels, with a perceptual network from timm, which is not trained and has no curves."""
    root = tmp_path_factory.mktemp("unlabelled")
    checkout = Checkout(root / "checkout")
    settings = ["perceptual_net.source=timm", "perceptual_net.timm.model=test_vit"]
    checkout.python("pipelines.params", "--preset", "smoke", "--data", str(photos(root / "photos")), *settings)
    checkout.python("pipelines.repro")
    checkout.commit("ran")
    return checkout


def test_a_folder_of_classes_without_splits_is_split_trained_on_and_evaluated(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    folder = photos(tmp_path / "photos", "bees", "wasps")
    # Those tasks have data of their own.
    settings = ["dataset.val_fraction=0.2", "evaluate.tasks.segmentation=false", "evaluate.tasks.detection=false"]
    checkout.python("pipelines.params", "--preset", "smoke", "--data", str(folder), *settings)
    output = checkout.python("pipelines.repro")
    assert "reports/report.html" in output
    assert set(checkout.ran()) == STAGES
    index: dict[str, Any] = checkout.json("artifacts/shards/index.json")
    assert index["classes"] == ["bees", "wasps"]
    counts = {name: sum(shard["samples"] for shard in split["shards"]) for name, split in index["splits"].items()}
    assert counts == {"train": 48, "val": 12}
    for name in ("knn", "linear", "finetune"):
        assert {"accuracy", "random_accuracy"} <= set(checkout.json(f"metrics/evaluate/{name}.json"))
    assert "48 training and 12 validation images" in words(checkout)
    # Another machine needs the images by hash, and no path of this machine.
    tracked = checkout.run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    assert "data/photos.dvc" in tracked and not any(name.startswith("data/photos/") for name in tracked)
    assert str(tmp_path) not in (checkout.path / "dvc.lock").read_text() + (checkout.path / "params.yaml").read_text()


def test_images_without_classes_train_and_skipped_evaluations_give_the_reason(unlabeled: Checkout) -> None:
    assert set(unlabeled.ran()) == STAGES
    reason = "train has no labels"
    for name in ("knn", "linear", "finetune"):
        assert unlabeled.json(f"metrics/evaluate/{name}.json") == {"skipped": reason}
    assert unlabeled.json("metrics/pretrain.json").keys() == {"accuracy", "loss"}
    text = words(unlabeled)
    for name in ("kNN", "Linear", "Fine-tuned"):
        assert re.search(rf"{name}[^.]*: skipped, since {reason}\.", text), name


def test_metrics_and_plots_work_if_a_stage_has_none(unlabeled: Checkout) -> None:
    metrics = dvc(unlabeled, "metrics", "show")
    assert "scores/tokenizer.json" in metrics and "scores/pretrain.json" in metrics
    assert max(map(len, metrics.splitlines())) <= 120
    assert list((unlabeled.path / "metrics/plots/perceptual_net").iterdir()) == []
    page = Path(dvc(unlabeled, "plots", "show", "-o", str(unlabeled.path / ".work/plots")).strip().splitlines()[-1][7:])
    assert "tokenizer" in page.read_text(encoding="utf-8") and "perceptual_net/" not in page.read_text(encoding="utf-8")


def test_the_pixel_codebook_is_an_experiment_compared_with_peco(unlabeled: Checkout) -> None:
    before = len(unlabeled.ran())
    dvc(unlabeled, "exp", "run", "-q", "--name", "pixel", "-S", "tokenizer.perceptual.weight=0", "tokenizer")
    assert unlabeled.ran()[before:] == ["tokenizer"]
    difference = json.loads(dvc(unlabeled, "exp", "diff", "--json", "HEAD", "pixel"))
    assert difference["params"]["params.yaml"] == {"tokenizer.perceptual.weight": {"old": 1.0, "new": 0, "diff": -1.0}}
    assert difference["metrics"]["scores/tokenizer.json"].keys() == {"psnr"}
    assert "pixel" in dvc(unlabeled, "exp", "show", "--csv")
