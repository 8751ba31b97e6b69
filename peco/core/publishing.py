"""Results are written aside and renamed when finished, so that a reader sees a whole folder or none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BYTES = 1 << 20  # less free space than this counts as a full disk


def publish(tmp: Path, final: Path) -> None:
    """Rename a finished folder or file to its final name; an old one of that name is replaced.

    A folder can't replace another in one step, so the old one is moved aside first. A crash in between leaves no
    folder of that name, never a mixture.

    Args:
        tmp: the finished folder or file; copied next to `final` first if it is on another file system.
        final: its final name.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if tmp.stat().st_dev != final.parent.stat().st_dev:
        near = final.with_name(f".{final.name}.tmp")
        _remove(near)
        (shutil.copytree if tmp.is_dir() else shutil.copyfile)(tmp, near)
        tmp = near
    old = final.with_name(f".{final.name}.old")
    _remove(old)
    if tmp.is_dir() and os.path.lexists(final):
        os.rename(final, old)
    os.replace(tmp, final)
    _remove(old)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to; it replaces `path` in one step at the end, so that a reader sees the old file or the new one.

    If the block raises, the old file is unchanged. A missing folder is made.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Replace a file in one step.

    Raises:
        OSError: it can't be written; the old file is unchanged.
    """
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Any) -> None:
    """Write JSON whose bytes depend on `values` only. Raises as `write_file`."""
    write_file(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def staging(final: Path) -> Iterator[Path]:
    """An empty folder to write to; published as `final` at the end, removed if the block raises.

    Raises:
        PecoError: the folder can't be written to, for example on a full disk. Other errors of the block are passed on.
    """
    tmp = final.with_name(f".{final.name}.tmp")
    block = False
    try:
        _remove(tmp)  # of a run that was killed
        tmp.mkdir(parents=True)
        block = True
        yield tmp
        block = False
        publish(tmp, final)
    except OSError as error:
        if block and not _is_refusal(error, tmp):
            raise
        reason = "disk full" if error.errno in _FULL else f"could not be written: {error}"
        raise PecoError(f"{final}: {reason}; nothing was changed there, fix that and run again") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(tmp)


def full_folders(folders: Iterable[Path]) -> list[str]:
    """Those of the folders that are on a full disk: the error of a failed write names no file."""
    return [str(folder) for folder in folders if folder.exists() and shutil.disk_usage(folder).free < _FULL_BYTES]


def _is_refusal(error: OSError, folder: Path) -> bool:
    """True if `folder` refused to be written to, and False if the error came from reading elsewhere."""
    names = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    if not names:  # a failed write names no file
        return error.errno in _FULL
    inside = any(Path(os.path.abspath(name)).is_relative_to(folder.absolute()) for name in names)
    return inside and error.errno in (*_FULL, errno.EROFS, errno.EACCES)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
