"""Builds the page of the report from metrics files, curves, pictures and the template."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from peco.core.errors import PecoError
from peco.data.shards import ShardSet
from peco.report import charts
from peco.report.figures import Codes, data_uri, strip
from peco.report.style import STYLE, page_environment

MetricsByFile = Mapping[str, Mapping[str, Any]]  # by name of the metrics file without suffix, `evaluate/knn`

EVALUATIONS = (("kNN", "evaluate/knn"), ("Linear probe", "evaluate/linear"), ("Fine-tuned", "evaluate/finetune"))
PHRASES = {"kNN": "in kNN", "Linear probe": "in the linear probe", "Fine-tuned": "fine-tuned"}
STAGES = {"perceptual_net": "Perceptual network", "tokenizer": "Tokenizer", "pretrain": "Pre-training"}
LEADING = ("loss", "accuracy", "usage", "perplexity")  # curves that come first
SHARES = ("accuracy", "usage")  # curves of values from 0 to 1, shown in percent
FROM_ZERO = (*SHARES, "perplexity", "lr", "grad_norm")
TEMPLATE = Path(__file__).with_name("report.html.j2")
MINUS, DASH, TIMES, NARROW_SPACE = "\u2212", "\u2013", "\u00d7", "\u202f"


@dataclass(frozen=True)
class AccuracyRow:
    """A row of the accuracy table: the features, and their accuracy in each evaluation (None: not measured)."""

    name: str
    values: tuple[float | None, ...]
    emphasized: bool = False


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: some images of a split, with a name and a note on them."""

    name: str
    note: str
    picture: Markup


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """Read all metrics files below a folder, by name without suffix.

    Raises:
        PecoError: one is damaged.
    """
    found = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            found[path.relative_to(folder).with_suffix("").as_posix()] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise PecoError(f"{path}: not valid JSON; run the stage that writes it again") from None
    return found


def evaluation_rows(metrics: MetricsByFile, backbones: Mapping[str, str]) -> list[AccuracyRow]:
    """Rows of the backbones and of image features; rows without any score are left out, except the first two.

    Args:
        metrics: by file.
        backbones: their names by the prefix of their metrics, the pre-trained one first.
    """
    kinds = {**backbones, "histogram_": "Colour histogram", "pixels_": "Raw pixels"}
    rows = [
        AccuracyRow(
            name,
            tuple(metrics.get(key, {}).get(f"{prefix}accuracy") for _, key in EVALUATIONS),
            emphasized=not prefix,
        )
        for prefix, name in kinds.items()
    ]
    return rows[:2] + [row for row in rows[2:] if any(value is not None for value in row.values)]


def verdict(rows: Sequence[AccuracyRow]) -> str:
    """Summary of the results in a sentence."""
    gains = [
        f"{points(value - baseline)} points {PHRASES[name]}"
        for (name, _), value, baseline in zip(EVALUATIONS, rows[0].values, rows[1].values, strict=True)
        if value is not None and baseline is not None
    ]
    if not gains:
        return "No evaluation was run on this data, so it is not known how well the backbone transfers."
    return f"{rows[0].name} against the same network at random initialisation: {joined(gains)}."


def state(values: Mapping[str, Any]) -> str:
    """The cell of an evaluation without a score."""
    return next((word for word in ("failed", "skipped") if word in values), DASH)


def skipped(metrics: MetricsByFile) -> list[str]:
    """Reasons why evaluations are missing."""
    reasons = []
    for name, key in EVALUATIONS:
        if key not in metrics:
            reasons.append(f"{name}: no result; the stage evaluate@{key.partition('/')[2]} has not run.")
        elif "failed" in metrics[key]:
            reasons.append(f"{name}: failed: {metrics[key]['failed']}")
        elif "skipped" in metrics[key]:
            reasons.append(f"{name}: skipped, since {metrics[key]['skipped']}.")
    return reasons


def choices(metrics: MetricsByFile) -> list[str]:
    """Choices on the holdout of train, as sentences."""
    notes = []
    for name, key, setting, form in (
        ("kNN", "evaluate/knn", "neighbors", "{} neighbours"),
        ("Linear probe", "evaluate/linear", "l2", "L2 {:g}"),
    ):
        found = metrics.get(key, {})
        if "block" in found and "random_block" in found:
            chosen, chosen_random = (
                f"{block_name(found[f'{prefix}block'])}, {form.format(found[f'{prefix}{setting}'])}"
                for prefix in ("", "random_")
            )
            notes.append(f"{name}: {chosen} (random initialisation: {chosen_random}).")
    return notes


def block_name(block: object) -> str:
    """Name of a block in a sentence."""
    return f"block {block}" if str(block).isdigit() else f"the final {block}"


