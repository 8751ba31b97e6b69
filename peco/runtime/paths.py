"""Paths of the results of the stages, relative to the repository's root."""

from __future__ import annotations

from pathlib import Path

ARTIFACTS = Path("artifacts")
SHARDS = ARTIFACTS / "shards"
PERCEPTUAL_NET = ARTIFACTS / "perceptual_net"
TOKENIZER = ARTIFACTS / "tokenizer"
TOKENS = ARTIFACTS / "tokens"
BACKBONE = ARTIFACTS / "backbone"
METRICS = Path("metrics")
SCORES = Path("scores")
PLOTS = Path("metrics/plots")
PICTURES = Path("metrics/pictures")
REPORT = Path("reports/report.html")
