"""The output of a job's processes: shown with their ranks, and searched for the cause of a failure."""

from __future__ import annotations

import collections
import re
import signal

from pipelines.jobs.job import Job
from pipelines.jobs.logs import Line, Screen

SHOWN_LINES = 20
_RANK = re.compile(r"\[(\d+)\]: ?(.*)")
_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank")
_ROOT = re.compile(r"^\s*(rank|exitcode)\s*: (-?\d+)")


class Output:
    """The lines of a job: shown with the number of their rank, and what is needed for a word on its failure.

    With one process there are no ranks. With several, what torchrun itself writes is not shown: it is read for the rank that
    failed first, and kept for the case that no rank says anything.
    """

    def __init__(self, screen: Screen, *, several: bool) -> None:
        self._screen, self._several = screen, several
        self._last: dict[str | None, collections.deque[str]] = {}
        self._failed: dict[str, dict[str, int]] = {}
        self.explained = False

    def add(self, node: str, texts: list[str]) -> None:
        """Show what the node has written since."""
        lines = []
        for text in texts:
            match = _RANK.fullmatch(text) if self._several else None
            rank, said = (match[1], match[2]) if match else (None, text)
            mine = rank if rank is not None else node
            self._last.setdefault(mine, collections.deque(maxlen=SHOWN_LINES)).append(said)
            if rank is None and self._several:
                self._read(node, text)
                continue
            cause = said.startswith("error: ")
            self.explained |= cause
            lines.append(Line(said, cause, rank))
        self._screen.show(lines)

    def _read(self, node: str, text: str) -> None:
        found = self._failed.setdefault(node, {})
        if match := _FAILED.search(text):
            found.setdefault("code", int(match[1]))
        if "Root Cause" in text:
            found["root"] = 1
        elif "root" in found and (match := _ROOT.match(text)):
            found.setdefault("rank" if match[1] == "rank" else "code", int(match[2]))

    def code(self, node: str, status: int) -> int:
        """Exit code of the rank of this node that failed first; torchrun itself makes 1 of every one. `status` where unknown."""
        return self._failed.get(node, {}).get("code", status)

    def explain(self, node: str) -> tuple[str, list[str]]:
        """Name of the rank that failed on this node, as far as known, and its last lines."""
        rank = self._failed.get(node, {}).get("rank")
        lines = self._last.get(str(rank)) or self._last.get(node) or ()
        return f"rank {rank}" if rank is not None else "its process", list(lines)


def failure(job: Job, output: Output, node: str, status: int, where: str) -> tuple[int, str | None]:
    """Exit status of a job whose process on `node` failed with `status`, and the error to show where its lines don't say it all."""
    code = output.code(node, status)
    if code == 2 and output.explained:
        return 2, None
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return (
            1,
            f"error: {job.stage}: {where} was stopped from outside; run again, it goes on from its last checkpoint",
        )
    who, lines = output.explain(node)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
    hint = " (out of memory?)" if code in (-signal.SIGKILL, 128 + signal.SIGKILL) else ""
    text = f"error: {job.stage}: {who} of {where} {how}{hint}"
    return 2 if code == 2 else 1, "\n".join(
        [text + ("; its last lines:" if lines else ""), *(f"  {line}" for line in lines)]
    )
