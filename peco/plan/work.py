"""The work of each stage: images through its networks, steps, files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peco.core import config, schema
from peco.core.errors import PecoError
from peco.core.parsing import YAML_ERRORS
from peco.data import views
from peco.data.shards import load_index
from peco.runtime import paths
from peco.sources.imagefolder import ImageFolder
from peco.sources.open import open_source
from peco.sources.webdataset.source import WebDatasetSource

LOCK = Path("dvc.lock")
COUNTS = ("train_images", "images")  # of an annotated set, in `metrics/annotations/TASK.json`
SAMPLE = 8  # images whose size in bytes and pixels is taken for that of all
CODEBOOK_PASSES = 3  # of each scored image: to its tokens, to an image again, through the perceptual network
MIN_STEPS = 200  # of a training that others build on; with fewer it has hardly left its random start


@dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        train, val: numbers of images.
        mean_bytes: of an encoded image.
        labelled: True if val has labels.
        estimated: True if the numbers are those of the input, of which some may be left out.
        encoded: some images, to time their decoding.
        seconds: to get an encoded image from the source.
    """

    train: int
    val: int
    mean_bytes: float
    labelled: bool
    estimated: bool
    encoded: tuple[bytes, ...]
    seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """Images that pass through a network of `peco.plan.networks`; `view` names how each is made of a file."""

    network: str
    images: float
    view: str


@dataclass(frozen=True)
class Work:
    """The work of a stage.

    Attributes:
        stage: its name in dvc.yaml.
        parts: images by network.
        steps: of its training, None for a stage that trains nothing.
        optim: recipe of the training.
        disk: bytes of its results.
        read: images that it reads one by one from their source.
        trainings: of which each keeps a checkpoint until the stage is done.
    """

    stage: str
    parts: tuple[Part, ...] = ()
    steps: int | None = None
    optim: config.Optim | None = None
    disk: float = 0.0
    read: int = 0
    trainings: int = 1


def read_data(dataset: config.Dataset, work: Path) -> Data:
    """The images: of the shards if they were made of these parameters' input, else of the input.

    Args:
        dataset: its parameters.
        work: folder for temporary files.

    Raises:
        PecoError: the input can't be read, or its images can't be counted without fetching them.
    """
    source = open_source(dataset, work)
    encoded = []
    began = time.perf_counter()
    for sample in source.samples():
        encoded.append(sample)
        if len(encoded) == SAMPLE:
            break
    if not encoded:
        raise PecoError(f"dataset.path: {dataset.path}: no images; name an input that has some")
    mean = sum(len(sample.encoded) for sample in encoded) / len(encoded)
    seconds = (time.perf_counter() - began) / len(encoded)
    images = tuple(sample.encoded for sample in encoded)
    labelled = encoded[0].label >= 0
    if dataset.source == "scenes":
        return Data(dataset.scenes.train, dataset.scenes.val, mean, True, False, images, seconds)
    if splits := _splits(dataset):
        counts = {name: int(split["samples"]) for name, split in splits.items()}
        size = sum(shard["bytes"] for split in splits.values() for shard in split["shards"]) / sum(counts.values())
        return Data(counts["train"], counts.get("val", 0), size, labelled, False, images, seconds)
    if source.total is None:
        raise PecoError(
            f"dataset.path: {dataset.path}: its images are counted by the stage shards, which fetches them; "
            "run `dvc repro shards` first"
        )
    counts = source.counts if isinstance(source, ImageFolder | WebDatasetSource) else {}
    val = counts.get("val", 0) if counts else round(source.total * dataset.val_fraction)
    return Data(source.total - val, val, mean, labelled, True, images, seconds)


def _splits(dataset: config.Dataset) -> dict[str, Any]:
    """The splits of the shards; empty if they are not there, damaged, or of another input."""
    try:
        lock = yaml.safe_load(LOCK.read_text(encoding="utf-8"))
        recorded = lock["stages"]["shards"]["params"]["params.yaml"]["dataset"]
        splits: dict[str, Any] = load_index(paths.SHARDS)["splits"]
        return splits if "train" in splits and schema.build(config.Dataset, recorded) == dataset else {}
    except (OSError, *YAML_ERRORS, LookupError, PecoError):
        return {}  # the stage makes them again


def works(cfg: config.Config, data: Data, annotated: dict[str, dict[str, Any]]) -> list[Work]:
    """The work of all stages of the graph, in its order.

    Args:
        cfg: parameters.
        data: the images.
        annotated: `metrics/annotations/TASK.json` by task, where they are; else the numbers of scenes are taken.
    """
    return list(_works(cfg, data, annotated))


