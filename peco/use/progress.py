"""The progress line of a command on many images, on stderr."""

from __future__ import annotations

import sys
import time

PLAIN_SECONDS, TERMINAL_SECONDS = 10.0, 0.2  # between two lines


class Progress:
    """Images done of all, images/s and the time left: redrawn in place on a terminal, else a line every ten seconds.

    Args:
        name: first word of the line.
        total: images in all.
        done: images that an earlier run has done.
    """

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self._name, self._total, self._first, self._done = name, total, done, done
        self._terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def add(self, images: int) -> None:
        """Count some more images."""
        self._done += images
        now = time.monotonic()
        if now - self._shown >= (TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS):
            self._shown = now
            rate = (self._done - self._first) / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0
            line = f"{self._name}  {self._done}/{self._total} images  {rate:.3g} images/s  {left:.0f} s left"
            print(
                f"\r{line}\x1b[K" if self._terminal else line,
                end="" if self._terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Remove the line that is redrawn in place."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
