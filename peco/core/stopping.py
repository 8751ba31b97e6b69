"""Stop signals: SIGINT, SIGTERM and SIGHUP are recorded or call a function, instead of ending the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# One Ctrl-C can arrive twice, from the terminal and from a parent that forwards it: within this time it counts once.
SAME_STOP_SECONDS = 1.0
POLL_SECONDS = 0.1


class StopSignals:
    """A context in which the first stop signal and a second one are recorded. Outside the main thread it records nothing.

    A signal that is ignored, as SIGHUP under nohup, stays ignored. Processes forked in this context ignore the signals: their
    parent ends them.

    Args:
        on_stop: called in the main thread for the first and for each later stop, wherever the code is; it may raise.
        signals: signals to handle.
        even_ignored: signals to handle even if they are ignored. (A shell's background jobs ignore SIGINT.)
        afterwards: handler that is set at the end; None restores the previous ones.

    Attributes:
        first: the first signal; None before.
        second: True after another one, more than `SAME_STOP_SECONDS` later: the user does not want to wait.
    """

    def __init__(
        self,
        on_stop: Callable[[signal.Signals], None] | None = None,
        *,
        signals: Collection[signal.Signals] = SIGNALS,
        even_ignored: Collection[signal.Signals] = (),
        afterwards: signal.Handlers | None = None,
    ) -> None:
        self.first: signal.Signals | None = None
        self.second = False
        self._on_stop, self._signals, self._even_ignored, self._afterwards = on_stop, signals, even_ignored, afterwards
        self._time = 0.0
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def status(self) -> int:
        """Exit status: 128 + the number of the first signal; 0 before."""
        return 128 + self.first if self.first else 0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                if number in self._even_ignored or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if self._afterwards is None else self._afterwards)

    def wait(self, seconds: float, *, ignore_first: bool = False) -> None:
        """Sleep until a stop signal comes, or with `ignore_first` a second one, but at most for `seconds`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not (self.second if ignore_first else self.first):
            time.sleep(min(left, POLL_SECONDS))

    def _record(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        now = time.monotonic()
        if self.first is not None and now - self._time <= SAME_STOP_SECONDS:
            return
        self._time = now
        self.second = self.first is not None
        self.first = self.first or signal.Signals(number)
        if self._on_stop:
            self._on_stop(signal.Signals(number))
