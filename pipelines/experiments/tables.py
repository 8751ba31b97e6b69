"""The metrics of experiments as tables, one per task: a row for each variant or baseline, mean and sample deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.experiments.grids import Variant

ExperimentMetrics = Mapping[str, Mapping[str, Any]]  # by file


@dataclass(frozen=True)
class Score:
    """One column: the place of a number in the metrics, and its format.

    Attributes:
        codebook: True if it is a score of tokens, which means nothing for a backbone that doesn't learn from them.
    """

    title: str
    file: str
    key: str
    factor: float = 100
    digits: int = 1
    codebook: bool = False


@dataclass(frozen=True)
class Baseline:
    """A row to compare with: the columns that it has, and the prefix of their keys in the metrics."""

    title: str
    prefix: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class TaskTable:
    """Columns, baselines and note of a task's table."""

    title: str
    scores: tuple[Score, ...]
    baselines: tuple[Baseline, ...]
    note: str = ""


@dataclass(frozen=True)
class Cell:
    text: str
    values: tuple[float, ...] = ()  # one per seed, as the column shows them


@dataclass(frozen=True)
class TableRow:
    title: str
    cells: tuple[Cell, ...]
    is_current: bool = False  # the current parameters


@dataclass(frozen=True)
class Table:
    kind: TaskTable
    rows: tuple[TableRow, ...]


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
CODEBOOK = tuple(
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
REFERENCE = Baseline("reference network", "reference_", ACCURACIES + MASKS + BOXES)  # a row where one was evaluated
TASK_TABLES = (
    TaskTable(
        "Classification",
        ACCURACIES + TOKENS,
        (
            Baseline("colour histogram", "histogram_", (LINEAR,)),
            Baseline("raw pixels", "pixels_", (LINEAR,)),
            Baseline("random initialisation", "random_", ACCURACIES),
            REFERENCE,
        ),
        "Accuracies are top-1.",
    ),
    TaskTable("Segmentation", MASKS, (Baseline("random initialisation", "random_", MASKS), REFERENCE)),
    TaskTable("Detection", BOXES, (Baseline("random initialisation", "random_", BOXES), REFERENCE)),
    TaskTable(
        "Perceptual agreement",
        (*AGREEMENT, IMAGES),
        (
            Baseline("pixels", "pixels_", (IMAGES,)),
            Baseline("SSIM", "ssim_", (IMAGES,)),
            Baseline("perceptual network", "perceptual_", (IMAGES,)),
        ),
        "Share of the triplets in which the moved view is found closer than the damaged one; guessing scores 50 %.",
    ),
    TaskTable(
        "Codebook",
        CODEBOOK,
        (Baseline("k-means of raw patches", "patches_", CODEBOOK),),
        "Linear probes of tokens. The Fréchet distance is in features of the experiment's own perceptual network: "
        "it compares codebooks of one network only.",
    ),
)
SHARDS = "metrics/shards.json"
FILES = tuple(dict.fromkeys([SHARDS, *(score.file for task in TASK_TABLES for score in task.scores)]))


def tabulate(
    results: Mapping[Variant, Sequence[ExperimentMetrics]], reference: Variant, current: Variant | None
) -> tuple[list[Table], list[str]]:
    """The tables of the tasks that were measured anywhere; for the other tasks a title and the reason.

    Args:
        results: metrics of each seed, by variant.
        reference: the variant whose baselines are shown.
        current: the variant that equals params.yaml, which is marked.
    """
    tables, omitted = [], []
    for kind in TASK_TABLES:
        rows = []
        for baseline in kind.baselines:
            cells = tuple(_cell(score, baseline.scores, baseline.prefix, results[reference]) for score in kind.scores)
            if baseline is not REFERENCE or any(cell.values for cell in cells):
                rows.append(TableRow(baseline.title, cells))
        for variant, experiments in results.items():
            scores = [score for score in kind.scores if variant.codebook or not score.codebook]
            cells = tuple(_cell(score, scores, "", experiments) for score in kind.scores)
            if variant.codebook or any(cell.text != "-" for cell in cells):
                rows.append(TableRow(variant.title, cells, variant == current))
        if any(cell.values for row in rows for cell in row.cells):
            tables.append(Table(kind, tuple(rows)))
        else:
            omitted.append(f"{kind.title}: {_reason(kind, results)}")
    return tables, omitted


def _cell(score: Score, scores: Sequence[Score], prefix: str, experiments: Sequence[ExperimentMetrics]) -> Cell:
    """One cell.

    Args:
        scores: the columns that the row has; in the others it is "-".
        prefix: of the key.
        experiments: the metrics of each seed.
    """
    if score not in scores:
        return Cell("-")
    files = [metrics.get(score.file, {}) for metrics in experiments]
    values = tuple(score.factor * file[prefix + score.key] for file in files if prefix + score.key in file)
    if values:
        return Cell(_mean_and_deviation(values, score.digits), values)
    return Cell("skipped" if any("skipped" in file for file in files) else "-")


def _mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Mean and, of several values, sample standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _reason(kind: TaskTable, results: Mapping[Variant, Sequence[ExperimentMetrics]]) -> str:
    every = [metrics for of_seeds in results.values() for metrics in of_seeds]
    files = [metrics.get(score.file, {}) for metrics in every for score in kind.scores]
    return next((str(file["skipped"]) for file in files if "skipped" in file), "not measured")


def markdown(table: Table, corner: str) -> str:
    """A Markdown table; `corner` is the title of its first column."""
    titles = [score.title for score in table.kind.scores]
    lines = [[corner, *titles], ["---"] * (1 + len(titles))]
    lines += [[row.title, *(cell.text for cell in row.cells)] for row in table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
