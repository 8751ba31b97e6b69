"""Stop signals: first and second stop, ignored signals, restored handlers, forked processes, interruptible waiting."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peco.core import stopping
from peco.core.stopping import SAME_STOP_SECONDS, SIGNALS, StopSignals


@dataclass
class Clock:
    """Replacement of `time`: sleeping advances it, and raises the signals that are due by then."""

    now: float = 0.0
    due: dict[float, signal.Signals] = field(default_factory=dict)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        for moment in sorted(moment for moment in self.due if moment <= end):
            self.now = moment
            signal.raise_signal(self.due.pop(moment))
        self.now = end


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[Clock]:
    """A clock for the module under test. The handlers of pytest come back at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping, "time", clock)
        yield clock
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def start(clock: Clock) -> None:
    """No signal is ignored at first: one that reaches its default handler fails the test."""
    clock.now, clock.due = 0.0, {}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_recorded_instead_of_ending_the_process(number: signal.Signals) -> None:
    with StopSignals() as stop:
        assert (stop.first, stop.second, stop.status) == (None, False, 0)
        signal.raise_signal(number)
    assert (stop.first, stop.second, stop.status) == (number, False, 128 + number)


def test_the_same_stop_twice_within_a_second_counts_once(clock: Clock) -> None:
    """As Ctrl-C from the terminal and from a parent that forwards it as SIGTERM."""
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        clock.sleep(SAME_STOP_SECONDS)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.first, stop.second) == (signal.SIGINT, False)
        clock.sleep(0.1)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.first, stop.second, stop.status) == (signal.SIGINT, True, 130)


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(SIGNALS)), max_size=6))
def test_the_callback_gets_each_stop_that_counts(clock: Clock, arrivals: list[tuple[float, signal.Signals]]) -> None:
    seen: list[tuple[float, signal.Signals]] = []
    sent: list[tuple[float, signal.Signals]] = []
    with StopSignals(lambda number: seen.append((clock.now, number))) as stop:
        for pause, number in arrivals:
            clock.sleep(pause)
            sent.append((clock.now, number))
            signal.raise_signal(number)
    assert seen[:1] == sent[:1]
    assert all(later - earlier > SAME_STOP_SECONDS for (earlier, _), (later, _) in pairwise(seen))
    for moment, number in sent:  # each one counts, or comes within a second of one that does
        assert (moment, number) in seen or any(0 <= moment - other <= SAME_STOP_SECONDS for other, _ in seen)
    assert (stop.first, stop.second) == (seen[0][1] if seen else None, len(seen) > 1)


def test_the_callback_may_raise(clock: Clock) -> None:
    def interrupt(number: signal.Signals) -> None:
        raise KeyboardInterrupt(number.name)

    with StopSignals(interrupt) as stop:
        for name in ("SIGTERM", "SIGINT"):
            with pytest.raises(KeyboardInterrupt, match=name):
                signal.raise_signal(signal.Signals[name])
            signal.raise_signal(signal.SIGTERM)  # the same stop: it does not interrupt the clean-up
            clock.sleep(2)
    assert stop.second


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.first is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)
    assert stop.first == signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_ignored_signal_is_handled_on_request_and_ignored_again_afterwards() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    with StopSignals(even_ignored=[signal.SIGINT]) as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.first == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_only_the_signals_that_are_named_are_handled() -> None:
    with StopSignals(signals=[signal.SIGTERM]) as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.first is None
        signal.raise_signal(signal.SIGTERM)
    assert stop.first == signal.SIGTERM


def test_the_previous_handlers_come_back_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), StopSignals():
        raise ZeroDivisionError
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.default_int_handler}


def test_another_handler_can_be_set_afterwards() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with StopSignals(signals=[signal.SIGINT, signal.SIGTERM], afterwards=signal.SIG_IGN):
        pass
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_of_two_blocks_the_inner_one_records_the_signal() -> None:
    with StopSignals() as outer:
        with StopSignals() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert (outer.first, inner.first) == (None, signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert (outer.first, inner.first) == (signal.SIGINT, signal.SIGTERM)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_ignores_the_signals() -> None:
    def interrupt(_: signal.Signals) -> None:
        raise KeyboardInterrupt

    with StopSignals(interrupt) as stop:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.raise_signal(signal.SIGTERM)
                status = 0 if stop.first is None else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert stop.first is None


def test_outside_the_main_thread_nothing_is_recorded() -> None:
    inside = []

    def use() -> None:
        with StopSignals() as stop:
            inside.append((stop.first, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert inside == [(None, signal.default_int_handler)]


@pytest.mark.parametrize(
    ("due", "ignore_first", "waited"),
    [
        ([], False, 30.0),
        ([7.0], False, 7.0),
        ([7.0], True, 30.0),
        ([7.0, 7.5], True, 30.0),  # the same stop
        ([7.0, 12.0], True, 12.0),
        ([31.0], False, 30.0),
    ],
)
def test_waiting_ends_with_a_stop_or_with_its_time(
    clock: Clock, due: list[float], ignore_first: bool, waited: float
) -> None:
    clock.due = dict.fromkeys(due, signal.SIGTERM)
    with StopSignals() as stop:
        stop.wait(30.0, ignore_first=ignore_first)
    assert clock.now == pytest.approx(waited, abs=stopping.POLL_SECONDS)


@pytest.mark.parametrize("ignore_first", [False, True])
def test_waiting_after_a_stop_that_counts_takes_no_time(clock: Clock, ignore_first: bool) -> None:
    with StopSignals() as stop:
        for _ in range(1 + ignore_first):
            signal.raise_signal(signal.SIGINT)
            clock.sleep(2)
        before = clock.now
        stop.wait(30.0, ignore_first=ignore_first)
    assert clock.now == before
