"""A job on a cluster, and the loop that follows it; volcano.py and slurm.py implement the two kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod

from peco.core.stopping import StopSignals
from pipelines.jobs.job import Job
from pipelines.jobs.logs import Screen
from pipelines.jobs.output import Output

RESUME = "run again, it resumes from the last checkpoint"


class StopRequested(Exception):
    """A stop signal came, so nothing more is started or waited for."""


class Backend(ABC):
    """A stage's job on one kind of cluster. Methods raise StopRequested if a stop signal comes before the cluster answers."""

    poll_seconds: float  # time between two polls

    def __init__(self, job: Job, screen: Screen, stops: StopSignals) -> None:
        self.job, self.screen, self.stops = job, screen, stops
        self.output = Output(screen, multi_process=job.multi_process)

    def follow(self) -> int:
        """Submit or find the job, show its lines until it has ended or a stop signal comes, and return the exit status.

        Raises:
            PecoError: a variable is missing or wrong, or the cluster refuses.
        """
        try:
            self.start()
            while (status := self.poll()) is None:
                if self.stops.first:
                    raise StopRequested
                self.stops.wait(self.poll_seconds)
            return self.stops.status or status
        except StopRequested:
            self.cancel()
            return self.stops.status

    @abstractmethod
    def start(self) -> None:
        """Submit the job, or find the one that exists."""

    @abstractmethod
    def poll(self) -> int | None:
        """Show new lines. Returns the exit status once the job has ended, None before."""

    @abstractmethod
    def cancel(self) -> None:
        """Stop the job, if there is one, and wait while it saves its work; a second stop signal ends the waiting."""

    def note(self, text: str) -> None:
        """Show a line of the launcher."""
        self.screen.note(f"{self.job.stage}: {text}")

    def fail(self, text: str, status: int = 1) -> int:
        """Show an error and return the exit status."""
        self.screen.note(f"error: {self.job.stage}: {text}")
        return status
