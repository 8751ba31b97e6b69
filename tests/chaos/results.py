"""Results, one line of JSON each, so that a stopped run resumes; and the table of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .disks import PLACES
from .moments import SIGNALS


class Results:
    """The results in a file; those of another seed or number of kills don't count."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        lines = path.read_text().splitlines() if path.exists() else []
        self.entries = [entry for entry in map(json.loads, lines) if entry["settings"] == settings]

    def has(self, key: str) -> bool:
        return any(entry["key"] == key for entry in self.entries)

    def add(self, key: str, **values: Any) -> None:
        entry = {"key": key, "settings": self._settings, **values}
        self.entries.append(entry)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def faults(self) -> list[str]:
        return [f"{entry['key']}: {fault}" for entry in self.entries for fault in entry["faults"]]

    def table(self) -> str:
        """Kills and disks by stage, and the remote, as tables in Markdown."""
        kinds: dict[str, list[dict[str, Any]]] = {}
        for entry in self.entries:
            kinds.setdefault(entry["kind"], []).append(entry)
        parts = []
        if kinds.get("kills"):
            parts.append(_kill_table(kinds["kills"]))
        if kinds.get("disk"):
            parts.append(_rows("disk", ("stage", "work folder", "results", "DVC's cache"), _disk_rows(kinds["disk"])))
        if kinds.get("remote"):
            rows = [
                [entry["what"], str(entry["requests"]), str(entry["spoilt"]), entry["ends"], str(len(entry["faults"]))]
                for entry in kinds["remote"]
            ]
            parts.append(_rows("remote", ("S3 remote", "requests", "spoilt", "result", "faults"), rows))
        return "\n\n".join(parts)


def _kill_table(entries: list[dict[str, Any]]) -> str:
    named = ("publishing", "record", "checkpoint")
    rows = []
    total: Counter[str] = Counter()
    for stage in dict.fromkeys(entry["stage"] for entry in entries):
        counts: Counter[str] = Counter()
        for entry in entries:
            if entry["stage"] == stage:
                for moment, signal, _ in entry["kills"]:
                    counts.update(("kills", signal, moment))
                counts.update(
                    runs_again=entry["resumed"],
                    same=entry["same"],
                    compared=entry["compared"],
                    faults=len(entry["faults"]),
                )
        total += counts
        rows.append(_kill_row(stage, counts, named))
    rows.append(_kill_row("all", total, named))
    columns = ("stage", "kills", *SIGNALS, *named, "runs again", "same bytes", "faults")
    return _rows("kills", columns, rows)


def _kill_row(stage: str, counts: Counter[str], named: tuple[str, ...]) -> list[str]:
    numbers = [counts[key] for key in ("kills", *SIGNALS, *named, "runs_again")]
    same = f"{counts['same']} of {counts['compared']}"
    return [stage, *map(str, numbers), same, str(counts["faults"])]


def _disk_rows(entries: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for stage in dict.fromkeys(entry["stage"] for entry in entries):
        cells = []
        for place in PLACES:
            found = [entry for entry in entries if entry["stage"] == stage and entry["place"] == place]
            cells.append("; ".join(f"{entry['fault']}: {entry['ends']}" for entry in found) or "-")
        rows.append([stage, *cells])
    return rows


def _rows(_: str, columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
