"""`make compare`: experiments are repeated without repeating their work, and their metrics become one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peco import config
from peco.errors import PecoError
from pipelines import compare
from pipelines.params import compose_params

ROOT = Path(__file__).parents[1]

# Writes what the table needs, and notes beside the repository that it ran.
STAGE = """\
import json, pathlib, sys, yaml
seed = yaml.safe_load(open("params.yaml"))["seed"]
pathlib.Path(sys.argv[1]).open("a").write(f"{seed}\\n")
for file, values in json.loads(pathlib.Path("values.json").read_text()).items():
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(file).write_text(json.dumps({k: v + seed / 100 for k, v in values.items()}))
"""
FILES = {
    "metrics/evaluate/knn.json": {"accuracy": 0.5, "random_accuracy": 0.25},
    "metrics/evaluate/linear.json": {
        "accuracy": 0.625, "random_accuracy": 0.375, "pixels_accuracy": 0.3, "histogram_accuracy": 0.2,
    },
    "metrics/evaluate/finetune.json": {"accuracy": 0.75, "random_accuracy": 0.5},
    "metrics/tokens.json": {"usage": 0.9375, "perplexity": 100.25},
    "metrics/tokenizer.json": {"val_psnr": 21.5},
}  # fmt: skip


def shifted(by: float) -> dict[str, Any]:
    return {file: {key: value + by for key, value in values.items()} for file, values in FILES.items()}


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_table_has_every_baseline_and_both_codebooks() -> None:
    table = cells(compare.tabulate({"peco": [shifted(0), shifted(0.02)], "pixel": [shifted(-0.1)]}))
    assert list(table) == [
        "backbone", "---", "colour histogram", "raw pixels", "random initialisation", "pixel codebook", "PeCo",
    ]  # fmt: skip
    assert table["backbone"] == [
        "kNN, %", "linear, %", "fine-tuned, %", "codes used, %", "perplexity", "PSNR, dB",
    ]  # fmt: skip
    assert table["PeCo"] == ["51.0 ± 1.4", "63.5 ± 1.4", "76.0 ± 1.4", "94.8 ± 1.4", "100.3 ± 0.0", "21.51 ± 0.01"]
    assert table["pixel codebook"] == ["40.0", "52.5", "65.0", "83.8", "100.2", "21.40"]
    assert table["random initialisation"] == ["26.0 ± 1.4", "38.5 ± 1.4", "51.0 ± 1.4", "-", "-", "-"]
    assert table["raw pixels"] == ["-", "31.0 ± 1.4", "-", "-", "-", "-"]
    assert table["colour histogram"] == ["-", "21.0 ± 1.4", "-", "-", "-", "-"]


def test_what_was_skipped_says_so() -> None:
    metrics: dict[str, Any] = {**FILES, "metrics/evaluate/linear.json": {"skipped": "train has no labels"}}
    metrics["metrics/tokens.json"] = {"views": 0}
    table = cells(compare.tabulate({"peco": [metrics], "pixel": [metrics]}))
    assert table["PeCo"] == ["50.0", "skipped", "75.0", "-", "-", "21.50"]
    assert table["raw pixels"][1] == "skipped"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with one cheap stage that reads the seed and writes all metrics."""
    root, ran = tmp_path / "project", tmp_path / "ran"
    root.mkdir()
    metrics = "".join(f"\n      - {file}" for file in FILES)
    (root / "dvc.yaml").write_text(
        f"stages:\n  all:\n    cmd: {sys.executable} stage.py {ran}\n    deps: [stage.py, values.json]\n"
        f"    params: [seed]\n    metrics:{metrics}\n"
    )
    (root / "stage.py").write_text(STAGE)
    (root / "values.json").write_text(json.dumps(FILES))
    (root / "params.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(root)
    for name, value in {
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "PYTHONPATH": str(ROOT),
        "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "-q"],
        [*dvc, "init", "-q"],
        ["git", "add", "."],
        ["git", "commit", "-qm", "start"],
    ):
        subprocess.run(command, check=True)
    return root


def run(name: str, *settings: str) -> None:
    """In a process of its own, since signal handlers are set."""
    code = f"from pipelines.compare import run_experiment; run_experiment({name!r}, {list(settings)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, stdout=subprocess.DEVNULL)


def test_an_experiment_is_run_again_without_running_its_stages_again(project: Path, tmp_path: Path) -> None:
    run("one", "seed=1")
    run("one", "seed=1")
    assert (tmp_path / "ran").read_text() == "1\n"
    assert compare.read_metrics("one")["metrics/evaluate/knn.json"] == {"accuracy": 0.51, "random_accuracy": 0.26}
    (project / "values.json").write_text(json.dumps(shifted(0.1)))  # a later commit has an experiment of its own
    subprocess.run(["git", "commit", "-qam", "later"], check=True)
    run("one", "seed=1")
    assert compare.read_metrics("one")["metrics/evaluate/knn.json"]["accuracy"] == pytest.approx(0.61)
    assert (tmp_path / "ran").read_text() == "1\n1\n"
    refs = subprocess.run(["git", "for-each-ref", "refs/exps"], check=True, capture_output=True, text=True).stdout
    assert refs.count("/one\n") == 2
    with pytest.raises(PecoError, match=r"^experiment two: ") as caught:
        compare.read_metrics("two")
    assert "\n" not in str(caught.value)


def test_data_that_git_does_not_know_is_named(project: Path) -> None:
    (project / "data").mkdir()
    (project / "data" / "photos.dvc").write_text("outs: []\n")
    with pytest.raises(PecoError, match=r"`git add data/photos\.dvc`"):
        compare.check_input("data/photos")
    subprocess.run(["git", "add", "data"], check=True)
    compare.check_input("data/photos")


def test_variants_that_would_be_the_same_are_refused() -> None:
    standing = config.parse(compose_params("tiny", []))
    compare.check_contrast(standing, ["pretrain.optim.epochs=1"])
    with pytest.raises(PecoError, match=r"--set tokenizer\.perceptual\.weight: not allowed"):
        compare.check_contrast(standing, ["tokenizer.perceptual.weight=2"])
    pixels = config.parse(compose_params("tiny", ["tokenizer.perceptual.weight=0"]))
    with pytest.raises(PecoError, match=r"tokenizer\.perceptual\.weight: 0 in params\.yaml"):
        compare.check_contrast(pixels, [])
