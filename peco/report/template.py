"""The page's frame as a Jinja template. In Python, so that it counts as code that the report depends on."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2127; --soft: #59636e; --rule: #d8dde3; --wash: #f4f6f8;
  --ours: #1f5fae; --other: #9aa5b1; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --soft: #a0aab5; --rule: #333a42; --wash: #1c2026;
  --ours: #7db3f5; --other: #66717d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 1.75rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p, ul { max-width: 44rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
a { color: var(--ours); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
code { font-size: .9em; }
nav { margin: 1rem 0 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .15rem 1rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
.lead { font-size: 1.15rem; line-height: 1.5; margin: 1.25rem 0; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; margin: 1rem 0; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .45rem .5rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-size: .875rem; vertical-align: bottom; }
tr.ours th, tr.ours td { font-weight: 650; }
.bar { display: block; height: 4px; margin-top: .25rem; background: var(--wash); }
.bar i { display: block; height: 100%; background: var(--other); }
.ours .bar i { background: var(--ours); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1rem 1.5rem; margin: 1.5rem 0; }
dl.facts div { border-left: 3px solid var(--rule); padding-left: .75rem; }
dl.facts dt { color: var(--soft); font-size: .875rem; }
dl.facts dd { margin: 0; font-size: 1.35rem; line-height: 1.3; }
dl.facts dd small { display: block; font-size: .8125rem; color: var(--soft); }
.grid { display: grid; gap: 1.25rem 1.75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--cell, 17rem)), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; }
img { display: block; max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
figcaption { display: flex; justify-content: space-between; gap: .75rem; margin: 0 0 .25rem; }
figcaption b { color: var(--ink); font-weight: 600; }
.columns { display: grid; grid-template-columns: repeat(4, 1fr); margin-top: .25rem;
  font-size: .75rem; line-height: 1.25; text-align: center; color: var(--soft); }
svg.chart { display: block; width: 100%; height: auto; max-width: 26rem; }
svg.chart text { fill: var(--soft); font-size: 11px; }
svg.chart .grid { stroke: var(--rule); stroke-width: 1; }
svg.chart .axis { stroke: var(--soft); stroke-width: 1; }
svg.chart .line { fill: none; stroke: var(--ours); stroke-width: 1.75; stroke-linejoin: round; }
svg.chart .area { fill: var(--ours); opacity: .18; }
svg.chart .point { fill: var(--ours); }
svg.chart .reference { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 3; }
table.scores td { width: 22%; }
pre { white-space: pre-wrap; font-size: .8125rem; line-height: 1.45; padding: 1rem; margin: 1rem 0; column-gap: 2rem;
  background: var(--wash); }
@media (min-width: 56rem) { pre { columns: 2; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --wash: #f4f4f4;
    --ours: #1f5fae; --other: #999; }
  @page { margin: 15mm; }
  html { font-size: 12px; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  .grid { grid-template-columns: repeat(var(--paper-columns, 3), 1fr); gap: .75rem 1rem; }
  pre { columns: 3; column-gap: 1rem; font-size: 6.5pt; background: none; padding: 0; }
  table, dl.facts div, tr { break-inside: avoid; }
  .bar, .bar i, svg, img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>PeCo report: {{ preset }}</title>
<style>"""
    + STYLE
    + """</style>
</head>
<body>
{% macro score(value) %}
<td>{{ "%.1f"|format(100 * value) }}<span class="bar"><i style="width:{{ "%.1f"|format(100 * value) }}%"></i></span></td>
{% endmacro %}
{% macro figure(name, note, picture, below="") %}
<figure>
{% if name or note %}
<figcaption><b>{{ name }}</b><span>{{ note }}</span></figcaption>
{% endif %}
{{ picture }}
{{ below }}
</figure>
{% endmacro %}
<header>
<h1>PeCo report</h1>
<p class="soft">{{ description }}</p>
<nav aria-label="Sections">
{% for task in tasks %}<a href="#{{ task.key }}-task">{{ task.title }}</a> {% endfor %}
<a href="#data">Data</a> <a href="#reconstructions">Reconstructions</a> <a href="#codebook">Codebook</a>
<a href="#masked">Masked tokens</a> <a href="#curves">Curves</a> <a href="#perceptual">Perceptual network</a>
<a href="#parameters">Parameters</a>
</nav>
</header>
<main>

<section aria-labelledby="summary">
<h2 id="summary">What came out</h2>
<p class="lead">{{ verdict }}</p>
<table class="scores">
<caption>Accuracy in % on {{ scored_on }}. The protocol is the same for every row; every choice was made on a part of train that
was held out.</caption>
<thead><tr><th scope="col">Features</th>{% for name in evaluations %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.ours %} class="ours"{% endif %}><th scope="row">{{ row.name }}</th>
{% for value in row.values %}
{% if value is none %}
<td class="soft">{{ states[loop.index0] }}</td>
{% else %}
{{ score(value) }}
{%- endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
{% if skipped %}
<ul>
{% for reason in skipped %}
<li>{{ reason }}</li>
{% endfor %}
</ul>
{% endif %}
{% if notes %}
<p class="soft">{{ notes|join(" ") }}</p>
{% endif %}
<dl class="facts">
{% for name, value, note in facts %}
<div><dt>{{ name }}</dt><dd>{{ value }}<small>{{ note }}</small></dd></div>
{% endfor %}
</dl>
</section>

{% for task in tasks %}
<section aria-labelledby="{{ task.key }}-task">
<h2 id="{{ task.key }}-task">{{ task.title }}</h2>
<p>{{ task.note }}</p>
{% if task.rows %}
<table>
<thead><tr><th scope="col"></th>{% for name in task.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in task.rows %}
<tr{% if row.ours %} class="ours"{% endif %}><th scope="row">{{ row.name }}</th>
{% for cell in row.cells %}
<td>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% if task.pictures %}
<div class="grid" style="--cell:20rem; --paper-columns:2">
{% for caption, picture in task.pictures %}
{{ figure(caption, "", picture) }}
{%- endfor %}
</div>
{% endif %}
</section>

{% endfor %}
<section aria-labelledby="data">
<h2 id="data">The data at a glance</h2>
<table>
<caption>Images by split. {{ "No" if rejected == 0 else rejected|number }} unreadable
image{{ " was" if rejected == 1 else "s were" }} left out.</caption>
<thead>
<tr><th scope="col">Split</th><th scope="col">Images</th><th scope="col">Classes</th><th scope="col">Labels</th></tr>
</thead>
<tbody>
{% for name, split in splits.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ split.samples|number }}</td><td>{{ split.classes|length|number }}</td>
<td>{{ "all" if split.labelled else ("some" if split.classes else "none") }}</td></tr>
{% endfor %}
</tbody>
</table>
{% if spread %}
<p class="soft">{{ spread }}</p>
{% endif %}
<div class="grid">
{% for sheet in sheets %}
{{ figure(sheet.name, sheet.note, sheet.picture) }}
{%- endfor %}
</div>
</section>

<section aria-labelledby="reconstructions">
<h2 id="reconstructions">Reconstructions</h2>
<p>Images of {{ split }} (left) and what the decoder makes of their tokens (right). {{ reconstruction_note }}</p>
<div class="grid" style="--cell:min(45%, 12rem); --paper-columns:4">
{% for name, psnr, picture in reconstructions %}
{{ figure(name, "%.1f dB"|format(psnr), picture) }}
{%- endfor %}
</div>
</section>

<section aria-labelledby="codebook">
<h2 id="codebook">Codebook</h2>
<p>{{ codebook_note }}</p>
<figure>
<figcaption>Share of the tokens that each code takes, in %, the most frequent code first</figcaption>
{{ code_chart }}
</figure>
<h3>What some codes stand for</h3>
<p class="soft">Patches of {{ patch }} &times; {{ patch }} pixels that became the same token. The tokenizer saw what surrounds
them, too.</p>
<div class="grid">
{% for entry, picture in gallery %}
{{ figure("code %d"|format(entry.code), "rank %d, %d patches"|format(entry.rank, entry.count), picture) }}
{%- endfor %}
</div>
</section>

<section aria-labelledby="masked">
<h2 id="masked">{{ masked.title }}</h2>
<p>{{ masked.text }}</p>
<div class="grid" style="--cell:24rem; --paper-columns:2">
{% set columns %}
<div class="columns" aria-hidden="true">
{% for column in masked.columns %}
<span>{{ column }}</span>
{%- endfor %}
</div>
{% endset %}
{% for name, caption, picture in masked.paintings %}
{{ figure(name, caption, picture, columns) }}
{%- endfor %}
</div>
</section>

<section aria-labelledby="curves">
<h2 id="curves">Curves</h2>
{% for stage, curves in stages %}
<h3>{{ stage }}</h3>
<div class="grid" style="--cell:16rem">
{% for curve in curves %}
{{ figure(curve.title, "last %s"|format(curve.last), curve.chart) }}
{%- endfor %}
</div>
{% else %}
<p>No stage has published curves.</p>
{% endfor %}
</section>

<section aria-labelledby="perceptual">
<h2 id="perceptual">Perceptual network</h2>
<p>{{ perceptual_note }}</p>
{% if perceptual %}
<table class="scores">
<caption>kNN accuracy of its features in % on val: do they tell more than those of an untrained network?</caption>
<thead><tr><th scope="col">Features</th><th scope="col">kNN</th></tr></thead>
<tbody>
{% for name, value in perceptual %}
<tr{% if loop.first %} class="ours"{% endif %}><th scope="row">{{ name }}</th>
{{ score(value) }}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
</section>

<section aria-labelledby="parameters">
<h2 id="parameters">Parameters and versions</h2>
<p class="soft">{% for name, version in versions %}{{ name }} {{ version }}{{ "" if loop.last else ", " }}{% endfor %}.
The parameters are those of <code>params.yaml</code>, but for <code>resources</code>, which say what hardware was granted.</p>
<pre>{{ params_text }}</pre>
</section>

</main>
</body>
</html>
"""
)
