"""Checks of the content of a folder's `index.json` (see `shards.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from peco.core.parsing import shown


def check_index(index: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Check that all entries have the right types and fit each other.

    Args:
        index: its content.
        path: its file, for messages.
        remedy: what to do, for messages.

    Raises:
        PecoError: naming the first wrong entry.
    """
    for key, value, fits in _entries(index):
        if not fits:
            raise PecoError(f"{path}: the index is damaged ({key} is {shown(value)}); {remedy}")


def _entries(index: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Each entry with its dotted key, and True if it is as it should be. Those after a wrong one may not be looked at."""
    for key, check in (
        ("source", _is_text),
        ("classes", _are_texts),
        ("notes", _are_texts),
        ("rejected", _is_count),
        ("ignored", _are_reasons),
        ("rejected_reasons", _are_reasons),
        ("splits", _is_mapping),
    ):
        yield key, index.get(key), check(index.get(key))
    yield "max_pixels", index.get("max_pixels"), "max_pixels" not in index or _is_count(index["max_pixels"])
    for name, split in index["splits"].items():
        yield f"splits.{name}", split, name in ("train", "val") and _is_mapping(split)
        yield f"splits.{name}.samples", split.get("samples"), _is_count(split.get("samples"))
        yield f"splits.{name}.labelled", split.get("labelled"), isinstance(split.get("labelled"), bool)
        yield f"splits.{name}.classes", split.get("classes"), _are_texts(split.get("classes"))
        shards = split.get("shards")
        yield f"splits.{name}.shards", shards, isinstance(shards, list)
        for number, shard in enumerate(shards):
            yield f"splits.{name}.shards[{number}]", shard, _is_shard(shard)
        total = sum(shard["samples"] for shard in shards)
        yield f"splits.{name}.samples", split["samples"], 0 < split["samples"] == total


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_shard(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "samples", "bytes", "sha256"}:
        return False
    name = value["name"]
    plain = _is_text(name) and _is_text(value["sha256"]) and "/" not in name and "\0" not in name
    return plain and _is_count(value["samples"]) and value["samples"] > 0 and _is_count(value["bytes"])


def _are_reasons(value: object) -> bool:
    """True for numbers of files by reason, with the first names."""
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and _is_count(entry.get("count"))
        and _are_texts(entry.get("first"))
        and isinstance(entry.get("by_rule", False), bool)
        for entry in value.values()
    )
