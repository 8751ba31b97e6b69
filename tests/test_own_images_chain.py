"""The user's own images, with and without labels, through the whole `smoke` chain in a fresh checkout."""

from __future__ import annotations

import csv
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_chain import ROOT, STAGES, Checkout

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


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, dict[str, str]]:
    """A checkout in which all commands of docs/tutorial.md have run, with `smoke` for `tiny`, and their output."""
    root = tmp_path_factory.mktemp("tutorial")
    checkout = Checkout(root / "checkout")
    photos(root / "photos", "bees", "wasps")
    photos(root / "new-photos", count=4)
    checkout.env["HOME"] = str(root)
    outputs = {}
    for command in commands(ROOT / "docs/tutorial.md"):
        # `make` would set up a virtual environment in the checkout.
        made = re.sub(r"^make ", f"make -o {checkout.path}/.venv/.installed ", command)
        outputs[command] = checkout.run("bash", "-c", made.replace("PRESET=tiny", "PRESET=smoke"))
    return checkout, outputs


def commands(page: Path) -> list[str]:
    """The lines of the page's blocks of bash."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_tutorial_leads_to_predictions_and_a_search(tutorial: tuple[Checkout, dict[str, str]]) -> None:
    checkout, outputs = tutorial
    assert (
        "perceptual_net" in outputs["make plan"] and "warning: tokenizer: 4 steps of 16 images" in outputs["make plan"]
    )
    with (checkout.path / "predictions/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["image"] for row in rows}) == 4 and {row["class"] for row in rows} == {"bees", "wasps"}
    assert len(list((checkout.path / "predictions/pictures").rglob("*.png"))) == 4
    assert len(np.load(checkout.path / "embeddings/embeddings.npy")) == 60
    assert (checkout.path / "similar.html").read_text(encoding="utf-8").count("<img ") == 1 + 12
    assert "evaluate.finetune.optim.epochs" in outputs["dvc exp diff HEAD longer"]
    assert (checkout.path / "classifier.onnx").is_file()
    assert checkout.run("git", "status", "--short", "params.yaml", "dvc.lock") == ""


def test_a_folder_of_classes_without_splits_is_split_trained_on_and_evaluated(
    tutorial: tuple[Checkout, dict[str, str]],
) -> None:
    checkout, outputs = tutorial
    assert "reports/report.html" in outputs["make repro"]
    assert set(checkout.ran()) == STAGES
    index: dict[str, Any] = checkout.json("artifacts/shards/index.json")
    assert index["classes"] == ["bees", "wasps"]
    counts = {name: sum(shard["samples"] for shard in split["shards"]) for name, split in index["splits"].items()}
    assert counts == {"train": 54, "val": 6}
    for name in ("knn", "linear", "finetune"):
        assert {"accuracy", "random_accuracy"} <= set(checkout.json(f"metrics/evaluate/{name}.json"))
    assert "54 training and 6 validation images" in words(checkout)
    # Another machine needs the images by hash, and no path of this machine.
    tracked = checkout.run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    assert "data/photos.dvc" in tracked and not any(name.startswith("data/photos/") for name in tracked)
    home = str(checkout.path.parent)
    assert home not in (checkout.path / "dvc.lock").read_text() + (checkout.path / "params.yaml").read_text()


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
