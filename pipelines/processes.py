"""How processes are asked to stop: by signals, and by the end of the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """For `preexec_fn`: even a parent that is killed outright takes the process along, as the kernel sends it SIGTERM (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None], *, even_ignored: Collection[signal.Signals] = ()
) -> Iterator[None]:
    """Have `handler` called for a stop; a signal that is ignored, as SIGHUP under nohup, stays so.

    Args:
        handler: takes the place of the present ones, until the block is left.
        even_ignored: signals to handle all the same. (A shell's background jobs ignore SIGINT.)
    """
    numbers = [n for n in STOP_SIGNALS if n in even_ignored or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
