"""The metrics of experiments as tables, one per task: a row for each point or baseline, mean and sample deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.experiments.grids import Point

Metrics = Mapping[str, Mapping[str, Any]]  # of one experiment, by file


@dataclass(frozen=True)
class Score:
    """One column: where a number stands in the metrics, and how it is shown."""

    title: str
    file: str
    key: str
    factor: float = 100
    digits: int = 1
    codebook: bool = False  # of tokens: it says nothing of a backbone that doesn't learn from them


@dataclass(frozen=True)
class Baseline:
    """What is measured beside each backbone or codebook: the columns it has, and what stands before their keys."""

    title: str
    prefix: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Task:
    """What one table shows."""

    title: str
    scores: tuple[Score, ...]
    baselines: tuple[Baseline, ...]
    note: str = ""


@dataclass(frozen=True)
class Cell:
    text: str
    values: tuple[float, ...] = ()  # one per seed, as the column shows them


@dataclass(frozen=True)
class Row:
    title: str
    cells: tuple[Cell, ...]
    ours: bool = False  # what stands in params.yaml


@dataclass(frozen=True)
class Table:
    task: Task
    rows: tuple[Row, ...]


def _evaluation(name: str) -> str:
    return f"metrics/evaluate/{name}.json"


KNN = Score("kNN, %", _evaluation("knn"), "accuracy")
LINEAR = Score("linear, %", _evaluation("linear"), "accuracy")
FINETUNE = Score("fine-tuned, %", _evaluation("finetune"), "accuracy")
ACCURACIES = (KNN, LINEAR, FINETUNE)
TOKENS = (
    Score("codes used, %", "metrics/tokens.json", "usage", codebook=True),
    Score("perplexity", "metrics/tokens.json", "perplexity", factor=1, codebook=True),
    Score("PSNR, dB", "metrics/tokenizer.json", "val_psnr", factor=1, digits=2, codebook=True),
)
MASKS = (
    Score("mIoU, %", _evaluation("segmentation"), "miou"),
    Score("pixel accuracy, %", _evaluation("segmentation"), "pixel_accuracy"),
)
BOXES = (
    Score("box AP, %", _evaluation("detection"), "box_ap"),
    Score("mask AP, %", _evaluation("detection"), "mask_ap"),
)
AGREEMENT = (
    Score("tokens that differ, %", _evaluation("agreement"), "tokens_hamming_accuracy", codebook=True),
    Score("embedded tokens, %", _evaluation("agreement"), "tokens_embedded_accuracy", codebook=True),
)
IMAGES = Score("without tokens, %", _evaluation("agreement"), "accuracy")
BOOK = tuple(
    Score(title, _evaluation("codebook"), key, factor, digits, codebook=True)
    for title, key, factor, digits in (
        ("probe on histograms, %", "token_histogram_accuracy", 100, 1),
        ("on mean codes, %", "token_mean_accuracy", 100, 1),
        ("on grids, %", "token_grid_accuracy", 100, 1),
        ("PSNR, dB", "psnr", 1, 2),
        ("SSIM", "ssim", 1, 3),
        ("Fréchet", "frechet", 1, 2),
    )
)
TASKS = (
    Task(
        "Classification",
        ACCURACIES + TOKENS,
        (
            Baseline("colour histogram", "histogram_", (LINEAR,)),
            Baseline("raw pixels", "pixels_", (LINEAR,)),
            Baseline("random initialisation", "random_", ACCURACIES),
        ),
        "Accuracies are top-1.",
    ),
    Task("Segmentation", MASKS, (Baseline("random initialisation", "random_", MASKS),)),
    Task("Detection", BOXES, (Baseline("random initialisation", "random_", BOXES),)),
    Task(
        "Perceptual agreement",
        (*AGREEMENT, IMAGES),
        (
            Baseline("pixels", "pixels_", (IMAGES,)),
            Baseline("SSIM", "ssim_", (IMAGES,)),
            Baseline("perceptual network", "perceptual_", (IMAGES,)),
        ),
        "Share of the triplets in which the moved view is found closer than the damaged one; guessing gets 50 %.",
    ),
    Task(
        "Codebook",
        BOOK,
        (Baseline("k-means of raw patches", "patches_", BOOK),),
        "Linear probes of tokens. The Fréchet distance is in features of the experiment's own perceptual network: "
        "it compares codebooks of one network only.",
    ),
)
SHARDS = "metrics/shards.json"
FILES = tuple(dict.fromkeys([SHARDS, *(score.file for task in TASKS for score in task.scores)]))


def tabulate(
    results: Mapping[Point, Sequence[Metrics]], beside: Point, ours: Point | None
) -> tuple[list[Table], list[str]]:
    """A table of each task that was measured anywhere; the others' titles and why they were not.

    Args:
        results: metrics of each seed, by point.
        beside: the point whose baselines are shown.
        ours: the point that stands in params.yaml, which is marked.
    """
    tables, left_out = [], []
    for task in TASKS:
        rows = [
            Row(
                baseline.title,
                tuple(_cell(score, baseline.scores, baseline.prefix, results[beside]) for score in task.scores),
            )
            for baseline in task.baselines
        ]
        for point, experiments in results.items():
            scores = [score for score in task.scores if point.codebook or not score.codebook]
            cells = tuple(_cell(score, scores, "", experiments) for score in task.scores)
            if point.codebook or any(cell.text != "-" for cell in cells):
                rows.append(Row(point.title, cells, ours=point == ours))
        if any(cell.values for row in rows for cell in row.cells):
            tables.append(Table(task, tuple(rows)))
        else:
            left_out.append(f"{task.title}: {_reason(task, results)}")
    return tables, left_out


def _cell(score: Score, scores: Sequence[Score], prefix: str, experiments: Sequence[Metrics]) -> Cell:
    """One cell.

    Args:
        scores: the columns that the row has; in the others it is "-".
        prefix: stands before the key.
        experiments: the metrics of each seed.
    """
    if score not in scores:
        return Cell("-")
    files = [metrics.get(score.file, {}) for metrics in experiments]
    values = tuple(score.factor * file[prefix + score.key] for file in files if prefix + score.key in file)
    if values:
        return Cell(spread(values, score.digits), values)
    return Cell("skipped" if any("skipped" in file for file in files) else "-")


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several values, sample standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _reason(task: Task, results: Mapping[Point, Sequence[Metrics]]) -> str:
    files = [metrics.get(score.file, {}) for many in results.values() for metrics in many for score in task.scores]
    return next((str(file["skipped"]) for file in files if "skipped" in file), "not measured")


def markdown(table: Table, corner: str) -> str:
    """A Markdown table; `corner` is the title of its first column."""
    lines = [[corner, *(score.title for score in table.task.scores)], ["---"] * (1 + len(table.task.scores))]
    lines += [[row.title, *(cell.text for cell in row.cells)] for row in table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
