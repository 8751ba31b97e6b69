"""Model cards: metadata that a hub reads, facts of the run, nothing that differs between equal runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from huggingface_hub import ModelCard

from peco.core import artifacts
from peco.core.errors import PecoError
from peco.runtime import model_card
from peco.runtime.model_card import Data, Facts, Training

DATA = Data("imagefolder", "ab" * 32, {"train images": 100, "val images": 20, "classes": 3})
SCORES: dict[str, Any] = {"accuracy": 0.8123456789, "random_accuracy": 0.31, "train_images": 100, "masks": True}
FACTS = Facts(DATA, SCORES, Training(tiny_models.CFG.evaluate.finetune.optim, 100, "the backbone"), seed=3)
LINEAGE = {"source": "vit_small_patch16_224.dino", "hub_commit": "f00", "licence": "apache-2.0", "labels": "not known"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_models(root)
    return root


def row(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return line.split(" | ", 1)[1].removesuffix(" |")


def test_a_hub_reads_task_scores_and_library(models: Path) -> None:
    model_card.write(models / "classifier", FACTS)
    data = ModelCard.load(models / "classifier" / model_card.CARD).data
    assert (data.library_name, data.pipeline_tag) == ("timm", "image-classification")
    assert data.eval_results is not None
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"accuracy": 0.812346}  # counts are no scores
    assert {result.dataset_name for result in data.eval_results} == {"imagefolder"}


def test_the_card_has_counts_budget_baselines_and_parameters(models: Path) -> None:
    model_card.write(models / "classifier", FACTS)
    text = (models / "classifier" / model_card.CARD).read_text()
    assert row(text, "train images") == "100" and row(text, "sha256") == DATA.sha256
    assert row(text, "accuracy") == "0.812346 | 0.31"
    optim = tiny_models.CFG.evaluate.finetune.optim
    assert row(text, "images seen") == f"{optim.images_seen(100):,}"
    assert row(text, "start") == "the backbone"
    assert row(text, "lr") == str(optim.lr)
    tensors = artifacts.load_tensors(models / "classifier" / artifacts.WEIGHTS)
    assert row(text, "parameters") == f"{sum(t.numel() for t in tensors.values()):,}"
    assert "square, circle, star" in text
    assert "does not depend on one" in text


def test_licence_and_labels_of_the_perceptual_network_are_handed_on(models: Path, tmp_path: Path) -> None:
    net = tmp_path / "perceptual_net"
    artifacts.save(net, {}, {"peco": {"kind": "perceptual_net", **LINEAGE}})
    entry = model_card.lineage_of(net)
    assert entry == {"perceptual_net": LINEAGE}
    tokenizer = tmp_path / "tokenizer"
    artifacts.save(tokenizer, {}, {"peco": {"kind": "tokenizer", **entry}})
    assert model_card.lineage_of(tokenizer) == entry
    model_card.write(tokenizer, Facts(DATA))
    text = (tokenizer / model_card.CARD).read_text()
    assert row(text, "licence") == "apache-2.0" and row(text, "hub_commit") == "f00"
    assert "None were measured" in text and "were not trained here" in text


@pytest.mark.parametrize(
    ("config", "from_hub", "licence", "labels"),
    [
        (
            {"license": "cc-by-nc-4.0", "num_classes": 1000},
            True,
            "cc-by-nc-4.0",
            "yes: published with a classifier of 1000",
        ),
        ({"license": "apache-2.0", "num_classes": 0}, True, "apache-2.0", "not known: no classifier came with them"),
        ({"num_classes": 0}, True, "not known", "not known"),
        ({"license": "apache-2.0", "num_classes": 1000}, False, "not known: weights of a file", "not known"),
    ],
)
def test_what_timm_says_of_weights_is_taken_only_where_they_are_timms(
    config: dict[str, Any], from_hub: bool, licence: str, labels: str
) -> None:
    origin = model_card.weights_origin(config, from_hub=from_hub)
    assert origin["licence"] == licence and origin["labels"].startswith(labels)


def test_equal_facts_give_equal_bytes(models: Path) -> None:
    found = []
    for _ in range(2):
        for kind in ("backbone", "tokenizer", "segmenter", "detector"):
            model_card.write(models / kind, FACTS)
        found.append([(models / kind / model_card.CARD).read_bytes() for kind in ("backbone", "segmenter")])
    assert found[0] == found[1]
    assert str(models).encode() not in b"".join(found[0])


def test_a_skipped_evaluation_leaves_a_folder_that_says_so(tmp_path: Path) -> None:
    model_card.write_skipped(tmp_path / "segmenter", "switched off (evaluate.tasks.segmentation)")
    assert "switched off" in (tmp_path / "segmenter" / model_card.CARD).read_text()
    with pytest.raises(PecoError, match=r"holds no model, since its evaluation was skipped: switched off"):
        artifacts.section(tmp_path / "segmenter", "segmenter")
