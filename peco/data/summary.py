"""The summary of written shards: what is used, how it was read, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def summary(index: Mapping[str, Any], folder: Path) -> list[str]:
    """Lines for the terminal, from `index.json`.

    Args:
        index: its content.
        folder: of the shards, for the names of the lists.
    """
    lines = [f"{name}: {split['samples']} images{_labels(split)}" for name, split in index["splits"].items()]
    lines += index["notes"]
    lines += [f"left out: {text}" for text in left_out(index)]
    lists = [name for name, found in (("ignored.tsv", index["ignored"]), ("rejected.tsv", index["rejected"])) if found]
    if lists:
        lines.append(f"all that was left out is listed in {' and '.join(str(folder / name) for name in lists)}")
    return lines


def left_out(index: Mapping[str, Any]) -> list[str]:
    """The images that were left out: reason, number and first names, rejected images first. Empty if all images are used."""
    rejected = [_line(f"unreadable, {reason}", entry) for reason, entry in index["rejected_reasons"].items()]
    ignored = sorted(index["ignored"].items(), key=lambda item: bool(item[1]["by_rule"]))
    return rejected + [_line(reason, entry) for reason, entry in ignored]


def left_out_counts(index: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of files: `ignored` images that count towards `dataset.max_ignored`, and those `ignored_by_rule`."""
    entries = index["ignored"].values()
    return {
        "ignored": sum(entry["count"] for entry in entries if not entry["by_rule"]),
        "ignored_by_rule": sum(entry["count"] for entry in entries if entry["by_rule"]),
    }


def _line(reason: str, entry: Mapping[str, Any]) -> str:
    more = ", …" if entry["count"] > len(entry["first"]) else ""
    return f"{entry['count']} {reason}: {', '.join(entry['first'])}{more}"


def _labels(split: Mapping[str, Any]) -> str:
    if not split["classes"]:
        return " without labels"
    return f" in {len(split['classes'])} classes{'' if split['labelled'] else ', some without a label'}"