def _works(cfg: config.Config, data: Data, annotated: dict[str, dict[str, Any]]) -> Iterator[Work]:
    train, val, evaluate = data.train, data.val, cfg.evaluate
    counts = {
        task: [
            known.get(key, planned) for key, planned in zip(COUNTS, (dense.scenes.train, dense.scenes.val), strict=True)
        ]
        for task, dense in (("segmentation", evaluate.segmentation), ("detection", evaluate.detection))
        for known in (annotated.get(task, {}),)
    }
    yield Work("annotations", read=sum(sum(counts[task]) for task in counts if getattr(evaluate.tasks, task)))
    yield Work("shards", disk=1.02 * data.mean_bytes * (train + val), read=train + val)
    net = cfg.perceptual_net
    scored = (Part("features", 2 * min(train + val, 100_000), "center"),) if data.labelled else ()
    if net.source == "train":
        steps, seen = net.optim.steps(train), net.optim.images_seen(train)
        yield Work("perceptual_net", (Part("moco", seen, "moco"), *scored), steps, net.optim)
    else:
        yield Work("perceptual_net", scored)
    tokenizer = cfg.tokenizer
    if tokenizer.init.train:
        steps, seen = tokenizer.optim.steps(train), tokenizer.optim.images_seen(train)
        yield Work("tokenizer", (Part("tokenizer", seen, "tokenizer"),), steps, tokenizer.optim)
    else:
        yield Work("tokenizer", ())
    stored = train * cfg.tokens.views
    entry = 2 * tokenizer.grid**2 + views.VIEW_DTYPE.itemsize
    yield Work("tokens", (Part("tokenize", stored, "tokens"),), disk=stored * entry)
    optim = cfg.pretrain.optim
    parts = [Part("mim", optim.images_seen(train), "pretrain")]
    if not cfg.tokens.views and cfg.pretrain.target == "tokens":
        parts.append(Part("tokenize", optim.images_seen(train), "tokens"))
    yield Work("pretrain", tuple(parts), optim.steps(train), optim)
    tasks = evaluate.tasks
    # From pre-trained and from random weights; a reference counts as a network of the same size.
    starts = 2 + (evaluate.reference.source != "none")
    frozen = (Part("features", starts * (train + val), "center"),)
    for task, on in (("knn", tasks.knn), ("linear", tasks.linear)):
        yield Work(f"evaluate@{task}", frozen if on and data.labelled else ())
    tuned, on = evaluate.finetune, tasks.finetune and data.labelled
    yield _trained("finetune", tuned.optim, "classifier", round(tuned.labels * train), val, starts if on else 0)
    for task, dense, network in (
        ("segmentation", evaluate.segmentation, "segmenter"),
        ("detection", evaluate.detection, "detector"),
    ):
        yield _trained(
            task, dense.optim, network, counts[task][0], counts[task][1], starts if getattr(tasks, task) else 0
        )
    references = evaluate.agreement.references if tasks.agreement else 0
    yield Work("evaluate@agreement", (Part("tokenize", 30 * references, "center"),))
    images = CODEBOOK_PASSES * min(evaluate.codebook.images, train + val) if tasks.codebook else 0
    yield Work("evaluate@codebook", (Part("tokenize", images, "center"),))
    yield Work("report", ())


def _trained(task: str, optim: config.Optim, network: str, train: int, val: int, starts: int) -> Work:
    """An evaluation that trains from several starts, and scores val; nothing with none."""
    if not starts:
        return Work(f"evaluate@{task}")
    seen = starts * optim.images_seen(train)
    # A forward pass is a third of a training step.
    parts = (Part(network, seen + starts * val / 3, task),)
    return Work(f"evaluate@{task}", parts, starts * optim.steps(train), optim, trainings=starts)


def few_steps(work: list[Work], train: int) -> list[str]:
    """Warnings of trainings that see too few images to learn, each with the parameter and a value that is enough."""
    lines = []
    for entry in work:
        if entry.steps is None or entry.optim is None or entry.stage not in ("perceptual_net", "tokenizer", "pretrain"):
            continue
        if entry.steps < MIN_STEPS:
            epochs = -(-MIN_STEPS * entry.optim.batch_size // train)
            lines.append(
                f"{entry.stage}: {entry.steps} steps of {entry.optim.batch_size} images are too few to learn from; "
                f"set {entry.stage}.optim.epochs to {epochs} or more"
            )
    return lines
