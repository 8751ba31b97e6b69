"""A copy of dvc.lock in the work folder: DVC rewrites the file in place, and a kill or a full disk then leaves a part of it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import yaml

from peco.core import workfiles
from peco.core.errors import PecoError
from peco.core.publishing import write_file

LOCK = Path("dvc.lock")
_CUT = 2  # entries that differ in a lock that was cut: the one that DVC was recording, and the last one


def keep() -> None:
    """Copy dvc.lock before a stage runs, unless it was cut. The copy is empty where there is no dvc.lock yet."""
    with contextlib.suppress(OSError):  # the stage itself reports a work folder that can't be written
        content = LOCK.read_bytes() if LOCK.exists() else None
        if content is None or not _is_cut(_stages(content), _kept() or {}):
            write_file(_copy(), content or b"")


def drop() -> None:
    """Remove the copy: DVC has recorded everything."""
    _copy().unlink(missing_ok=True)


def restore() -> None:
    """Replace a dvc.lock that was cut by the copy, which exists only if DVC has not recorded everything.

    Raises:
        PecoError: it is damaged, and there is no copy.
    """
    if not LOCK.exists():
        return
    found, kept = _stages(LOCK.read_bytes()), _kept()
    if kept is not None and _is_cut(found, kept):
        if kept:
            write_file(LOCK, _copy().read_bytes())
        else:
            LOCK.unlink()
        print(f"{LOCK} was left incomplete when DVC ended; restored as it was before that stage", file=sys.stderr)
    elif found is None:
        raise PecoError(
            f"{LOCK}: is empty or damaged; `git checkout {LOCK}` restores a committed one, else delete it: results in DVC's "
            "cache are still used"
        )


def _copy() -> Path:
    return workfiles.root() / LOCK


def _kept() -> dict[str, Any] | None:
    """The stages in the copy; None without one."""
    return (_stages(_copy().read_bytes()) or {}) if _copy().exists() else None


def _is_cut(found: dict[str, Any] | None, kept: dict[str, Any]) -> bool:
    """True for a part of the lock that was kept; False for another one, perhaps of another commit."""
    if found is None:
        return True
    shorter = len(found) < len(kept) and list(found) == list(kept)[: len(found)]
    return shorter and sum(entry != kept[name] for name, entry in found.items()) <= _CUT


def _stages(content: bytes) -> dict[str, Any] | None:
    """The stages in a dvc.lock; None if it isn't a whole one."""
    try:
        found = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return None
    stages = found.get("stages") if isinstance(found, dict) else None
    return stages if isinstance(stages, dict) and all(map(_is_entry, stages.values())) else None


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not entry.get("cmd"):
        return False
    files = [entry.get(key, []) for key in ("deps", "outs")]
    params = entry.get("params", {})
    return (
        all(isinstance(kind, list) and all(isinstance(f, dict) and f.get("path") for f in kind) for kind in files)
        and isinstance(params, dict)
        and all(isinstance(values, dict) for values in params.values())
    )
