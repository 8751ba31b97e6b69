"""The style of CONTRIBUTING.md, as far as a search can check it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [
    path for folder in ("peco", "pipelines", "k8s", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "dvc.yaml", ROOT / "Makefile"]
QUESTION = re.compile(r'^\s*r?"""(What|Where|How|Whether|Which) ', re.MULTILINE)
REPLACED = re.compile(r"\b(goes on|anew|for want of|told|so often|whoever)\b", re.IGNORECASE)


@pytest.mark.parametrize(
    ("pattern", "paths"), [(QUESTION, CODE), (REPLACED, [*CODE, *PAGES])], ids=["titles that ask", "replaced words"]
)
def test_none_is_used(pattern: re.Pattern[str], paths: list[Path]) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for path in paths
        if path != Path(__file__)
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
