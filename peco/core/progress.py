"""Lines on the terminal for work that takes longer than ten seconds; nothing is printed for shorter work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from peco.core.ranks import ranks

INTERVAL = 10.0  # seconds between lines

T = TypeVar("T")


class ProgressLines:
    """Prints how much of a work is done, every `INTERVAL` seconds. Of a job's processes only rank 0 prints.

    Args:
        label: begins each line; by default the work has none and nothing is printed.
        unit: of what is counted.
    """

    def __init__(self, label: str = "", unit: str = "images") -> None:
        self._label, self._unit = label, unit
        self._visible = bool(label) and ranks().rank == 0
        self._shown = time.monotonic()

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show that `done` of `total` are done; call it as often as is convenient."""
        if self._visible and time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            of_total = f"/{total}" if total else ""
            print(f"{self._label}  {done}{of_total} {self._unit}{f'  {note}' if note else ''}", flush=True)


def tracked(
    items: Iterable[T],
    label: str,
    total: int | None = None,
    unit: str = "images",
    size: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """The same items, with progress lines; `size` is the number of units of an item."""
    lines, done = ProgressLines(label, unit), 0
    for item in items:
        yield item
        done += size(item)
        lines(min(done, total or done), total)


@contextlib.contextmanager
def waiting(label: str) -> Iterator[None]:
    """Print how long the block has run, every `INTERVAL` seconds, from a thread: for work that can't count.

    Not around loader processes: a process that is forked while the thread prints may hang at its own first line.
    """
    start, done = time.monotonic(), threading.Event()

    def show() -> None:
        while not done.wait(INTERVAL):
            print(f"{label}  {time.monotonic() - start:.0f} s", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    if ranks().rank == 0:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident:
            thread.join()
