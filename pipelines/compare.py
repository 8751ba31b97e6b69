"""`make compare`: PeCo, pixel codebook and random initialisation over the same seeds, in one table.

Each variant and seed is a DVC experiment, run in a folder of its own, so the workspace is left alone and what an earlier run has
computed is taken from the run-cache. The experiments stay: `dvc exp show` lists them, `dvc exp apply` brings one back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco import config
from peco.errors import PecoError
from pipelines.repro import run_dvc

VARIANTS = {"peco": [], "pixel": ["tokenizer.perceptual.weight=0"]}
LABELS = {"random": "random initialisation", "pixel": "pixel codebook", "peco": "PeCo"}


@dataclass(frozen=True)
class Score:
    """One column of the table: where a number stands in the metrics."""

    title: str
    file: str
    key: str


SCORES = (
    Score("kNN", "metrics/evaluate/knn.json", "accuracy"),
    Score("linear", "metrics/evaluate/linear.json", "accuracy"),
    Score("fine-tuned", "metrics/evaluate/finetune.json", "accuracy"),
)


def experiment_name(preset: str, variant: str, seed: int) -> str:
    """Name of the DVC experiment of a variant and seed."""
    return f"compare-{preset.replace('_', '-')}-{variant}-{seed}"


def run_experiment(name: str, settings: list[str]) -> None:
    """Run one experiment in a temporary folder.

    Raises:
        PecoError: it failed; the stage's own line stands above.
    """
    arguments = ["exp", "run", "--temp", "--force", "--name", name]
    for setting in settings:
        arguments += ["-S", setting]
    if status := run_dvc(arguments):
        raise PecoError(f"experiment {name} ended with status {status}; run `make compare` again to go on from there")


def read_metrics(name: str) -> dict[str, Any]:
    """The metrics of an experiment by file.

    Raises:
        PecoError: DVC doesn't know the experiment.
    """
    command = [sys.executable, "-m", "dvc", "metrics", "show", "--json", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise PecoError(f"no metrics of experiment {name}: {result.stderr.strip().splitlines()[-1]}")
    revision = json.loads(result.stdout)[name]
    return {path: entry["data"] for path, entry in revision["data"].items() if "data" in entry}


def tabulate(results: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: a row a variant, mean and sample standard deviation over seeds in percent.

    Args:
        results: metrics (as `read_metrics` gives them) of each seed, by variant.
    """
    rows: dict[str, list[str]] = {label: [label] for label in LABELS}
    for score in SCORES:
        found: dict[str, list[float]] = {label: [] for label in LABELS}
        for variant, seeds in results.items():
            for metrics in seeds:
                values = metrics.get(score.file, {})
                if score.key not in values:
                    continue
                found[variant].append(values[score.key])
                if variant == "peco":
                    found["random"].append(values[f"random_{score.key}"])
        for label, values in found.items():
            rows[label].append(spread(values))
    header = ["backbone", *(s.title for s in SCORES)]
    lines = [header, ["---"] * len(header), *([LABELS[row[0]], *row[1:]] for row in rows.values())]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation of fractions, in percent."""
    if not values:
        return "skipped"
    mean = 100 * statistics.mean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters to change in all of them")
    args = parser.parse_args(argv)
    # Experiments run in folders of their own; their working files are kept beside those of this one, so they resume too.
    os.environ.setdefault("PECO_WORK", str(Path(".work").resolve()))
    try:
        preset = config.load().preset
        names = {v: [experiment_name(preset, v, seed) for seed in args.seeds] for v in VARIANTS}
        for variant, settings in VARIANTS.items():
            for name, seed in zip(names[variant], args.seeds, strict=True):
                print(f"== {name}", flush=True)
                run_experiment(name, [f"seed={seed}", *settings, *args.set])
        table = tabulate({variant: [read_metrics(name) for name in names[variant]] for variant in VARIANTS})
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"\nPreset {preset}, seeds {' '.join(map(str, args.seeds))}, top-1 accuracy in %, mean ± standard deviation:\n"
    )
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
