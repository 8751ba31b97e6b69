"""Lock files."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def acquire(file: IO[Any], *, wait: bool = False, required: bool = True) -> bool:
    """Lock an open file until it is closed.

    Args:
        file: the file.
        wait: wait until another process releases it.
        required: raise OSError where the file system has no locks; else the file counts as locked there.

    Returns:
        True if the lock was acquired, False if another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if required or error.errno not in _UNSUPPORTED:
            raise
    return True


def is_same_file(path: Path, file: IO[Any]) -> bool:
    """Check that the open file is still the one at `path`: a lock file may have been removed by its last holder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
