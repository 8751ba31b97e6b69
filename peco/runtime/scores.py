"""The few numbers of each stage that `dvc metrics show` and `dvc exp show` print; all numbers are in `metrics/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peco.core.publishing import write_json
from peco.core.stage_name import StageName
from peco.runtime.paths import SCORES

# Name of the score to the name of the metric, by stage. DVC prints a row for each file and a column for each name, in 120 columns.
# A name occurs once, since `dvc exp show` puts the path of the file before others; BASELINE is what each score is compared with.
BASELINE = "baseline"
HEADLINES: Mapping[str, Mapping[str, str]] = {
    "perceptual_net": {"net": "knn_accuracy", BASELINE: "random_knn_accuracy"},
    "tokenizer": {"psnr": "val_psnr"},
    "pretrain": {"mim": "accuracy"},
    "evaluate@knn": {"knn": "accuracy", BASELINE: "random_accuracy"},
    "evaluate@linear": {"linear": "accuracy", BASELINE: "random_accuracy"},
    "evaluate@finetune": {"tuned": "accuracy", BASELINE: "random_accuracy"},
    "evaluate@segmentation": {"miou": "miou", BASELINE: "random_miou"},
    "evaluate@detection": {"ap": "box_ap", BASELINE: "random_box_ap"},
    "evaluate@agreement": {"agree": "tokens_embedded_accuracy", BASELINE: "pixels_accuracy"},
    "evaluate@codebook": {"usage": "usage", BASELINE: "patches_usage"},
}


def write_scores(stage: str, metrics: Mapping[str, Any]) -> None:
    """Write the scores of a stage that are among its metrics, to three decimals, or to one from 10 on; others are left out."""
    if stage in HEADLINES:
        found = {name: metrics[key] for name, key in HEADLINES[stage].items() if key in metrics}
        scores = {name: round(value, 3 if abs(value) < 10 else 1) for name, value in found.items()}
        write_json(SCORES / f"{StageName(stage).item}.json", scores)
