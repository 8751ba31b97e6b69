"""The loop that follows a job on any cluster: retries of what may pass, their pauses and lines, stops, exit statuses."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchx import specs

from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stopping import StopSignals
from pipelines.jobs import backend
from pipelines.jobs.backend import LONGEST_RETRY_SECONDS, RETRY_SECONDS, Backend, Lost
from pipelines.jobs.job import Job
from pipelines.jobs.logs import Screen

REASON = "pod p was preempted or evicted"
Event = int | Lost | PecoError | signal.Signals | None  # the end of a poll; a signal comes before it


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Stops(StopSignals):
    """Waiting advances the clock; a signal may come while waiting for a retry."""

    clock: Clock
    at: float = float("inf")
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def wait(self, seconds: float, *, ignore_first: bool = False) -> None:
        self.waits.append(seconds)
        self.clock.now += seconds
        if self.clock.now >= self.at:
            self.first = signal.SIGTERM


class Lines(Screen):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Scripted(Backend):
    shortest_poll_seconds, poll_seconds = 0.5, 4.0

    def __init__(self, events: Sequence[Event], retries: int, stops: StopSignals) -> None:
        job = Job("pretrain", "peco-pretrain-1", specs.AppDef("x", [specs.Role("x", "", "python")]), Resources(), 60)
        self.lines = Lines()
        super().__init__(dataclasses.replace(job, resources=Resources(retries=retries)), self.lines, stops)
        self.events = list(events)
        self.started = self.canceled = 0

    def start(self) -> None:
        if self.stops.first:
            raise backend.StopRequested
        self.started += 1

    def poll(self) -> int | None:
        event = self.events.pop(0)
        if isinstance(event, signal.Signals):
            self.stops.first = event
            event = self.events.pop(0)
        if isinstance(event, Exception):
            raise event
        return event

    def cancel(self) -> None:
        self.canceled += 1


@pytest.fixture(autouse=True, scope="module")
def clock() -> Iterator[Clock]:
    found = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "time", found)
        yield found


@given(retries=st.integers(0, 12), losses=st.integers(0, 15), end=st.sampled_from([0, 1, 2]))
def test_what_may_pass_is_tried_again_as_often_as_resources_allow(
    clock: Clock, retries: int, losses: int, end: int
) -> None:
    stops = Stops(clock)
    job = Scripted([Lost(REASON)] * losses + [end], retries, stops)
    status = job.follow()
    assert job.started == min(losses, retries) + 1
    assert job.canceled == 0
    assert status == (end if losses <= retries else 75)
    pauses = [min(RETRY_SECONDS * 2**n, LONGEST_RETRY_SECONDS) for n in range(min(losses, retries))]
    assert stops.waits == pauses
    assert job.lines.notes[: len(pauses)] == [
        f"pretrain: {REASON}; retry {n} of {retries} in {pause:.0f} s" for n, pause in enumerate(pauses, start=1)
    ]
    last = job.lines.notes[len(pauses) :]
    used_up = f"no retry of {retries} is left; " if retries else ""
    assert last == (
        [f"error: pretrain: {REASON}; {used_up}run again, it resumes from the last checkpoint"]
        if losses > retries
        else []
    )


def test_a_refusal_is_not_tried_again(clock: Clock) -> None:
    job = Scripted([PecoError("not allowed to create jobs"), 0], 5, Stops(clock))
    with pytest.raises(PecoError, match="not allowed"):
        job.follow()
    assert job.started == 1


def test_an_advice_of_its_own_follows_the_reason(clock: Clock) -> None:
    job = Scripted([Lost("Slurm doesn't answer", "job 7 is left as it is")], 0, Stops(clock))
    assert job.follow() == 75
    assert job.lines.notes == ["error: pretrain: Slurm doesn't answer; job 7 is left as it is"]


def test_a_stop_in_the_pause_before_a_retry_ends_it(clock: Clock) -> None:
    job = Scripted([Lost(REASON)], 5, Stops(clock, at=clock.now + 5))
    assert job.follow() == 128 + signal.SIGTERM
    assert (job.started, job.canceled) == (1, 1)


@pytest.mark.parametrize(("last", "canceled"), [(None, 1), (Lost(REASON), 1), (2, 0)])
def test_a_stop_ends_the_job_and_sets_the_status(clock: Clock, last: Event, canceled: int) -> None:
    """Even if the job was lost, or failed, at the same moment."""
    job = Scripted([None, signal.SIGINT, last], 5, Stops(clock))
    assert job.follow() == 128 + signal.SIGINT
    assert (job.started, job.canceled, job.lines.notes) == (1, canceled, [])


def test_a_young_job_is_polled_more_often(clock: Clock) -> None:
    stops = Stops(clock)
    Scripted([None] * 90 + [0], 0, stops).follow()
    assert stops.waits[0] == 0.5
    assert stops.waits == sorted(stops.waits)
    assert stops.waits[-1] == 4.0
    assert [wait for wait in stops.waits if 0.5 < wait < 4] == pytest.approx(
        [sum(stops.waits[:n]) / 20 for n, wait in enumerate(stops.waits) if 0.5 < wait < 4]
    )
