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


@dataclass(frozen=True)
class Score:
    """One column of the table: where a number stands in the metrics, and how it is shown."""

    title: str
    file: str
    key: str
    factor: float = 100
    digits: int = 1


KNN = Score("kNN, %", "metrics/evaluate/knn.json", "accuracy")
LINEAR = Score("linear, %", "metrics/evaluate/linear.json", "accuracy")
FINETUNE = Score("fine-tuned, %", "metrics/evaluate/finetune.json", "accuracy")
ACCURACIES = (KNN, LINEAR, FINETUNE)
CODEBOOK = (
    Score("codes used, %", "metrics/tokens.json", "usage"),
    Score("perplexity", "metrics/tokens.json", "perplexity", factor=1),
    Score("PSNR, dB", "metrics/tokenizer.json", "val_psnr", factor=1, digits=2),
)


@dataclass(frozen=True)
class Row:
    """One row: the variant whose metrics it is read from, the columns it has, and what stands before their keys."""

    title: str
    variant: str
    scores: tuple[Score, ...]
    prefix: str = ""


ROWS = (
    Row("colour histogram", "peco", (LINEAR,), "histogram_"),
    Row("raw pixels", "peco", (LINEAR,), "pixels_"),
    Row("random initialisation", "peco", ACCURACIES, "random_"),
    Row("pixel codebook", "pixel", ACCURACIES + CODEBOOK),
    Row("PeCo", "peco", ACCURACIES + CODEBOOK),
)


def experiment_name(preset: str, variant: str, seed: int) -> str:
    """Name of the DVC experiment of a variant and seed."""
    return f"compare-{preset.replace('_', '-')}-{variant}-{seed}"


def run_experiment(name: str, settings: list[str]) -> None:
    """Run one experiment in a temporary folder; one of the same name on this commit is replaced.

    Stages that ran before, in this experiment or another, come from the run-cache. (`dvc exp run --force` would replace
    the experiment too, but run all of its stages again.)

    Raises:
        PecoError: it failed; the stage's own line stands above.
    """
    if name in _dvc("exp", "list", "--name-only").split():
        _dvc("exp", "remove", name)
    arguments = ["exp", "run", "--temp", "--name", name]
    for setting in settings:
        arguments += ["-S", setting]
    if status := run_dvc(arguments):
        raise PecoError(f"experiment {name} ended with status {status}; run `make compare` again to go on from there")


def _dvc(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = [line for line in result.stderr.splitlines() if line.strip()]
        raise PecoError(f"dvc {' '.join(arguments)}: {reason[0] if reason else 'failed'}")
    return result.stdout


def check_input(path: str) -> None:
    """Check that experiments, which see what Git knows, will see the tracked input.

    Raises:
        PecoError: Git doesn't know it.
    """
    command = ["git", "ls-files", "--others", "--exclude-standard", "--", path, f"{path}.dvc"]
    unknown = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    if unknown:
        raise PecoError(f"{unknown}: not in Git, so experiments can't see it; run `git add {unknown}` first")


def check_contrast(parameters: config.Config, settings: list[str]) -> None:
    """Check that the variants differ: what stands is PeCo's side, and no setting undoes the difference.

    Raises:
        PecoError: both would be the pixel codebook, or both the same one.
    """
    key = "tokenizer.perceptual.weight"
    if any(setting.startswith(f"{key}=") for setting in settings):
        raise PecoError(f"--set {key}: not allowed, since it is what the variants differ in; change it in params.yaml")
    if parameters.tokenizer.perceptual.weight == 0:
        raise PecoError(
            f"{key}: 0 in params.yaml, so PeCo would be the pixel codebook too; `git checkout params.yaml` or set it"
        )


def read_metrics(name: str) -> dict[str, Any]:
    """The metrics of an experiment by file: those that the table needs.

    Raises:
        PecoError: DVC doesn't know the experiment, or a file is missing or unreadable.
    """
    import dvc.api
    from dvc.exceptions import DvcException

    metrics = {}
    for path in {score.file: None for score in ACCURACIES + CODEBOOK}:
        try:
            metrics[path] = json.loads(dvc.api.read(path, rev=name))
        except (DvcException, OSError, ValueError) as error:
            raise PecoError(f"experiment {name}: can't read {path}: {' '.join(str(error).split())}") from None
    return metrics


def tabulate(results: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: a row a backbone or baseline, mean and sample standard deviation over seeds.

    Args:
        results: metrics (as `read_metrics` gives them) of each seed, by variant.
    """
    columns = ACCURACIES + CODEBOOK
    lines = [["backbone", *(score.title for score in columns)], ["---"] * (1 + len(columns))]
    for row in ROWS:
        cells = [row.title]
        for score in columns:
            key = row.prefix + score.key
            values = [seed[score.file][key] for seed in results[row.variant] if key in seed.get(score.file, {})]
            # An accuracy that should be there was skipped, for want of labels; tokens computed online have no statistics.
            absent = "skipped" if score in ACCURACIES and score in row.scores else "-"
            cells.append(spread(values, score) if values and score in row.scores else absent)
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spread(values: list[float], score: Score) -> str:
    """Mean and, of several values, sample standard deviation, as the column shows them."""
    values = [score.factor * value for value in values]
    mean = f"{statistics.mean(values):.{score.digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{score.digits}f}" if len(values) > 1 else mean


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters to change in all of them")
    args = parser.parse_args(argv)
    seeds = list(dict.fromkeys(args.seeds))
    # Experiments run in folders of their own; their working files are kept beside those of this one, so they resume too.
    os.environ["PECO_WORK"] = str(Path(os.environ.get("PECO_WORK") or ".work").resolve())
    try:
        parameters = config.load()
        preset = parameters.preset
        check_input(parameters.dataset.path)
        check_contrast(parameters, args.set)
        names = {v: [experiment_name(preset, v, seed) for seed in seeds] for v in VARIANTS}
        runs = [
            (name, [f"seed={seed}", *settings, *args.set])
            for variant, settings in VARIANTS.items()
            for name, seed in zip(names[variant], seeds, strict=True)
        ]
        for number, (name, settings) in enumerate(runs, 1):
            print(f"== {number} of {len(runs)}: {name}", flush=True)
            run_experiment(name, settings)
        table = tabulate({variant: [read_metrics(name) for name in names[variant]] for variant in VARIANTS})
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nPreset {preset}, seeds {' '.join(map(str, seeds))}, mean ± standard deviation (accuracies are top-1):\n")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
