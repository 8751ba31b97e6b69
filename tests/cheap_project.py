"""A DVC repository with the parameters of `smoke` and one cheap stage that writes all metrics, for tests of experiments."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.workflow.compose import compose_params, render

ROOT = Path(__file__).parents[1]

# In the folder that is its argument it appends to the file `ran`, fails if `bad` exists and waits while `hold` exists; then it
# writes the metrics that the tables need.
STAGE = """\
import json, pathlib, sys, time, yaml
folder, params = pathlib.Path(sys.argv[1]), yaml.safe_load(open("params.yaml"))
seed, weight = params["seed"], params["tokenizer"]["adversarial"]["weight"]
with (folder / "ran").open("a") as file:
    file.write(f"{weight:g} {seed}\\n")
if weight and (folder / "bad").exists():
    sys.exit("error: all: no such thing")
while (folder / "hold").exists():
    time.sleep(0.05)
for file, values in json.loads(pathlib.Path("values.json").read_text()).items():
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(file).write_text(json.dumps({k: v + seed / 100 for k, v in values.items()}))
"""
FILES = {
    "metrics/shards.json": {"train": 200},
    "metrics/evaluate/knn.json": {"accuracy": 0.5, "random_accuracy": 0.25},
    "metrics/evaluate/linear.json": {
        "accuracy": 0.625, "random_accuracy": 0.375, "pixels_accuracy": 0.3, "histogram_accuracy": 0.2,
    },
    "metrics/evaluate/finetune.json": {"accuracy": 0.75, "random_accuracy": 0.5},
    "metrics/evaluate/segmentation.json": {
        "miou": 0.4, "pixel_accuracy": 0.8, "random_miou": 0.2, "random_pixel_accuracy": 0.7, "train_images": 32,
    },
    "metrics/evaluate/detection.json": {"box_ap": 0.3, "mask_ap": 0.25, "random_box_ap": 0.1, "random_mask_ap": 0.05},
    "metrics/evaluate/agreement.json": {
        "tokens_hamming_accuracy": 0.7, "tokens_embedded_accuracy": 0.75, "pixels_accuracy": 0.5, "ssim_accuracy": 0.1,
        "perceptual_accuracy": 0.9,
    },
    "metrics/evaluate/codebook.json": {
        "token_histogram_accuracy": 0.45, "token_mean_accuracy": 0.35, "token_grid_accuracy": 0.4, "psnr": 17.3,
        "ssim": 0.396, "frechet": 1.63, "patches_token_histogram_accuracy": 0.75, "patches_token_mean_accuracy": 0.5,
        "patches_token_grid_accuracy": 0.6, "patches_psnr": 17.7, "patches_ssim": 0.424, "patches_frechet": 4.4,
    },
    "metrics/tokens.json": {"usage": 0.9375, "perplexity": 100.25},
    "metrics/tokenizer.json": {"val_psnr": 21.5},
}  # fmt: skip


def shifted(by: float) -> dict[str, Any]:
    return {file: {key: value + by for key, value in values.items()} for file, values in FILES.items()}


def make_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the repository `root` and change to it. Its stage reads and writes files in the folder above it."""
    root.mkdir()
    metrics = "".join(f"\n      - {file}" for file in FILES)
    (root / "dvc.yaml").write_text(
        f"stages:\n  all:\n    cmd: {sys.executable} stage.py {root.parent}\n    deps: [stage.py, values.json]\n"
        f"    params: [seed, tokenizer.adversarial.weight]\n    metrics:{metrics}\n"
    )
    (root / "stage.py").write_text(STAGE)
    (root / "values.json").write_text(json.dumps(FILES))
    (root / "params.yaml").write_text(render(compose_params("smoke", [])))
    (root / "data").mkdir()
    (root / "data" / "scenes.yaml").write_text("the data set of the parameters\n")
    (root / ".gitignore").write_text("reports\n.work\n")
    monkeypatch.chdir(root)
    for name, value in {
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"), "PYTHONPATH": str(ROOT),
        "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PECO_WORK", raising=False)
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "-q"],
        [*dvc, "init", "-q"],
        ["git", "add", "."],
        ["git", "commit", "-qm", "start"],
    ):
        subprocess.run(command, check=True)
    return root


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def left_over(project: Path) -> list[psutil.Process]:
    """Processes whose current directory is in the project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(project):
                found.append(process)
    return found
