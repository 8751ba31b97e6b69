"""The style sheet that the report shares with the pages of comparisons and of Kubeflow."""

from pathlib import Path

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