def standard_error(rows: Sequence[AccuracyRow], images: int) -> float | None:
    """Largest binomial standard error of the backbone's accuracies, each measured on `images` images."""
    found = [value for value in rows[0].values if value is not None]
    return max(math.sqrt(value * (1 - value) / images) for value in found) if found and images else None


def read_curves(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Draw the curves below a folder, by stage in the order of the workflow.

    Raises:
        PecoError: a file is damaged.
    """
    order = list(STAGES)
    stages = sorted(
        (path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else [],
        key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name),
    )
    found = []
    for stage in stages:
        files = {path.relative_to(stage).with_suffix("").as_posix(): path for path in stage.rglob("*.tsv")}
        names = sorted(files, key=lambda name: (LEADING.index(name) if name in LEADING else len(LEADING), name))
        curves = [curve for name in names if (curve := read_curve(files[name], name, stage.name))]
        if curves:
            found.append((STAGES.get(stage.name, stage.name), curves))
    return found


def read_curve(path: Path, name: str, stage: str) -> dict[str, Any] | None:
    """Draw a curve: title with name and unit, last value, chart; None if the file has no finite value.

    Raises:
        PecoError: the file is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                (float(row["step"]), float(row[name.rpartition("/")[2]]))
                for row in csv.DictReader(file, delimiter="\t")
            ]
    except (KeyError, TypeError, ValueError):
        raise PecoError(f"{path}: not a curve (columns step and {name}); run the stage {stage} again") from None
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return None
    share = name in SHARES
    if share:
        rows = [(step, 100 * value) for step, value in rows]
    unit = "%" if share else "codes" if name == "perplexity" else ""
    (first_step, first), (last_step, last) = rows[0], rows[-1]
    subject = f"{stage}: {name}{f' in {unit}' if unit else ''}"
    label = f"{subject}, {first:.4g} at step {first_step:.0f}, {last:.4g} at step {last_step:.0f}"
    return {
        "title": f"{name}, {unit}" if unit else name,
        "last": f"{last:.4g}",
        "chart": Markup(charts.line_chart(rows, label=label, zero=name in FROM_ZERO)),
    }


def code_chart(codes: Codes) -> Markup:
    """Chart of the codes' frequencies in descending order, with equal use for comparison."""
    share_K = np.sort(codes.histogram_K)[::-1] / codes.histogram_K.sum() * 100
    equal = 100 / len(share_K)
    label = f"Share of tokens by code: from {share_K[0]:.3g} % down to {share_K[-1]:.3g} %; equal use would be {equal:.3g} %"
    series = [(float(rank), float(share)) for rank, share in enumerate(share_K, start=1)]
    return Markup(
        charts.line_chart(
            series, label=label, x_label="code, by rank", zero=True, area=True, reference=(equal, "equal use")
        )
    )


def class_sheets(
    shards: ShardSet, pictures: Mapping[int, Sequence[np.ndarray]], counts: Mapping[str, np.ndarray]
) -> list[Sheet]:
    """Make contact sheets by class (label -1: images without a label).

    Args:
        shards: split of the pictures.
        pictures: by label.
        counts: number of images of each class, by split.
    """
    sheets = []
    for label, images in pictures.items():
        name = shards.classes[label] if label >= 0 else ""
        note = (
            " · ".join(f"{number(int(count[label]))} {split}" for split, count in counts.items()) if label >= 0 else ""
        )
        alt = f"{len(images)} images of {shards.split}" + (f" of class {name}" if name else "")
        sheets.append(Sheet(name, note, picture(images, alt)))
    return sheets


def picture(images: Sequence[np.ndarray], alt: str) -> Markup:
    """Images side by side as one `<img>`. Small images are enlarged without smoothing."""
    sheet = strip(images)
    kind = ' class="pixels"' if images[0].shape[0] < 128 else ""
    return Markup('<img{} src="{}" width="{}" height="{}" alt="{}">').format(
        Markup(kind), data_uri(sheet), sheet.width, sheet.height, alt
    )


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters as YAML, short lists and groups on one line."""
    return yaml.safe_dump(params, sort_keys=False, default_flow_style=None, width=50, allow_unicode=True)


def render(**context: Any) -> str:
    """Render the page. Everything except `Markup` is escaped."""
    environment = page_environment(TEMPLATE.parent)
    environment.filters |= {"percent": percent, "number": number, "points": points}
    return environment.get_template(TEMPLATE.name).render(style=Markup(STYLE), **context)


def percent(value: float) -> str:
    """A share as text with one decimal."""
    return f"{100 * value:.1f}{NARROW_SPACE}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{abs(100 * value):.1f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def number(value: int) -> str:
    """An integer with thousands separators."""
    return f"{value:,}"


def joined(parts: Sequence[str]) -> str:
    """A list as part of a sentence."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
