"""The result of a comparison as Markdown, for the terminal and a file, and as one HTML page that loads nothing.

Neither holds times, hosts or paths: the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from peco.core.config import Config
from peco.core.errors import PecoError
from peco.core.publishing import write_file
from peco.report.style import STYLE, page_environment
from pipelines.experiments import tables
from pipelines.experiments.dot_plot import dot_plot
from pipelines.experiments.grids import Variant
from pipelines.experiments.plan import Experiment
from pipelines.experiments.tables import BOXES, FINETUNE, MASKS, SHARDS, ExperimentMetrics, Table

TEMPLATE = Path(__file__).with_name("comparison.html.j2")


@dataclass(frozen=True)
class Heading:
    """The part of a page that is known before any result.

    Attributes:
        corner: title of the tables' first column.
        lead: one sentence: the things that are compared.
    """

    title: str
    corner: str
    lead: str


SCENES = "The built-in scenes show that the chain works; to compare codebooks, take photographs (docs/results.md)."


@dataclass(frozen=True)
class Comparison:
    """The content of a page, in its order.

    Attributes:
        summary: preset, seeds and settings.
        budget: stages, and the amount of images that each has seen.
    """

    heading: Heading
    summary: str
    budget: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def describe(
    heading: Heading,
    measured: Sequence[tuple[Experiment, ExperimentMetrics]],
    seeds: Sequence[int],
    settings: Sequence[str],
    notes: Sequence[str] = (),
) -> Comparison:
    """Put everything together. Budget and baselines are those of the current parameters if these were measured.

    Args:
        measured: experiments, at least one, with their metrics; their variants are the rows, in this order.
        settings: the user's, of all variants.
        notes: further lines for the end of the page.
    """
    results: dict[Variant, list[ExperimentMetrics]] = {}
    for experiment, metrics in measured:
        results.setdefault(experiment.variant, []).append(metrics)
    reference = next((experiment for experiment, _ in measured if experiment.is_current), measured[0][0])
    if not reference.is_current:
        title = reference.variant.title
        notes = [*notes, f"The current parameters are not in these tables: budget and baselines are those of {title}."]
    found, omitted = tables.tabulate(results, reference.variant, reference.variant if reference.is_current else None)
    chosen = [f"seeds {' '.join(map(str, seeds))}", *settings]
    limits = f" {SCENES}" if reference.config.dataset.source == "scenes" else ""
    return Comparison(
        heading,
        f"Preset {reference.config.preset}, {', '.join(chosen)}; mean ± sample standard deviation over seeds.{limits}",
        tuple(_budget(reference.config, results[reference.variant][0])),
        tuple(found),
        (*notes, *(f"No table of {reason}." for reason in omitted)),
    )


def _budget(config: Config, metrics: ExperimentMetrics) -> list[tuple[str, str]]:
    """Images that each training has seen, of those that took place."""
    net, evaluate, train = config.perceptual_net, config.evaluate, metrics[SHARDS]["train"]
    finetuned = "skipped" not in metrics[FINETUNE.file]
    trainings = (
        ("Perceptual network", net.optim, train if net.source == "train" else None),
        ("Tokenizer", config.tokenizer.optim, train if config.tokenizer.init.train else None),
        ("Pre-training", config.pretrain.optim, train),
        ("Fine-tuning", evaluate.finetune.optim, round(evaluate.finetune.labels * train) if finetuned else None),
        ("Segmentation", evaluate.segmentation.optim, metrics[MASKS[0].file].get("train_images")),
        ("Detection", evaluate.detection.optim, metrics[BOXES[0].file].get("train_images")),
    )
    return [
        (title, f"{optim.images_seen(images):,} images, epochs: {optim.epochs:g}")
        for title, optim, images in trainings
        if images is not None
    ]


def markdown(comparison: Comparison) -> str:
    """The text, one table per task."""
    heading = comparison.heading
    budget = "; ".join(f"{stage.lower()}: {seen}" for stage, seen in comparison.budget)
    parts = [f"# {heading.title}", heading.lead, comparison.summary, f"Seen in training: {budget}."]
    for table in comparison.tables:
        parts += [f"## {table.kind.title}", tables.markdown(table, heading.corner)]
        parts += [table.kind.note] if table.kind.note else []
    return "\n\n".join([*parts, *comparison.notes]) + "\n"


def html(comparison: Comparison) -> str:
    """The page. Everything but `Markup` is escaped."""
    sections = [(table, _plots(table)) for table in comparison.tables]
    template = page_environment(TEMPLATE.parent).get_template(TEMPLATE.name)
    return template.render(style=Markup(STYLE), heading=comparison.heading, found=comparison, sections=sections)


def _plots(table: Table) -> list[tuple[str, Markup]]:
    """A plot of each column that has values, with its title."""
    plots = []
    for number, score in enumerate(table.kind.scores):
        rows = [(row.title, row.cells[number], row.is_current) for row in table.rows if row.cells[number].values]
        if rows:
            label = f"{score.title}: {'; '.join(f'{title} {cell.text}' for title, cell, _ in rows)}"
            series = [(title, cell.values, is_current) for title, cell, is_current in rows]
            plots.append((score.title, Markup(dot_plot(series, label=label))))
    return plots


def write(comparison: Comparison, stem: Path) -> list[Path]:
    """Write `stem.md` and `stem.html`, each in one step; returns their paths.

    Raises:
        PecoError: they can't be written.
    """
    written = []
    for suffix, text in ((".md", markdown(comparison)), (".html", html(comparison))):
        path = stem.with_name(stem.name + suffix)
        try:
            write_file(path, text)
        except OSError as error:
            raise PecoError(f"{path}: can't be written ({error.strerror}); fix that and run again") from None
        written.append(path)
    return written
