"""The output of a step in Kubeflow: its numbers, and a page with its curves, numbers and parameters."""

from __future__ import annotations

import contextlib
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peco.report.charts import line_chart
from peco.report.style import STYLE
from pipelines.workflow.graph import SCORES, Stage, leaves

# Metrics that compare runs, by their last part; the others are choices, counts and details, which `dvc exp diff` shows.
HEADLINES = (
    "accuracy", "random_accuracy", "pixels_accuracy", "knn_accuracy", "miou", "random_miou", "box_ap", "random_box_ap", "mask_ap",
    "reference_accuracy", "reference_miou", "reference_box_ap", "tokens_embedded_accuracy", "perceptual_accuracy",
    "val_psnr", "val_perceptual", "usage", "perplexity", "psnr", "ssim", "frechet", "loss",
)  # fmt: skip


def numbers(stage: Stage, folder: Path) -> dict[str, float]:
    """Scalars of the stage's metrics; a nested one is named `a.b`. Other JSON that a user's own stage writes is passed over."""
    found: dict[str, Any] = {}
    for out in stage.outs:
        if out.endswith(".json") and not out.startswith(f"{SCORES}/"):
            with contextlib.suppress(OSError, ValueError):
                values = json.loads((folder / out).read_text(encoding="utf-8"))
                found |= leaves(values) if isinstance(values, dict) else {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def headlines(by_stage: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The numbers by which runs are compared, with full names such as `linear.accuracy`, in the order of the stages.

    Of a stage that has none of the known ones, all are taken.
    """
    found: dict[str, float] = {}
    for stage, own in by_stage.items():
        known = {name: value for name, value in own.items() if name.rpartition(".")[2] in HEADLINES}
        short = stage.partition("@")[2] or stage
        found |= {f"{short}.{name}": value for name, value in (known or own).items()}
    return found


def has_page(stage: Stage) -> bool:
    """True for a stage that writes HTML or curves."""
    return any(out.endswith(".html") or out.startswith("metrics/plots/") for out in stage.outs)


def page(stage: Stage, folder: Path, scalars: Mapping[str, float], parameters: Mapping[str, Any]) -> str:
    """The HTML page that the stage writes, or else one with its curves, numbers and parameters."""
    for out in stage.outs:
        if out.endswith(".html"):
            return (folder / out).read_text(encoding="utf-8")
    figures = []
    for file in sorted(file for out in stage.outs for file in (folder / out).glob("*.tsv")):
        header, *rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        points = [(float(row[0]), float(row[1])) for row in rows]
        if any(math.isfinite(y) for _, y in points):
            chart = line_chart(points, label=f"{stage.name}: {header[1]}", x_label=header[0])
            figures.append(f"<figure><figcaption><b>{html.escape(header[1])}</b></figcaption>{chart}</figure>")
    title = html.escape(stage.name)
    tables = [
        _table({name: f"{value:.6g}" for name, value in scalars.items()}),
        _table({name: json.dumps(value) for name, value in leaves(parameters).items()}),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f'<body><h1>{title}</h1><div class="grid">{"".join(figures)}</div>{"".join(tables)}</body></html>\n'
    )


def _table(cells: Mapping[str, str]) -> str:
    rows = [f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in cells.items()]
    return f"<table>{''.join(rows)}</table>"
