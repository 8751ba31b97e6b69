"""A job on a cluster, and the loop that follows it; volcano.py and slurm.py implement the two kinds."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod

from peco.core.stopping import StopSignals
from pipelines.jobs.job import Job
from pipelines.jobs.logs import Screen
from pipelines.jobs.output import Output

RESUME = "run again, it resumes from the last checkpoint"
EXIT_ERROR = 2
EXIT_TEMPORARY = os.EX_TEMPFAIL
RETRY_SECONDS = 10.0  # pause before the first retry; doubled for each later one
LONGEST_RETRY_SECONDS = 300.0


class StopRequested(Exception):
    """A stop signal came, so nothing more is started or waited for."""


class Lost(Exception):
    """The cluster has ended the job, or can't be reached. That may pass, so the job is started or followed again.

    Args:
        reason: one line.
        advice: what to do when no retry is left.
    """

    def __init__(self, reason: str, advice: str = RESUME) -> None:
        super().__init__(reason)
        self.advice = advice


class Backend(ABC):
    """A stage's job on one kind of cluster. Methods raise StopRequested if a stop signal comes before the cluster answers."""

    # The time between two polls is a twentieth of the job's age, within these bounds: short stages end without delay.
    shortest_poll_seconds: float
    poll_seconds: float

    def __init__(self, job: Job, screen: Screen, stops: StopSignals) -> None:
        self.job, self.screen, self.stops = job, screen, stops
        self.reset()

    def reset(self) -> None:
        """Forget the job that was followed, its lines and its end: `start` calls it when another one follows."""
        self.output = Output(self.screen, multi_process=self.job.multi_process)
        self.begun = time.monotonic()  # set again when the job begins to run, after its time in the queue

    def follow(self) -> int:
        """Run the job to its end, or until a stop signal comes, and return the exit status.

        After an end that may pass the job is started again, `resources.retries` times, with growing pauses.

        Raises:
            PecoError: a variable is missing or wrong, or the cluster refuses.
        """
        retries = self.job.resources.retries
        number, pause = 0, RETRY_SECONDS
        try:
            while True:
                try:
                    return self._attempt()
                except Lost as error:
                    if self.stops.first:
                        raise StopRequested from None
                    number += 1
                    if number > retries:
                        used_up = f"no retry of {retries} is left; " if retries else ""
                        return self.fail(f"{error}; {used_up}{error.advice}", EXIT_TEMPORARY)
                    self.note(f"{error}; retry {number} of {retries} in {pause:.0f} s")
                    self.stops.wait(pause)
                    pause = min(2 * pause, LONGEST_RETRY_SECONDS)
        except StopRequested:
            self.cancel()
            return self.stops.status

    def _attempt(self) -> int:
        self.start()
        while (status := self.poll()) is None:
            if self.stops.first:
                raise StopRequested
            self.stops.wait(self.interval(time.monotonic() - self.begun))
        return self.stops.status or status

    def interval(self, age: float) -> float:
        """Seconds until the next poll of what has been followed for `age` seconds."""
        return min(self.poll_seconds, max(self.shortest_poll_seconds, age / 20))

    @abstractmethod
    def start(self) -> None:
        """Submit the job, or find the one that exists. A job that was followed before is followed further.

        Raises:
            Lost: the cluster can't be reached.
        """

    @abstractmethod
    def poll(self) -> int | None:
        """Show new lines. Returns the exit status once the job has ended, None before.

        Raises:
            Lost: the cluster ended the job, or can't be reached.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Stop the job, if there is one, and wait while it saves its work; a second stop signal ends the waiting."""

    def note(self, text: str) -> None:
        """Show a line of the launcher."""
        self.screen.note(f"{self.job.stage}: {text}")

    def fail(self, text: str, status: int = EXIT_ERROR) -> int:
        """Show an error and return the exit status."""
        self.screen.note(f"error: {self.job.stage}: {text}")
        return status
