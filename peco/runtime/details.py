"""What an evaluation found out beyond its scores: by class, by pair, by code.

It goes beside the evaluation's pictures and not among its metrics, of which `dvc exp show` makes a column each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peco.core import numbers
from peco.runtime.stage import write_json

FILE = "details.json"


def write_details(folder: Path, values: Mapping[str, Any]) -> None:
    """Write them into the folder of pictures."""
    write_json(folder / FILE, numbers.rounded(dict(values)))
