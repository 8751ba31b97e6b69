"""The progress line of a training."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from peco.core.environment import PROGRESS
from peco.training.prometheus import Exporter


class Progress:
    """Progress line of a training; also sets the exporter's rates.

    On a terminal (stderr) the line is rewritten in place. With PECO_PROGRESS=bar, each update is a line on stdout that begins with
    a carriage return, for a launcher that rewrites it itself. Otherwise it prints plain lines on stdout, at most one in ten
    seconds, and the last one.

    Args:
        name: first word of the line.
        start: steps already done.
        total: steps in all.
        samples_per_step: global batch size.
        exporter: gets the rates.
        visible: write the line (rank 0 does).
    """

    def __init__(
        self, name: str, start: int, total: int, samples_per_step: int, exporter: Exporter, visible: bool
    ) -> None:
        self._name, self._start, self._total, self._samples = name, start, total, samples_per_step
        self._exporter, self._visible = exporter, visible
        bar = PROGRESS.text() == "bar"
        terminal = not bar and sys.stderr.isatty()
        self._stream: TextIO = sys.stderr if terminal else sys.stdout
        self._format = "\r{}\n" if bar else "\r{}\x1b[K" if terminal else "{}\n"
        self._end = "\n" if terminal else ""
        self._interval = 0.5 if bar or terminal else 10.0
        self._began = self._shown = self._measured = time.monotonic()
        self._measured_step = start
        self._rate = 0.0
        self._wait = 0.0
        self._done = start

    def update(self, done: int, values: Mapping[str, float], wait: float) -> None:
        """Show a step.

        Args:
            done: steps done.
            values: of this step, `loss` and `lr` among them.
            wait: seconds that it waited for data.
        """
        self._done = done
        self._wait += wait
        now = time.monotonic()
        if now - self._measured >= 0.5 or done == self._total:
            self._measure(done, values, now)
        if self._visible and (now - self._shown >= self._interval or done == self._total):
            self._shown = now
            eta = (now - self._began) / (done - self._start) * (self._total - done)
            self._print(
                f"{self._name}  step {done}/{self._total}  loss {values['loss']:.3g}  lr {_short(values['lr'])}  "
                f"{self._rate:.3g} img/s  eta {_clock(eta)}"
            )

    def close(self) -> None:
        """End the line that is rewritten in place."""
        if self._visible and self._end and self._done > self._start:
            self._stream.write(self._end)
            self._stream.flush()

    def _measure(self, done: int, values: Mapping[str, float], now: float) -> None:
        steps, seconds = done - self._measured_step, max(now - self._measured, 1e-9)
        self._rate = steps * self._samples / seconds
        self._exporter.set(values)
        self._exporter.set(
            {
                "samples_per_second": self._rate,
                "step_seconds": seconds / steps,
                "data_wait_seconds": self._wait / steps,
                "steps_done": done,
                "steps_planned": self._total,
            }
        )
        self._measured, self._measured_step, self._wait = now, done, 0.0

    def _print(self, line: str) -> None:
        self._stream.write(self._format.format(line))
        self._stream.flush()


def _short(value: float) -> str:
    """Two digits and a short exponent: 1.2e-3."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
