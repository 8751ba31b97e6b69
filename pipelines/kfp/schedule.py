"""When a recurring run starts: `0 3 * * *`, `30m`, `6h`, `1d`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peco.core.errors import PecoError

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
SECONDS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Field:
    """One field of a cron expression."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()  # of its numbers, from `low` on
    open: bool = False  # whether `?` stands for any

    def check(self, text: str) -> None:
        """Raises PecoError for what the field can't hold."""
        for item in text.split(","):
            if self.open and item == "?":
                continue
            part, slash, step = item.partition("/")
            first, dash, last = part.partition("-")
            numbers = [] if part == "*" else [self._number(first), self._number(last if dash else first)]
            known = [number for number in numbers if number is not None]
            if known != numbers or known != sorted(known) or (slash and not re.fullmatch("[1-9][0-9]*", step)):
                hint = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
                raise PecoError(
                    f"SCHEDULE: {self.name}: {item!r} is not allowed; expected {self.low} to {self.high}{hint}, "
                    "a range such as 1-5, a list, * or */2"
                )

    def _number(self, text: str) -> int | None:
        if text.upper() in self.names:
            return self.low + self.names.index(text.upper())
        return int(text) if re.fullmatch("[0-9]{1,2}", text) and self.low <= int(text) <= self.high else None


FIELDS = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31, open=True),
    Field("month", 1, 12, MONTHS),
    Field("day of the week", 0, 6, DAYS, open=True),
)


@dataclass(frozen=True)
class Schedule:
    """A cron expression in Kubeflow's six fields, or seconds between two starts; the other one is None."""

    cron: str | None = None
    seconds: int | None = None

    def __str__(self) -> str:
        return f"at {self.cron}" if self.cron else f"every {self.seconds} s"


def parse(text: str) -> Schedule:
    """Read a schedule: cron with five fields, or six with seconds first, or an interval.

    Raises:
        PecoError: it is neither.
    """
    if match := re.fullmatch(r"([1-9]\d{0,4})([mhd])", text.strip()):
        return Schedule(seconds=int(match[1]) * SECONDS[match[2]])
    fields = text.split()
    if len(fields) not in (5, 6):
        raise PecoError(
            f"SCHEDULE: {text!r} is not allowed; expected cron's five fields, as in '0 3 * * *', or an interval such as 30m, 6h, 1d"
        )
    if len(fields) == 5:
        fields.insert(0, "0")
    for field, value in zip(FIELDS, fields, strict=True):
        field.check(value)
    return Schedule(cron=" ".join(fields))
