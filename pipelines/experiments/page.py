"""What a comparison found, as Markdown for the terminal and a file, and as one HTML page that needs nothing else.

Neither holds times, hosts or paths: the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from peco.core.config import Config
from peco.core.errors import PecoError
from peco.core.publishing import write_file
from peco.report.template import STYLE
from pipelines.experiments import tables
from pipelines.experiments.dot_plot import dot_plot
from pipelines.experiments.grids import Point
from pipelines.experiments.tables import BOXES, FINETUNE, MASKS, SHARDS, Metrics, Table


@dataclass(frozen=True)
class Comparison:
    """What is told, in the order in which it is told."""

    title: str
    corner: str  # title of the tables' first column
    lead: str  # what is compared
    summary: str  # preset, seeds and settings
    budget: tuple[tuple[str, str], ...]  # stages, and how much of what each has seen
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def describe(
    title: str,
    corner: str,
    lead: str,
    config: Config,
    seeds: Sequence[int],
    settings: Sequence[str],
    results: Mapping[Point, Sequence[Metrics]],
    beside: Point,
    ours: Point | None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Put everything together.

    Args:
        config: the parameters of `beside`.
        settings: the user's, of all points.
        results: metrics of each seed, by point.
        beside: the point whose budget and baselines are shown.
        ours: the point that stands in params.yaml, which is marked; nothing where it is not among them.
        notes: what else is to be said.
    """
    found, left_out = tables.tabulate(results, beside, ours)
    chosen = [f"seeds {' '.join(map(str, seeds))}", *settings]
    return Comparison(
        title,
        corner,
        lead,
        f"Preset {config.preset}, {', '.join(chosen)}; mean ± sample standard deviation over seeds.",
        tuple(_budget(config, results[beside][0])),
        tuple(found),
        (*notes, *(f"No table of {reason}." for reason in left_out)),
    )


def _budget(config: Config, metrics: Metrics) -> list[tuple[str, str]]:
    """Images that each training has seen, of those that took place."""
    net, evaluate, train = config.perceptual_net, config.evaluate, metrics[SHARDS]["train"]
    finetuned = "skipped" not in metrics[FINETUNE.file]
    trainings = (
        ("Perceptual network", net.optim, train if net.source == "train" else None),
        ("Tokenizer", config.tokenizer.optim, train),
        ("Pre-training", config.pretrain.optim, train),
        ("Fine-tuning", evaluate.finetune.optim, train if finetuned else None),
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
    budget = "; ".join(f"{stage.lower()}: {seen}" for stage, seen in comparison.budget)
    parts = [f"# {comparison.title}", comparison.lead, comparison.summary, f"Seen in training: {budget}."]
    for table in comparison.tables:
        parts += [f"## {table.task.title}", tables.markdown(table, comparison.corner)]
        parts += [table.task.note] if table.task.note else []
    return "\n\n".join([*parts, *comparison.notes]) + "\n"


def html(comparison: Comparison) -> str:
    """The page. Everything but `Markup` is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections = [(table, _plots(table)) for table in comparison.tables]
    return environment.from_string(PAGE).render(found=comparison, sections=sections)


def _plots(table: Table) -> list[tuple[str, Markup]]:
    """A plot of each column that has values, with its title."""
    plots = []
    for number, score in enumerate(table.task.scores):
        rows = [(row.title, row.cells[number].values, row.ours) for row in table.rows if row.cells[number].values]
        if rows:
            told = "; ".join(f"{row.title} {row.cells[number].text}" for row in table.rows if row.cells[number].values)
            plots.append((score.title, Markup(dot_plot(rows, label=f"{score.title}: {told}"))))
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


PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ found.title }}</title>
<style>"""
    + STYLE
    + """
.wide { overflow-x: auto; }
.wide table { max-width: none; }
td span { white-space: nowrap; }
@media (max-width: 34rem) { .wide th, .wide td { padding: .35rem .2rem; font-size: .75rem; } }
svg.chart .dot { fill: var(--other); fill-opacity: .7; }
svg.chart .mean { stroke: var(--soft); stroke-width: 2; }
svg.chart .ours .dot { fill: var(--ours); }
svg.chart .ours .mean { stroke: var(--ours); }
svg.chart .ours text { fill: var(--ink); font-weight: 650; }
dl.facts dd { font-size: 1rem; }
</style>
</head>
<body>
<header>
<h1>{{ found.title }}</h1>
<p class="lead">{{ found.lead }}</p>
<p class="soft">{{ found.summary }} In the plots a dot is a seed and the bar their mean. Seen in training:</p>
</header>
<main>
<dl class="facts">
{% for stage, seen in found.budget %}
<div><dt>{{ stage }}</dt><dd>{{ seen }}</dd></div>
{% endfor %}
</dl>
{% for table, plots in sections %}
<section>
<h2>{{ table.task.title }}</h2>
<div class="wide">
<table>
<thead><tr><th scope="col">{{ found.corner }}</th>
{% for score in table.task.scores %}
<th scope="col">{{ score.title }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr{% if row.ours %} class="ours"{% endif %}><th scope="row">{{ row.title }}</th>
{% for cell in row.cells %}
{% set mean, _, spread = cell.text.partition(" ± ") %}
<td>{{ mean }}{% if spread %} <span>± {{ spread }}</span>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table.task.note %}
<p class="soft">{{ table.task.note }}</p>
{% endif %}
<div class="grid">
{% for title, plot in plots %}
<figure><figcaption>{{ title }}</figcaption>{{ plot }}</figure>
{% endfor %}
</div>
</section>
{% endfor %}
{% if found.notes %}
<section>
<h2>What is missing</h2>
<ul>
{% for note in found.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</section>
{% endif %}
</main>
</body>
</html>
"""
)
