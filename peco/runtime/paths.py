"""Paths of the results of the stages, relative to the repository's root."""

from __future__ import annotations

from pathlib import Path

ARTIFACTS = Path("artifacts")
SHARDS = ARTIFACTS / "shards"
PERCEPTUAL_NET = ARTIFACTS / "perceptual_net"
TOKENIZER = ARTIFACTS / "tokenizer"
TOKENS = ARTIFACTS / "tokens"
BACKBONE = ARTIFACTS / "backbone"
CLASSIFIER = ARTIFACTS / "classifier"
SEGMENTER = ARTIFACTS / "segmenter"
DETECTOR = ARTIFACTS / "detector"
EVALUATION_MODELS = {"finetune": CLASSIFIER, "segmentation": SEGMENTER, "detection": DETECTOR}
METRICS = Path("metrics")
SCORES = Path("scores")
PLOTS = Path("metrics/plots")
PICTURES = Path("metrics/pictures")
REPORT = Path("reports/report.html")
