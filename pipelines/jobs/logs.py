"""The log files of jobs: followed, shown on the terminal, and deleted when old."""

from __future__ import annotations

import collections
import contextlib
import re
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

KEPT = 5  # runs of a stage
_SLURM = re.compile(r"slurm-(\d+)(-\d+)?\.(out|err|log)")


def drop_old(logs: Path, is_running: Callable[[str], bool] = lambda name: False) -> None:
    """Delete a stage's oldest logs before one more run. A run has a folder of its own, or on Slurm a few files.

    Args:
        logs: folder of the stage's logs.
        is_running: tells by the name of a run's folder whether the run still writes into it.
    """
    runs: dict[str, list[tuple[float, Path]]] = collections.defaultdict(list)
    for path in logs.glob("*"):
        match = _SLURM.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):  # another launcher with the same work folder deletes it, too
            found = path.stat()
            if match or stat.S_ISDIR(found.st_mode):
                runs[match[1] if match else path.name].append((found.st_mtime, path))
    for run in sorted(runs.values(), key=max)[: max(0, len(runs) - KEPT + 1)]:
        for _, path in run:
            if path.is_dir():
                if not is_running(path.name):
                    shutil.rmtree(path, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                path.unlink()


@dataclass(frozen=True)
class Line:
    """One line of a process."""

    text: str  # without the newline
    error: bool  # from stderr
    rank: str | None  # None where there is one process


class Tail:
    """The lines added to a growing file since the last call."""

    def __init__(self, path: Path, *, error: bool, rank: str | None) -> None:
        self.path, self.error, self.rank = path, error, rank
        self._file: BinaryIO | None = None
        self._rest = b""

    def read(self, *, last: bool = False) -> Iterator[Line]:
        """Complete lines; with `last` also one that lacks its newline."""
        if self._file is None and self.path.exists():
            self._file = self.path.open("rb")
        data = self._rest + (self._file.read() if self._file else b"")
        *lines, self._rest = data.split(b"\n")
        if last and self._rest:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            yield Line(line.decode(errors="replace"), self.error, self.rank)


class Screen:
    """Shows lines as they come, and on a terminal redraws progress lines (those that begin with a carriage return) in place.

    An error that a user can fix is one line that begins with `error: `. It is shown once, even if several ranks print it. Later
    lines of the ranks on stderr are consequences, not the cause: they stay in the log files.

    Attributes:
        bar: True on a terminal.
        errors: number of lines on stderr so far.
        reason: the first error, or else the last line on stderr; empty without one.
    """

    def __init__(self) -> None:
        self.bar = sys.stdout.isatty() and sys.stderr.isatty()
        self.errors = 0
        self.reason = ""
        self._explained = False
        self._drawn: TextIO | None = None
        self._lock = threading.Lock()

    def show(self, lines: list[Line]) -> None:
        """Show lines of the processes."""
        # Ranks end at almost the same time: the one that names the cause comes first.
        lines.sort(key=lambda line: not self._is_cause(line))
        with self._lock:
            for line in lines:
                self._show(line)

    def close(self) -> None:
        """End a redrawn line, if there is one."""
        if self._drawn:
            self._drawn.write("\n")
            self._drawn.flush()
            self._drawn = None

    def note(self, text: str) -> None:
        """Show a line of the launcher itself; any thread may call it."""
        with self._lock:
            self._remember(text)
            self._write(sys.stderr, text)
            sys.stderr.flush()

    def _remember(self, text: str) -> None:
        """Take a line on stderr as the reason of a failure, unless an error was there before."""
        if text.strip() and not self.reason.startswith("error: "):
            self.reason = text.splitlines()[0]

    @staticmethod
    def _is_cause(line: Line) -> bool:
        return line.error and line.rank is not None and line.text.startswith("error: ")

    def _show(self, line: Line) -> None:
        stream = sys.stderr if line.error else sys.stdout
        progress = line.text.startswith("\r")
        if line.error and not progress:
            self._remember(line.text)
        if progress and self.bar:
            width = shutil.get_terminal_size().columns - 1
            stream.write(f"\r\x1b[K{line.text[1:].rstrip()[:width]}")
            self._drawn = stream
        elif self._is_cause(line):
            if not self._explained:
                self._write(stream, line.text)
            self._explained = True
        elif not (line.error and self._explained):
            rank = f"[{line.rank}] " if line.rank is not None and not progress else ""
            self._write(stream, rank + line.text.lstrip("\r"))
        self.errors += line.error and not progress
        stream.flush()

    def _write(self, stream: TextIO, text: str) -> None:
        self.close()
        stream.write(text + "\n")
