"""The start times of a recurring run: `0 3 * * *`, `30m`, `6h`, `1d`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peco.core.errors import PecoError

SECONDS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Schedule:
    """The start times of a recurring run.

    Attributes:
        text: as the user wrote it.
        cron: with Kubeflow's six fields, or None.
        seconds: between two starts, or None.
    """

    text: str
    cron: str | None = None
    seconds: int | None = None

    def __str__(self) -> str:
        if self.cron:
            return f"at {self.text}"
        return "every " + re.sub(r"(\d+)", r"\1 ", self.text)


def parse(text: str) -> Schedule:
    """Read a schedule: cron with five fields, or six with seconds first, or an interval.

    Kubeflow checks the fields. Of five it would read the first as seconds, so they get a 0 in front.

    Raises:
        PecoError: it is neither.
    """
    if match := re.fullmatch(r"([1-9]\d{0,4})([mhd])", text.strip()):
        return Schedule(match[0], seconds=int(match[1]) * SECONDS[match[2]])
    fields = text.split()
    if len(fields) not in (5, 6):
        raise PecoError(
            f"SCHEDULE: {text!r} is not allowed; expected cron's five fields, as in '0 3 * * *', or an interval such as 30m, 6h, 1d"
        )
    return Schedule(" ".join(fields), cron=" ".join(fields if len(fields) == 6 else ["0", *fields]))
