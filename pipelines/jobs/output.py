"""The output of a job's processes: shown with their ranks, and searched for the cause of a failure."""

from __future__ import annotations

import collections
import re
import signal

from pipelines.jobs.logs import Line, Screen

SHOWN_LINES = 20
_RANK = re.compile(r"\[(\d+)\]: ?(.*)")
_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank")
_ROOT = re.compile(r"^\s*(rank|exitcode)\s*: (-?\d+)")


class Output:
    """The lines of a job: shown with the number of their rank, and searched for what explains a failure.

    A single process has no rank. With several, torchrun's own lines are not shown: they name the rank that failed first, and are
    kept for the case that no rank explains the failure.
    """

    def __init__(self, screen: Screen, *, multi_process: bool) -> None:
        self._screen, self._multi_process = screen, multi_process
        self._last: dict[str, collections.deque[str]] = {}  # lines by rank, or by node where there is no rank
        self._failed: dict[str, dict[str, int]] = {}
        self._explained = False

    def add(self, node: str, texts: list[str]) -> None:
        """Show new lines of a node."""
        lines = []
        for text in texts:
            match = _RANK.fullmatch(text) if self._multi_process else None
            rank, content = (match[1], match[2]) if match else (None, text)
            self._last.setdefault(rank or node, collections.deque(maxlen=SHOWN_LINES)).append(content)
            if self._multi_process and rank is None:
                self._read_torchrun(node, text)
                continue
            is_error = content.startswith("error: ")
            self._explained |= is_error
            lines.append(Line(content, is_error, rank))
        self._screen.show(lines)

    def _read_torchrun(self, node: str, text: str) -> None:
        found = self._failed.setdefault(node, {})
        if match := _FAILED.search(text):
            found.setdefault("code", int(match[1]))
        if "Root Cause" in text:
            found["root"] = 1
        elif "root" in found and (match := _ROOT.match(text)):
            found.setdefault("rank" if match[1] == "rank" else "code", int(match[2]))

    def exit_code(self, node: str, status: int) -> int:
        """Exit code of the node's rank that failed first; torchrun itself always exits with 1. `status` where it is unknown."""
        return self._failed.get(node, {}).get("code", status)

    def was_stopped(self, node: str, status: int) -> bool:
        """True if the node's process that failed first was ended by SIGTERM, which may be its own where there is no heartbeat."""
        return self.exit_code(node, status) in (-signal.SIGTERM, 128 + signal.SIGTERM)

    def failure(self, node: str, status: int, origin: str) -> tuple[int, str | None]:
        """Exit status of a job whose process on `node` failed, and the error to show, None where its own lines explain it.

        Args:
            node: the node.
            status: exit status of the node's first process.
            origin: the pod, or the job and its node, for the message.
        """
        code = self.exit_code(node, status)
        if code == 2 and self._explained:
            return 2, None
        rank = self._failed.get(node, {}).get("rank")
        process = f"rank {rank}" if rank is not None else "its process"
        reason = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
        killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        hint = " (out of memory?)" if killed else ""
        lines = self._last.get(str(rank)) or self._last.get(node) or ()
        # In the first line, which alone becomes a step's message and an evaluation's entry in the report.
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        text = f"{process} of {origin} {reason}{hint}" + (f"; its last line: {last}" if last else "")
        return 2 if code == 2 or killed else 1, "\n".join([text, *(f"  {line}" for line in lines)])
